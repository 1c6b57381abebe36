"""Several servers in one event loop, and one that takes another's place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from freebsd_splice._cli.listeners import Served
from freebsd_splice._cli.plan import Planned
from freebsd_splice._cli.replacing import Servers
from freebsd_splice.proxies import Address, ListenError, ProxyServer, forwarder
from freebsd_splice.proxies._accepting import Accepting
from freebsd_splice.proxies._connecting import ReservedDescriptors
from programs.processes import PATIENCE, Server


class Client:
    """A client that can be asked to send and receive, in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, listener: socket.socket) -> Client:
        return cls(*await asyncio.open_connection(*listener.getsockname()))

    async def exchange(self, data: bytes) -> bytes:
        self._writer.write(data)
        return await asyncio.wait_for(self._reader.readexactly(len(data)), PATIENCE)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def run(main: Callable[[], Awaitable[object]]) -> None:
    async def with_a_bound() -> None:
        await asyncio.wait_for(main(), PATIENCE)

    asyncio.run(with_a_bound())


def test_a_retired_server_ends_with_its_last_connection(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no grace time, and who takes duplicates of its sockets goes on with its clients."""

    async def main() -> None:
        old, new = (forwarder(Address(*echo_server.address), grace=0.0) for _ in range(2))
        listener = socket.create_server(("127.0.0.1", 0))
        with listener.dup() as duplicate:
            old.use([listener])
            ended = asyncio.ensure_future(old.run())
            client = await Client.of(duplicate)
            assert await client.exchange(b"hello") == b"hello"
            old.retire()
            while listener.fileno() >= 0:  # it closes the socket in the loop
                await asyncio.sleep(0)
            waiting = await Client.of(duplicate)
            new.use([duplicate])
            others = asyncio.ensure_future(new.run())
            assert await waiting.exchange(b"world") == b"world"
            assert await client.exchange(b"hello") == b"hello"
            assert not ended.done()
            await client.close()
            await ended
            await waiting.close()
            new.stop()
            await others

    caplog.set_level("INFO")
    run(main)
    assert sum(record.message.startswith("stopping") for record in caplog.records) == 1


def test_who_comes_after_a_retirement_is_the_next_servers(
    echo_server: Server, server: Callable[..., Server]
) -> None:
    """Even before the loop has gone round: who has read the log knows that there is another one."""
    next_target = server(lambda connection: connection.sendall(b"next"))

    async def main() -> None:
        old, new = (forwarder(Address(*each.address)) for each in (echo_server, next_target))
        listener = socket.create_server(("127.0.0.1", 0))
        with listener.dup() as duplicate:
            old.use([listener])
            ended = asyncio.ensure_future(old.run())
            client = await Client.of(duplicate)
            assert await client.exchange(b"hello") == b"hello"
            old.retire()
            with socket.create_connection(duplicate.getsockname()) as late:
                new.use([duplicate])
                others = asyncio.ensure_future(new.run())
                late.setblocking(False)
                said = asyncio.get_running_loop().sock_recv(late, 4)
                assert await asyncio.wait_for(said, PATIENCE) == b"next"
            await client.close()
            await ended
            new.stop()
            await others

    run(main)


def test_a_retired_server_can_be_stopped(echo_server: Server) -> None:
    async def main() -> None:
        server = forwarder(Address(*echo_server.address), grace=0.0)
        listener = socket.create_server(("127.0.0.1", 0))
        server.use([listener])
        ended = asyncio.ensure_future(server.run())
        client = await Client.of(listener)
        assert await client.exchange(b"hello") == b"hello"
        server.retire()
        server.stop()
        await ended
        await client.close()

    run(main)


def refuse(*_: object) -> None:
    raise NotImplementedError


@pytest.mark.parametrize("reports", [True, False])
def test_accepting_waits_where_nobody_is_wanted(
    reports: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retired server ends it; also on Windows, whose usual loop reports no readiness."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            accepting = Accepting(
                listener,
                ReservedDescriptors(1, 0),
                room=lambda: None,
                wanted=lambda: False,
                accepted=lambda *_: None,
                nobody_waits=lambda: None,
                must_know=lambda: True,
                worker=None,
            )
            with monkeypatch.context() as patch:
                if not reports:
                    patch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
                running = asyncio.ensure_future(accepting.run())
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not running.done()
                running.cancel()
                await asyncio.wait([running])
            assert running.cancelled()

    run(main)


@pytest.mark.parametrize("reports", [True, False])
def test_no_room_for_one_more_is_an_answer(reports: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shortage = OSError(errno.EMFILE, "Too many open files")

    def room() -> ReservedDescriptors:
        raise shortage

    def accepted(sock: socket.socket, _: object, reserved: ReservedDescriptors) -> None:
        sock.close()
        reserved.keep(0)

    async def main() -> None:
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.setblocking(False)
            accepting = Accepting(
                listener,
                ReservedDescriptors(1, 0),
                room=room,
                wanted=lambda: True,
                accepted=accepted,
                nobody_waits=lambda: None,
                must_know=lambda: True,
                worker=None,
            )
            with monkeypatch.context() as patch:
                if not reports:
                    patch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
                running = asyncio.ensure_future(accepting.run())
                await asyncio.sleep(0)  # it waits for the first client
                opened.enter_context(socket.create_connection(listener.getsockname()))
                assert await running is shortage

    run(main)


def served(server: ProxyServer, listener: socket.socket) -> Served:
    nothing: Any = None
    return Served(Planned(nothing, nothing), nothing, server, [[listener]])


def test_a_server_that_fails_stops_the_others(echo_server: Server) -> None:
    async def main() -> None:
        target = Address(*echo_server.address)
        listener = socket.create_server(("127.0.0.1", 0))
        broken = socket.socket()
        broken.bind(("127.0.0.1", 0))
        servers = Servers()
        good = served(forwarder(target, grace=1000.0), listener)
        assert servers.replace([good, served(forwarder(target), broken)])
        with pytest.raises(ListenError) as raised:
            await servers.run()
        assert raised.value.errno in (errno.EINVAL, errno.EOPNOTSUPP)
        assert listener.fileno() == -1
        assert not servers.replace([good])  # nothing begins any more

    run(main)
