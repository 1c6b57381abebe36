"""The server core that proxies share, in this process."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from freebsd_splice._relay import GivenRelay
from freebsd_splice._userspace.workers import LocalWorker
from freebsd_splice.proxies import (
    Address,
    Client,
    Limits,
    ListenError,
    OpenTarget,
    ProxyServer,
    TargetError,
    _joining,
    _pausing,
    _server,
    forwarder,
)
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._connecting import ReservedDescriptors, StarvedError
from freebsd_splice.proxies._event_loop import run
from freebsd_splice.proxies._limits import Occupancy
from freebsd_splice.proxies._loop_relay import LoopRelay, LoopRelays
from freebsd_splice.proxies._taskless import Taskless
from programs.processes import PATIENCE, Server, descriptors_left

OpenedTarget = tuple[socket.socket, tuple[bytes, bytes]]


def asking(address: Address) -> OpenTarget:
    """A proxy for which each client has a task, as it could say where it wants to go."""

    async def open_target(client: Client) -> OpenedTarget:
        return await client.dial(address), (b"", b"")

    return open_target


def watch_joining(
    monkeypatch: pytest.MonkeyPatch, watch: Callable[[socket.socket, socket.socket], object]
) -> None:
    """Have ``watch`` see the client's and the target's socket when a relay of theirs begins."""
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")  # relays are the loop's there alone
    begin = LoopRelays.begin

    def begin_watched(
        self: LoopRelays, left: socket.socket, right: socket.socket, over: Callable[[], object]
    ) -> LoopRelay:
        watch(left, right)
        return begin(self, left, right, over)

    monkeypatch.setattr(LoopRelays, "begin", begin_watched)


@asynccontextmanager
async def running(server: ProxyServer) -> AsyncIterator[tuple[str, int]]:
    """Serve; gives the address, and cuts at the end."""
    (address,) = server.listen(Address("127.0.0.1", 0))
    task = asyncio.ensure_future(server.run())
    try:
        yield address
    finally:
        server.stop()
        server.stop()
        await asyncio.wait_for(task, PATIENCE)


async def ask(address: tuple[str, int], data: bytes) -> bytes:
    """What comes back through the proxy, and no more."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE)
    finally:
        writer.close()
        await writer.wait_closed()


