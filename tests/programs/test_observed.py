"""What a server tells its observer of clients, with a task for each and without any."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from freebsd_splice import RelayOutcome
from freebsd_splice.proxies import Address, Client, ProxyServer, _direct, _hangups, forwarder
from freebsd_splice.proxies._live import LiveConnections, Watched
from freebsd_splice.proxies._numbers import Numbers
from freebsd_splice.proxies._observing import Observer, refusal_of
from freebsd_splice.proxies.forward import to_targets
from programs.processes import PATIENCE, Server, reset
from programs.test_server import ask, running

# Where the kernel is demanded, every client has a task and an ordinary relay.
pytestmark = pytest.mark.usefixtures("userspace")

WAYS = ["a task", "no task"]


def server_to(way: str, targets: Sequence[Address], **options: Any) -> ProxyServer:
    """A forwarder, whose clients have a task each or none."""
    if way == "no task":
        return forwarder(targets, **options)
    opener = to_targets(targets)

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        return await opener(client)

    return ProxyServer(open_target, **options)


class Seen(Observer):
    """Writes down what it is told of one client."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.events: list[str] = []
        self.seconds: list[float] = []

    def accepted(self, client: Client) -> None:
        self._note(client, "accepted")

    def dialled(self, client: Client, seconds: float, error: OSError | None) -> None:
        self.seconds.append(seconds)
        failure = "" if error is None else f" {errno.errorcode[error.errno or 0]}"
        self._note(client, f"dialled{failure}")

    def handshaken(self, client: Client, target_name: str) -> None:
        self._note(client, f"to {target_name}")

    def ended(self, client: Client, outcome: RelayOutcome) -> None:
        up, down = outcome.left_to_right.bytes, outcome.right_to_left.bytes
        self._note(client, f"ended {up} {down} {outcome.reason.value}")

    def refused(self, client: Client | None, error: OSError | None) -> None:
        assert client is not None
        self._note(client, f"refused: {refusal_of(error)}")

    def left(self, client: Client) -> None:
        self._note(client, "left")

    def _note(self, client: Client, event: str) -> None:
        self.events.append(event)
        if client not in self.clients:
            self.clients.append(client)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def watch(
    server: ProxyServer, talk: Callable[[tuple[str, int], ProxyServer], Any], *, to_the_end: bool
) -> Seen:
    """What is seen of one client, which ``talk`` is."""
    server.observer = seen = Seen()

    async def main() -> None:
        async with running(server) as address:
            await talk(address, server)
            if to_the_end:
                await until(lambda: "left" in seen.events)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert len(seen.clients) == 1
    assert server._occupancy._live == {}
    return seen


async def say_hello(address: tuple[str, int], _: ProxyServer) -> None:
    assert await ask(address, b"hello") == b"hello"


async def be_closed(address: tuple[str, int], _: ProxyServer) -> None:
    reader, writer = await asyncio.open_connection(*address)
    assert await reader.read() == b""
    writer.close()


