"""What one client may take of a proxy, and all clients together."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from freebsd_splice.proxies import (
    Address,
    Client,
    Limits,
    ProxyServer,
    TargetError,
    _server,
    forwarder,
)
from freebsd_splice.proxies._connecting import ReservedDescriptors, set_buffers
from freebsd_splice.proxies._event_loop import run
from freebsd_splice.proxies._limits import Occupancy
from freebsd_splice.proxies._listening import listen_on
from programs.processes import PATIENCE, Forwarder, Server, closing_all, exchange, needs_address
from programs.test_server import OpenedTarget, ask, running, watch_joining

StartForwarder = Callable[..., Forwarder]


def test_a_client_with_too_many_connections_is_closed_at_once(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--max-per-client", "2")
    with closing_all() as clients:
        for _ in range(2):
            clients.append(front.connect())
            assert exchange(clients[-1], b"hello") == b"hello"
        with front.connect() as refused:
            assert refused.recv(1) == b""
            name = "{}:{}".format(*refused.getsockname())
        front.expect(rf"{name}: refused: the client already has 2 connections .--max-per-client.$")
        for client in clients:
            assert exchange(client, b"still here") == b"still here"

        clients.pop().close()
        front.expect("15 bytes up, 15 bytes down, eof")
        with front.connect() as client:
            assert exchange(client, b"hello") == b"hello"
    assert len(front.find("refused")) == 1


def test_another_client_is_not_affected(echo_server: Server, forwarder: StartForwarder) -> None:
    needs_address("127.0.0.2")
    front = forwarder(echo_server.address, "--max-per-client", "1")
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        with front.connect() as refused:
            assert refused.recv(1) == b""
        where = ("127.0.0.1", front.port)
        with socket.create_connection(where, PATIENCE, ("127.0.0.2", 0)) as another:
            assert exchange(another, b"hello") == b"hello"


@pytest.mark.usefixtures("userspace")
def test_a_client_that_was_closed_may_come_again_at_once() -> None:
    """The loop's next round begins with those who are waiting to be accepted."""
    came: list[socket.socket] = []

    async def main() -> None:
        done = asyncio.Event()

        async def open_target(_: Client) -> OpenedTarget:
            came.append(socket.create_connection(address, PATIENCE))  # before it is closed
            if len(came) == 3:
                done.set()
            raise TargetError(errno.ECONNREFUSED, "nobody is there")

        server = ProxyServer(open_target, limits=Limits(per_client=1))
        async with running(server) as address:
            came.append(socket.create_connection(address, PATIENCE))
            await asyncio.wait_for(done.wait(), PATIENCE)

    try:
        run(main())
    finally:
        for each in came:
            each.close()


def test_who_waits_is_woken_once_all_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who waits for descriptors would look too early, and not again for a while."""
    made: list[ReservedDescriptors] = []
    held: list[int] = []

    class Watched(ReservedDescriptors):
        def __init__(self, *given: int) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(_server, "ReservedDescriptors", Watched)

    async def open_target(_: Client) -> OpenedTarget:
        raise TargetError(errno.ECONNREFUSED, "nobody is there")

    async def main() -> None:
        server = ProxyServer(open_target)
        async with running(server) as address:
            wake = server._changes.wake

            def watched() -> None:
                held.append(len(made[0]._held))
                wake()

            monkeypatch.setattr(server._changes, "wake", watched)
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())
    assert held
    assert held[0] == 0


def test_a_client_whose_target_fails_gives_its_place_back(
    refusing: socket.socket, forwarder: StartForwarder
) -> None:
    front = forwarder(refusing.getsockname(), "--max-per-client", "1")
    for number in range(1, 4):
        with front.connect() as client:
            assert client.recv(1) == b""
        front.expect("cannot connect", number)
    assert not front.find("already has 1 connections")


def test_who_is_refused_leaves_nothing_behind(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--max-per-client", "1", descriptors=60)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        for _ in range(60):
            with front.connect() as refused:
                assert refused.recv(1) == b""
    assert not front.find("accepting pauses")


def test_with_all_places_taken_clients_wait_until_one_is_free(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--max-connections", "2", "--log-level", "debug")
    with closing_all() as clients:
        for number in range(6):
            clients.append(front.connect())
            clients[-1].sendall(b"%d" % number)
        for number, client in enumerate(clients):
            assert client.recv(1) == b"%d" % number
            if number == 0:
                front.expect(
                    r"WARNING accepting pauses at 2 connections: connection limit reached "
                    r"\(--max-connections\)$"
                )
                assert len(front.find("DEBUG .*: accepted")) == 2
            client.close()
    front.expect("1 bytes up, 1 bytes down, eof", 6)
    front.expect("INFO accepting has resumed$")
    assert len(front.find("accepting pauses")) == 1
    assert front.stop() == 0


def test_a_signal_ends_it_while_clients_wait_for_a_place(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--max-connections", "1", "--grace", "0.1")
    with front.connect() as client, front.connect():
        assert exchange(client, b"hello") == b"hello"
        front.expect("accepting pauses")
        assert front.stop() == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("192.0.2.1", 1), ("192.0.2.1", 2)),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::ffff:0:0:1", 2, 0, 0)),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::1", 2, 0, 0)),
        (("192.0.2.1", 1), ("::ffff:192.0.2.1", 2, 0, 0)),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2", 1, 0, 2)),
    ],
)
def test_these_are_one_client(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    occupancy = Occupancy(1)
    assert occupancy.enter(first)
    assert occupancy.enter(second) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("192.0.2.1", 1), ("192.0.2.2", 1)),
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0)),
        (("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 1, 0, 0)),
    ],
)
def test_these_are_two_clients(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    occupancy = Occupancy(1)
    assert occupancy.enter(first)
    assert occupancy.enter(second)


@pytest.mark.parametrize("nobody", [None, (), ""])
def test_clients_without_an_address_are_not_counted_as_one(nobody: Any) -> None:
    occupancy = Occupancy(1)
    assert occupancy.enter(nobody) == ""
    assert occupancy.enter(nobody) == ""
    occupancy.leave("")
    occupancy.leave("")
    assert not occupancy._live


def test_who_has_gone_is_forgotten() -> None:
    occupancy = Occupancy(2)
    for number in range(100):
        places = [occupancy.enter((f"192.0.2.{number}", port)) for port in (1, 2)]
        assert occupancy.enter((f"192.0.2.{number}", 3)) is None
        for place in places:
            assert place is not None
            occupancy.leave(place)
    assert not occupancy._live


class Watched:
    """The sizes of buffers that anybody sets, and whether that socket was connected by then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set: list[tuple[int, bool]] = []
        seen = self.set

        def setsockopt(sock: socket.socket, level: int, option: int, *value: Any) -> None:
            if level == socket.SOL_SOCKET and option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                seen.append((option, _is_connected(sock)))
            super(socket.socket, sock).setsockopt(level, option, *value)

        monkeypatch.setattr(socket.socket, "setsockopt", setsockopt, raising=False)


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _sizes(sock: socket.socket) -> list[int]:
    options = (socket.SO_SNDBUF, socket.SO_RCVBUF)
    return [sock.getsockopt(socket.SOL_SOCKET, option) for option in options]


