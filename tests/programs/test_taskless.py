"""Connections that leave their task, and sockets that are in the loop's worker's poller."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from freebsd_splice.proxies import (
    Address,
    Client,
    Limits,
    ProxyServer,
    forwarder,
)
from freebsd_splice.proxies._loop_relay import LoopRelay
from programs.processes import PATIENCE, Server
from programs.test_server import OpenedTarget, ask, asking, running, watch_joining

# Where the kernel is demanded, every client has a task and an ordinary relay.
pytestmark = pytest.mark.usefixtures("userspace")


def test_a_connection_that_leaves_its_task_counts_once(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next client is accepted before the task's end is known; it must not seem too many."""
    server = ProxyServer(asking(Address(*echo_server.address)), limits=Limits(connections=2))
    look, counted = LoopRelay.look, []

    def look_later(self: LoopRelay) -> None:
        asyncio.get_running_loop().call_soon(lambda: counted.append(server._count_live()))
        look(self)

    monkeypatch.setattr(LoopRelay, "look", look_later)

    async def main() -> None:
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"hello"
            writer.close()

    asyncio.run(main())
    assert counted == [1]


def test_a_socket_whose_close_may_wait_is_left_to_a_relay(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes it."""

    async def open_target(client: Client) -> OpenedTarget:
        target = await client.dial(Address(*echo_server.address))
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        return target, (b"", b"")

    joined: list[object] = []
    watch_joining(monkeypatch, lambda *sockets: joined.append(sockets))

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert joined == []


def test_nobody_is_reported_while_accepting_pauses(echo_server: Server) -> None:
    """A client that waits would be reported all the time."""

    async def main() -> None:
        server = forwarder(Address(*echo_server.address), limits=Limits(connections=1))
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"hello"
            worker, (listener,) = server._worker, server._listeners
            assert worker is not None
            waiting = asyncio.ensure_future(ask(address, b"hello"))
            while listener.fileno() in worker._told_last:
                await asyncio.sleep(0.01)
            writer.close()
            assert await waiting == b"hello"

    asyncio.run(main())