async def wait_for_the_target(address: tuple[str, int], server: ProxyServer) -> socket.socket:
    """The client, once somebody connects for it."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    await until(server._count_live)
    return sock


@pytest.mark.parametrize("way", WAYS)
def test_one_that_is_served(way: str, echo_server: Server) -> None:
    target = Address(*echo_server.address)
    seen = watch(server_to(way, [target]), say_hello, to_the_end=True)
    assert seen.events == ["accepted", "dialled", f"to {target}", "ended 5 5 eof", "left"]


@pytest.mark.parametrize("way", WAYS)
def test_one_whose_first_target_refuses(
    way: str, refusing: socket.socket, echo_server: Server
) -> None:
    target = Address(*echo_server.address)
    dead = Address(*refusing.getsockname())
    seen = watch(server_to(way, [dead, target]), say_hello, to_the_end=True)
    failed, *others = seen.events[1:]
    assert failed == "dialled ECONNREFUSED"
    assert others == ["dialled", f"to {target}", "ended 5 5 eof", "left"]
    assert seen.events[0] == "accepted"


@pytest.mark.parametrize("way", WAYS)
def test_one_whose_target_does_not_answer(way: str, silent: socket.socket) -> None:
    target = Address(*silent.getsockname())
    server = server_to(way, [target], connect_timeout=0.2)
    began = time.monotonic()
    seen = watch(server, be_closed, to_the_end=True)
    timeout = ["dialled ETIMEDOUT", "refused: target timeout"]
    assert seen.events == ["accepted", *timeout, "left"]
    assert 0.19 < seen.seconds[0] < time.monotonic() - began


@pytest.mark.parametrize("way", WAYS)
def test_one_that_leaves_meanwhile(
    way: str, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_direct, _hangups):
        monkeypatch.setattr(module, "LOOK_EVERY", 0.01)

    async def leave(address: tuple[str, int], server: ProxyServer) -> None:
        reset(await wait_for_the_target(address, server))

    server = server_to(way, [Address(*silent.getsockname())], connect_timeout=1000)
    seen = watch(server, leave, to_the_end=True)
    assert seen.events == ["accepted", "refused: client gone", "left"]


@pytest.mark.parametrize("way", WAYS)
def test_one_that_is_cut_meanwhile(way: str, silent: socket.socket) -> None:
    clients: list[socket.socket] = []

    async def stay(address: tuple[str, int], server: ProxyServer) -> None:
        clients.append(await wait_for_the_target(address, server))

    server = server_to(way, [Address(*silent.getsockname())], connect_timeout=1000)
    seen = watch(server, stay, to_the_end=False)
    clients[0].close()
    assert seen.events == ["accepted", "left"]


@pytest.mark.parametrize("way", WAYS)
def test_one_that_is_cut_later(way: str, echo_server: Server) -> None:
    async def stay(address: tuple[str, int], server: ProxyServer) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        server.stop()
        server.stop()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    target = Address(*echo_server.address)
    seen = watch(server_to(way, [target]), stay, to_the_end=True)
    assert seen.events == ["accepted", "dialled", f"to {target}", "ended 5 5 cancelled", "left"]


def test_one_that_cannot_be_connected_for(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(_direct.Dials, "begin", fail)
    server = server_to("no task", [Address(*echo_server.address)])
    assert watch(server, be_closed, to_the_end=True).events == ["accepted", "left"]


def test_one_for_whom_no_task_can_be_made(
    refusing: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is free again."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ProxyServer, "_begin", fail)
    server = server_to("no task", [Address(*refusing.getsockname())])
    seen = watch(server, be_closed, to_the_end=True)
    assert seen.events == ["accepted", "dialled ECONNREFUSED", "left"]
    assert server._count_live() == 0


@pytest.mark.parametrize("kind", [LiveConnections, Numbers])
@pytest.mark.parametrize("way", WAYS)
def test_to_ask_how_far_it_is_changes_nothing(
    way: str, kind: Callable[[str], LiveConnections], echo_server: Server
) -> None:
    """By another thread; and what is asked for a relay goes on counting."""
    everybody = Watched(kind)

    async def moved() -> list[int]:
        (connection,) = await asyncio.to_thread(everybody.read)
        assert all(way.served_by == ("userspace", "copy") for way in connection.ways)
        return [way.bytes for way in connection.ways]

    async def main() -> None:
        server = server_to(way, [Address(*echo_server.address)])
        server.observer = everybody.at(":1")
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert await moved() == [5, 5]
            assert server._taskless is not None
            (live,) = server._taskless._live
            assert live.relay is not None
            assert live.relay.relay is None
            assert live.named is not None
            assert live.named.relay is live.relay.relay is not None
            assert await moved() == [5, 5]
            writer.write(b"again")
            assert await reader.readexactly(5) == b"again"
            assert await moved() == [10, 10]
            writer.close()
            await until(lambda: not everybody.read())

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_who_is_not_observed_costs_no_client(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log makes one where it has a line to write."""
    made: list[object] = []
    make = ProxyServer._client

    def noted(self: ProxyServer, *given: Any) -> Client:
        made.append(given)
        return make(self, *given)

    monkeypatch.setattr(ProxyServer, "_client", noted)

    async def main() -> None:
        async with running(forwarder(Address(*echo_server.address))) as address:
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert made == []


def test_a_target_with_a_time_to_linger_has_its_observer(echo_server: Server) -> None:
    """It has a task to its end, and an ordinary relay."""

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        target = await client.dial(Address(*echo_server.address))
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        return target, (b"", b"")

    target = Address(*echo_server.address)
    seen = watch(ProxyServer(open_target), say_hello, to_the_end=True)
    assert seen.events == ["accepted", "dialled", f"to {target}", "ended 5 5 eof", "left"]