def _sizes_of_a_pair(asked: int) -> list[list[int]]:
    """What becomes of that: Linux says twice as much, FreeBSD makes it whole segments."""
    with socket.socket() as listener, socket.socket() as connected:
        for sock in (listener, connected):
            set_buffers(sock, asked)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        connected.connect(listener.getsockname())
        with listener.accept()[0] as accepted:
            return [_sizes(accepted), _sizes(connected)]


def test_buffers_have_their_size_before_the_connection_for_good(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F26: lowering one during a splice ends the splice, and bytes are gone."""
    as_asked = _sizes_of_a_pair(30_000)
    seen: list[list[int]] = []

    watch_joining(
        monkeypatch, lambda left, right: seen.extend(_sizes(sock) for sock in (left, right))
    )
    watched = Watched(monkeypatch)

    async def main() -> None:
        server = forwarder(Address(*echo_server.address), buffer_size=30_000)
        async with running(server) as address:
            data = bytes(300_000)
            assert await ask(address, data) == data

    asyncio.run(main())
    assert seen == as_asked
    both = [(socket.SO_SNDBUF, False), (socket.SO_RCVBUF, False)]
    assert watched.set == both + both  # the listener's and the target's


def test_without_a_size_the_buffers_are_left_to_the_system(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)

    async def main() -> None:
        async with running(forwarder(Address(*echo_server.address))) as address:
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert watched.set == []


def test_a_listener_has_its_buffers_before_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is agreed on when a client connects, which is before it is accepted."""
    calls: list[str] = []
    watched = Watched(monkeypatch)

    def listen(sock: socket.socket, backlog: int) -> None:
        calls.append(f"listen, after {len(watched.set)} sizes")
        super(socket.socket, sock).listen(backlog)

    monkeypatch.setattr(socket.socket, "listen", listen, raising=False)
    (listener,) = listen_on(Address("127.0.0.1", 0), 5, buffers=30_000)
    listener.close()
    assert calls == ["listen, after 2 sizes"]


def test_the_time_for_the_handshake_begins_with_the_accepting() -> None:
    """Not when the proxy begins to read."""
    failures: list[OSError] = []
    times: list[float] = []

    async def open_target(client: Client) -> OpenedTarget:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while loop.time() - start < 0.5:  # as a proxy that has other things to do before
            await asyncio.sleep(0.1)
        start = loop.time()
        try:
            await client.handshake.read(lambda piece: None)
        except OSError as error:
            times.append(loop.time() - start)
            failures.append(error)
            raise
        raise AssertionError

    async def main() -> None:
        server = ProxyServer(open_target, limits=Limits(handshake_timeout=0.5))
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()

    asyncio.run(main())
    assert len(failures) == 1
    assert "in 0.5 s" in str(failures[0])
    assert times[0] < 0.3