def test_what_was_read_already_goes_first(echo_server: Server) -> None:
    async def open_target(client: Client) -> OpenedTarget:
        assert not client.socket.getblocking()
        head = await asyncio.get_running_loop().sock_recv(client.socket, 5)
        assert head == b"HELLO"
        return await client.dial(Address(*echo_server.address)), (b"hello", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            assert await ask(address, b"HELLO world") == b"hello world"

    asyncio.run(main())


def test_what_was_read_is_not_kept_while_the_connection_lives(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[Client] = []
    kept: list[bytes] = []

    async def open_target(client: Client) -> OpenedTarget:
        clients.append(client)
        await client.handshake.read(lambda piece: piece)
        target = await client.dial(Address(*echo_server.address))
        return target, (bytes(client.handshake.received), b"")

    class WatchedRelay(GivenRelay):
        def __init__(self, left: socket.socket, right: socket.socket, **options: Any) -> None:
            kept.append(bytes(clients[-1].handshake.received))
            super().__init__(left, right, **options)

    monkeypatch.setattr(_joining, "GivenRelay", WatchedRelay)

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert kept == [b""]


def test_a_proxy_that_fails_costs_only_that_client(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Exception] = [ZeroDivisionError(), ConnectionResetError(errno.ECONNRESET, "x")]

    async def open_target(client: Client) -> OpenedTarget:
        if failures:
            raise failures.pop()
        return await client.dial(Address(*echo_server.address)), (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            for _ in range(2):
                reader, writer = await asyncio.open_connection(*address)
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
                writer.close()
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    levels = [
        (record.levelname, bool(record.exc_info))
        for record in caplog.records
        if "backlog" not in record.message
    ]
    # The third may end by itself, or be cut with the server.
    assert levels[:2] == [("WARNING", False), ("ERROR", True)]


def test_the_options_are_set_before_the_relay_begins(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F17 is why connections are kept alive."""
    seen: list[list[int]] = []

    def watch(left: socket.socket, right: socket.socket) -> None:
        seen.append(
            [
                bool(sock.getsockopt(*option))
                for sock in (left, right)
                for option in (
                    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                )
            ]
        )

    watch_joining(monkeypatch, watch)

    async def main() -> None:
        target = Address(*echo_server.address)
        for keepalive in (True, False):
            for server in (
                forwarder(target, keepalive=keepalive),
                ProxyServer(asking(target), keepalive=keepalive),
            ):
                async with running(server) as address:
                    assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert seen == 2 * [[True, True, True, True]] + 2 * [[True, False, True, False]]


def test_what_a_listener_would_hand_down_is_taken_back(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark of unread bytes would keep a short message back, a close that waits all the others.

    One client is there before the server has the listener.
    """
    seen: list[tuple[int, ...]] = []

    def watch(left: socket.socket, right: socket.socket) -> None:
        seen.append(
            (
                *struct.unpack("ii", left.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)),
                bool(left.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
                bool(left.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)),
            )
        )

    watch_joining(monkeypatch, watch)

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        server = forwarder(Address(*echo_server.address))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        server.use([listener])
        task = asyncio.ensure_future(server.run())
        writer.write(b"early")
        assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"early"
        writer.close()
        assert await ask(listener.getsockname(), b"hello") == b"hello"
        server.stop()
        await asyncio.wait_for(task, PATIENCE)

    asyncio.run(main())
    assert [(is_on, *tuned) for is_on, _, *tuned in seen] == [(0, True, True)] * 2


def test_a_blocking_target_of_open_target_holds_nobody_up(echo_server: Server) -> None:
    """Its time to wait would be the loop's, and end the connection."""

    async def open_target(client: Client) -> OpenedTarget:
        target = await client.dial(Address(*echo_server.address))
        target.settimeout(0.1)
        client.socket.settimeout(0.1)
        return target, (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target, idle_timeout=0.5)) as address:
            reader, writer = await asyncio.open_connection(*address)
            began = asyncio.get_running_loop().time()
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            assert asyncio.get_running_loop().time() - began >= 0.5
            writer.close()

    asyncio.run(main())


class BadListener(socket.socket):
    """A listening socket whose ``accept`` fails first in the ways it is told."""

    failures: list[OSError]

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise self.failures.pop(0)
        return super().accept()


def bad_listener(*numbers: int) -> BadListener:
    listener = BadListener()
    listener.failures = [OSError(number, os.strerror(number)) for number in numbers]
    listener.setblocking(False)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@pytest.mark.parametrize(
    ("number", "logged"),
    [(errno.EPERM, ["ERROR"]), (errno.ENOBUFS, ["WARNING", "INFO"])],
)
def test_an_accept_that_fails_does_not_end_the_server(
    number: int,
    logged: list[str],
    echo_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_server, "listen_on", lambda *_, **__: [bad_listener(number)])
    monkeypatch.setattr(_pausing, "RETRY_AFTER", 0.05)
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with running(forwarder(Address(*echo_server.address))) as address:
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    about_accepting = [record.levelname for record in caplog.records if "accept" in record.message]
    assert about_accepting == logged


@pytest.mark.parametrize(
    "name",
    [
        *("ECONNABORTED", "EINTR", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT", "ECONNRESET"),
    ],
)
def test_a_client_that_failed_before_accept_holds_nobody_up(
    name: str,
    echo_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next one may be waiting already; and it is nothing that anybody can mend."""
    number = getattr(errno, name, errno.ECONNABORTED)
    monkeypatch.setattr(_server, "listen_on", lambda *_, **__: [bad_listener(number, number)])
    monkeypatch.setattr(_pausing, "RETRY_AFTER", 1000.0)
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with running(forwarder(Address(*echo_server.address))) as address:
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert not [record for record in caplog.records if "accept" in record.message]


@pytest.mark.parametrize("broken", ["not listening", "not for TCP", "closed"])
def test_a_listener_that_accepts_nobody_any_more_ends_run(broken: str) -> None:
    """Nobody hears of an error that is logged once a second for ever."""

    async def main() -> None:
        kind = socket.SOCK_DGRAM if broken == "not for TCP" else socket.SOCK_STREAM
        with socket.socket(type=kind) as listener:
            listener.bind(("127.0.0.1", 0))
            server = forwarder(Address("127.0.0.1", 1))
            server.use([listener])
            if broken == "closed":
                listener.close()
            await asyncio.wait_for(server.run(), PATIENCE)

    with pytest.raises(ListenError, match=r"(:\d+|socket) accepts no clients any more: ") as raised:
        asyncio.run(main())
    assert raised.value.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)


def test_what_no_waiting_mends_is_no_shortage(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(count: int, more: int) -> ReservedDescriptors:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(_server, "ReservedDescriptors", denied)
    server = ProxyServer(asking(Address(*echo_server.address)))
    server.listen(Address("127.0.0.1", 0))
    with pytest.raises(PermissionError):
        asyncio.run(asyncio.wait_for(server.run(), PATIENCE))


def test_a_dial_that_fails_otherwise_is_not_made_again(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        server = ProxyServer(asking(Address(*echo_server.address)), connect_timeout=1000)
        monkeypatch.setattr(server._dialing._dialer, "dial", fail)
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()

    asyncio.run(main())
    assert os.strerror(errno.EIO) in caplog.text
    assert "accepting pauses" not in caplog.text


def test_endless_clients_leave_turns_to_accepted_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live: list[int] = []

    class Crowded(BadListener):
        def accept(self) -> tuple[socket.socket, object]:
            live.append(len(server._clients))
            client, other = socket.socketpair()
            other.close()
            return client, ("127.0.0.1", 1)

    monkeypatch.setattr(_server, "listen_on", lambda *_, **__: [Crowded()])

    async def refuse(client: Client) -> OpenedTarget:
        raise ConnectionRefusedError

    server = ProxyServer(refuse)

    async def main() -> None:
        server.listen(Address("", 0))
        asyncio.get_running_loop().call_later(0.1, server.stop)
        await server.run()

    asyncio.run(main())
    assert max(live) < 10


def test_a_defect_in_accepting_ends_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(BadListener):
        def accept(self) -> tuple[socket.socket, object]:
            raise ZeroDivisionError

    monkeypatch.setattr(_server, "listen_on", lambda *_, **__: [Broken()])
    server = forwarder(Address("127.0.0.1", 1))
    server.listen(Address("", 0))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(asyncio.wait_for(server.run(), PATIENCE))


def watched_reserves(monkeypatch: pytest.MonkeyPatch) -> list[ReservedDescriptors]:
    """What the server reserves from now on for each client."""
    reserves: list[ReservedDescriptors] = []

    class WatchedReserve(ReservedDescriptors):
        def __init__(self, count: int, more: int) -> None:
            super().__init__(count, more)
            reserves.append(self)

    monkeypatch.setattr(_server, "ReservedDescriptors", WatchedReserve)
    return reserves


@pytest.mark.parametrize("fails", ["enter", "Handshake"])
def test_a_client_that_cannot_be_served_costs_others_nothing(
    fails: str,
    echo_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[Exception] = [ZeroDivisionError()]
    reserves = watched_reserves(monkeypatch)

    def failing_once(call: Callable[..., Any]) -> Callable[..., Any]:
        def fail_or_call(*given: Any, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return call(*given, **options)

        return fail_or_call

    owner = _server if fails == "Handshake" else Occupancy
    monkeypatch.setattr(owner, fails, failing_once(getattr(owner, fails)))

    async def main() -> None:
        open_target = asking(Address(*echo_server.address))
        server = ProxyServer(open_target, limits=Limits(per_client=1))
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()
            assert not reserves[0]._held
            assert await ask(address, b"hello") == b"hello"  # the place is free again

    asyncio.run(main())
    [failed] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert failed.exc_info is not None
    assert failed.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_does_not_wait_for_ever_for_what_is_scarce(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread is to be had for the look-up."""
    monkeypatch.setattr(_pausing, "RETRY_AFTER", 0.05)
    failures: list[TargetError] = []
    tried: list[str] = []

    async def open_target(client: Client) -> OpenedTarget:
        try:
            return await client.dial(Address("some.name", 80)), (b"", b"")
        except TargetError as error:
            failures.append(error)
            raise

    async def look_up(address: Address, seconds: float, client: str) -> list[Resolved]:
        tried.append(client)
        if answered and len(tried) > 1:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        raise OSError(errno.ENOMEM, "can't start new thread")

    async def main() -> None:
        server = ProxyServer(open_target, connect_timeout=0.3)
        monkeypatch.setattr(server._dialing._dialer._resolver, "look_up", look_up)
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()

    asyncio.run(main())
    [failure] = failures
    assert set(tried) == {"127.0.0.1"}
    if answered:
        assert (failure.errno, len(tried)) == (errno.EHOSTUNREACH, 2)
    else:
        assert isinstance(failure, StarvedError)
        assert failure.errno == errno.ETIMEDOUT
        assert str(failure) == (
            f"cannot connect to some.name:80, for too long: {os.strerror(errno.ENOMEM)}"
        )
        assert 2 <= len(tried) <= 7


def test_a_worker_that_is_not_used_is_closed(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stay in the loop's poller, and its own would be open, until the program's end."""
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")
    made: list[LocalWorker] = []
    taskless = Taskless

    def short_once(runtime: Any, worker: LocalWorker, *args: Any, **options: Any) -> Taskless:
        made.append(worker)
        if len(made) == 1:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return taskless(runtime, worker, *args, **options)

    monkeypatch.setattr(_server, "Taskless", short_once)
    monkeypatch.setattr(_pausing, "RETRY_AFTER", 0.01)

    async def main() -> None:
        async with running(ProxyServer(asking(Address(*echo_server.address)))) as address:
            assert await ask(address, b"served") == b"served"
            assert [worker.is_closed for worker in made] == [True, False]

    run(main())
    assert [worker.is_closed for worker in made] == [True, True]


def test_a_target_that_cannot_be_joined_costs_only_that_client(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [socket.socket()]
    bad[0].close()

    async def open_target(client: Client) -> OpenedTarget:
        return bad.pop() if bad else await client.dial(Address(*echo_server.address)), (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            with pytest.raises(asyncio.IncompleteReadError):
                await ask(address, b"hello")
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert "is closed" in caplog.text


def test_cancelling_run_cuts_at_once(echo_server: Server) -> None:
    async def main() -> None:
        server = forwarder(Address(*echo_server.address), grace=1000)
        (address,) = server.listen(Address("127.0.0.1", 0))
        task = asyncio.ensure_future(server.run())
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        task.cancel()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_connection_made_in_spite_of_the_end_is_not_served(echo_server: Server) -> None:
    async def open_target(client: Client) -> OpenedTarget:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass  # as asyncio.wait_for does at times, up to Python 3.11
        return socket.create_connection(echo_server.address), (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            reader, writer = await asyncio.open_connection(*address)
            await asyncio.sleep(0.1)
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("last_taken", ["before it dials", "before it is joined"])
def test_what_is_kept_for_a_client_is_enough_for_it(last_taken: str, echo_server: Server) -> None:
    """Others have taken all the rest, for longer than it waits here."""
    target = Address(*echo_server.address)
    asked = 0
    shortage = ExitStack()

    async def open_target(client: Client) -> OpenedTarget:
        nonlocal asked
        asked += 1
        if asked == 2 and last_taken == "before it dials":
            shortage.enter_context(descriptors_left(0))
        dialled = await client.dial(target)
        if asked == 2 and last_taken == "before it is joined":
            shortage.enter_context(descriptors_left(0))
        return dialled, (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            await ask(address, b"the first one starts the engine")
            assert await ask(address, b"hello") == b"hello"
            shortage.close()

    with shortage:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("starved_in", ["dial", "relay"])
def test_an_accepted_client_is_served_once_descriptors_are_back(
    starved_in: str,
    echo_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Even where others have taken what the server held for it."""
    monkeypatch.setattr(_pausing, "RETRY_AFTER", 0.05)
    reserves = watched_reserves(monkeypatch)
    shortage = ExitStack()

    async def open_target(client: Client) -> OpenedTarget:
        target = Address(*echo_server.address)
        dialled = None
        if starved_in == "relay":
            with await client.dial(target) as first:
                dialled = first.dup()  # one that the server hasn't made itself
            dialled.setblocking(False)
        for reserved in reserves:  # what the server holds for the client
            reserved.keep(0)
        shortage.enter_context(descriptors_left(0))
        return dialled or await client.dial(target), (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            asking = asyncio.ensure_future(ask(address, b"hello"))
            while "accepting pauses" not in caplog.text:
                await asyncio.sleep(0.01)
            assert not asking.done()
            shortage.close()
            assert await asking == b"hello"

    with shortage:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert caplog.text.count("accepting pauses") == 1
