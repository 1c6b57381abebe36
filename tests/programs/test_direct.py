"""A forwarder's clients whose target is known at once: connected and joined without a task."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice.proxies import (
    Address,
    Client,
    Limits,
    ProxyServer,
    UnixAddress,
    _direct,
    _pausing,
    _server,
    _taskless,
    forwarder,
)
from freebsd_splice.proxies._connecting import peer_of
from freebsd_splice.proxies._event_loop import ProxyLoop, run
from freebsd_splice.proxies._limits import Occupancy
from freebsd_splice.proxies._loop_relay import LoopRelay, LoopRelays
from programs.processes import PATIENCE, Server, reset
from programs.test_server import ask, running, watch_joining

# Where the kernel is demanded, every client has a task and an ordinary relay.
pytestmark = pytest.mark.usefixtures("userspace")


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """The clients that got a task."""
    made: list[Client] = []
    serve = ProxyServer._serve

    async def noted(self: ProxyServer, client: Client, *given: Any) -> None:
        made.append(client)
        await serve(self, client, *given)

    monkeypatch.setattr(ProxyServer, "_serve", noted)
    return made


def not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections take their time, as they do to other machines."""
    asked: set[int] = set()

    def later(sock: socket.socket) -> Any:
        first = id(sock) not in asked
        asked.add(id(sock))
        return None if first else peer_of(sock)

    monkeypatch.setattr(_direct, "peer_of", later)


@pytest.mark.parametrize("loop", [asyncio.run, run])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_has_no_task(
    loop: Callable[..., None],
    at_once: bool,
    echo_server: Server,
    tasks: list[Client],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    if not at_once:
        not_at_once(monkeypatch)

    async def main() -> None:
        server = forwarder(Address(*echo_server.address))
        async with running(server) as address:
            for _ in range(3):
                assert await ask(address, b"hello") == b"hello"
            while server._count_live():
                await asyncio.sleep(0.01)

    loop(main())
    assert tasks == []
    ends = [record.getMessage() for record in caplog.records if " -> " in record.getMessage()]
    assert len(ends) == 3
    target = "{}:{}".format(*echo_server.address)
    for end in ends:
        assert f" -> {target}: 5 bytes up, 5 bytes down, eof, " in end
        assert end.endswith("userspace/copy")
    assert sum(record.getMessage().endswith(": accepted") for record in caplog.records) == 3


def test_a_target_that_refuses_is_left_to_a_task(
    refusing: socket.socket,
    echo_server: Server,
    tasks: list[Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dead = Address(*refusing.getsockname())

    async def main() -> None:
        server = forwarder([dead, Address(*echo_server.address)])
        async with running(server) as address:
            for _ in range(4):
                assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    # The second client's turn is the target that lives, the third's is the dead one's again.
    assert len(tasks) == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    refused = "Connection refused"
    assert f"cannot connect to {dead} ({dead}: {refused}): skipped for now" in warnings


def test_one_that_does_not_answer_has_its_time(
    silent: socket.socket, tasks: list[Client], caplog: pytest.LogCaptureFixture
) -> None:
    target = Address(*silent.getsockname())

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with running(forwarder(target, connect_timeout=0.4)) as address:
            began = loop.time()
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()
            return loop.time() - began

    assert asyncio.run(main()) >= 0.4
    assert len(tasks) == 1
    reason = "no answer in time, see --connect-timeout"
    assert f": cannot connect to {target} ({target}: {reason})\n" in caplog.text


def test_a_client_that_leaves_meanwhile_is_let_go(
    silent: socket.socket,
    tasks: list[Client],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_direct, "LOOK_EVERY", 0.01)
    target = Address(*silent.getsockname())

    async def main() -> None:
        server = forwarder(target, connect_timeout=1000)
        async with running(server) as address:
            loop = asyncio.get_running_loop()
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                while not server._count_live():
                    await asyncio.sleep(0.01)
                reset(sock)
            while server._count_live():
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert f": client closed the connection while connecting to {target}\n" in caplog.text
    assert tasks == []


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_failure_that_cannot_be_reported_is_counted(
    when: str,
    echo_server: Server,
    silent: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As often as the client was: with a logger's filter that raises, for instance."""
    monkeypatch.setattr(_direct, "LOOK_EVERY", 0.01)
    echo, unanswered = Address(*echo_server.address), Address(*silent.getsockname())
    failures: list[Exception] = [OSError(errno.ENOSPC, "no room")]
    begin = LoopRelays.begin

    def fail_once(self: LoopRelays, *given: Any) -> LoopRelay:
        if when == "at once" and failures:
            raise failures.pop()
        return begin(self, *given)

    def cannot(*given: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(LoopRelays, "begin", fail_once)
    monkeypatch.setattr(_taskless, "report_failure", cannot)

    async def main() -> None:
        targets = echo if when == "at once" else [unanswered, echo]
        server = forwarder(targets, connect_timeout=1000, limits=Limits(per_client=1))
        async with running(server) as address:
            loop = asyncio.get_running_loop()
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                if when == "at once":
                    assert await asyncio.wait_for(loop.sock_recv(sock, 1), PATIENCE) == b""
                else:
                    while not server._count_live():
                        await asyncio.sleep(0.01)
                    reset(sock)
            while server._count_live():
                await asyncio.sleep(0.01)
            assert await ask(address, b"hello") == b"hello"  # the place is free again
            while server._count_live():
                await asyncio.sleep(0.01)
            assert server._occupancy._live == {}

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    [failed] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert failed.exc_info is not None
    assert failed.exc_info[0] is ZeroDivisionError


def test_a_stop_ends_those_that_wait_for_their_target(
    silent: socket.socket, tasks: list[Client], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        server = forwarder(Address(*silent.getsockname()), connect_timeout=1000)
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            while not server._count_live():
                await asyncio.sleep(0.01)
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()
        assert server._worker is not None
        assert server._worker._told == {}

    asyncio.run(main())
    assert tasks == []
    assert "cannot connect" not in caplog.text


def test_clients_that_wait_for_their_target_count(
    silent: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        limits = Limits(connections=2, per_client=1)
        server = forwarder(Address(*silent.getsockname()), connect_timeout=1000, limits=limits)
        async with running(server) as address:
            _, first = await asyncio.open_connection(*address)
            while not server._count_live():
                await asyncio.sleep(0.01)
            reader, second = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            first.close()
            second.close()

    asyncio.run(main())
    assert "refused: the client already has 1 connections" in caplog.text


def test_a_socket_that_is_its_own_peer_is_no_target(
    tasks: list[Client], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_direct, "is_its_own_peer", lambda sock, port: True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = Address(*listener.getsockname())

        async def main() -> None:
            async with running(forwarder(target)) as address:
                reader, writer = await asyncio.open_connection(*address)
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
                writer.close()

        asyncio.run(main())
    assert f"cannot connect to {target} ({target}: Connection refused)" in caplog.text


@pytest.mark.parametrize("fails", ["enter", "connect"])
def test_one_that_cannot_be_served_costs_others_nothing(
    fails: str,
    echo_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[Exception] = [ZeroDivisionError()]
    owner: Any = Occupancy if fails == "enter" else _direct.Dials
    name = "enter" if fails == "enter" else "begin"
    call = getattr(owner, name)

    def fail_or_call(*given: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return call(*given, **options)

    monkeypatch.setattr(owner, name, fail_or_call)

    async def main() -> None:
        server = forwarder(Address(*echo_server.address), limits=Limits(per_client=1))
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()
            assert server._count_live() == 0
            assert await ask(address, b"hello") == b"hello"  # the place is free again

    asyncio.run(main())
    [failed] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert failed.exc_info is not None
    assert failed.exc_info[0] is ZeroDivisionError


def test_a_short_of_sockets_is_a_shortage(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError(errno.EMFILE, "too many")]
    reserve = _direct.reserve

    def fail_or_reserve(family: int) -> Any:
        if failures:
            raise failures.pop()
        return reserve(family)

    monkeypatch.setattr(_taskless, "reserve", fail_or_reserve)
    monkeypatch.setattr(_pausing, "RETRY_AFTER", 0.05)
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with running(forwarder(Address(*echo_server.address))) as address:
            assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert "accepting pauses" in caplog.text
    assert "accepting has resumed" in caplog.text


def test_a_family_that_is_missing_ends_no_server(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = -1, *given: Any, **options: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *given, **options)

    monkeypatch.setattr(socket, "socket", WithoutIPv6)

    async def main() -> None:
        server = forwarder([Address("::1", 80), Address(*echo_server.address)])
        async with running(server) as address:
            for _ in range(3):
                assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert "accepting pauses" not in caplog.text


@pytest.mark.parametrize("loop", [asyncio.run, run])
@pytest.mark.parametrize("amid", ["tune", "report_end"])
def test_a_signals_exception_keeps_no_server_alive(
    loop: Callable[..., None],
    amid: str,
    echo_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its loop is run once more, to end what there is."""
    not_at_once(monkeypatch)
    call = getattr(_taskless, amid)
    raised = [KeyboardInterrupt()]

    def interrupted(*given: Any) -> None:
        if raised:
            raise raised.pop()
        call(*given)

    monkeypatch.setattr(_taskless, amid, interrupted)
    caplog.set_level(logging.INFO)
    servers: list[ProxyServer] = []

    async def main() -> None:
        servers.append(forwarder(Address(*echo_server.address)))
        (address,) = servers[0].listen(Address("127.0.0.1", 0))
        serving = asyncio.ensure_future(servers[0].run())
        await ask(address, b"hello")
        await serving

    with pytest.raises(KeyboardInterrupt):
        loop(main())
    assert servers[0]._count_live() == 0


def test_a_shortage_is_no_targets_fault(
    echo_server: Server,
    tasks: list[Client],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = [OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))]

    def fail_once(*given: Any, **options: Any) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(_server, "set_buffers", fail_once)

    async def main() -> None:
        async with running(forwarder(Address(*echo_server.address))) as address:
            for _ in range(2):
                assert await ask(address, b"hello") == b"hello"

    asyncio.run(main())
    assert len(tasks) == 1  # the first client's
    assert "cannot connect" not in caplog.text


def test_a_target_that_resets_at_once_is_none(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_direct, "peer_of", lambda sock: None)
    target = Address(*echo_server.address)

    async def main() -> None:
        async with running(forwarder(target)) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()

    asyncio.run(main())
    assert f"cannot connect to {target} ({target}: Connection reset by peer)" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="Python has no Unix sockets there")
@pytest.mark.parametrize("unix", ["client", "target"])
def test_what_is_no_tcp_is_left_to_a_relay(
    unix: str,
    echo_server: Server,
    tasks: list[Client],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The kernel doesn't splice it, and the log says so."""
    begun: list[object] = []
    watch_joining(monkeypatch, lambda *sockets: begun.append(sockets))
    address = UnixAddress(str(tmp_path / "proxy.sock"))

    async def main() -> None:
        async with running(forwarder(Address(*echo_server.address))) as tcp:
            # One proxy listens at the path; it is the target of the other.
            at_path = forwarder(Address(*echo_server.address))
            at_path.listen(address)
            async with running(at_path), running(forwarder(address)) as to_path:
                if unix == "target":
                    assert await ask(to_path, b"hello") == b"hello"
                else:
                    reader, writer = await asyncio.open_unix_connection(address.host)
                    writer.write(b"hello")
                    writer.write_eof()
                    assert await reader.read() == b"hello"
                    writer.close()
            assert begun == []
            assert await ask(tcp, b"hello") == b"hello"

    asyncio.run(main())
    assert len(begun) == 1
    assert len(tasks) == (2 if unix == "target" else 1)


def test_two_servers_may_have_one_loop(echo_server: Server) -> None:
    async def main() -> None:
        target = Address(*echo_server.address)
        async with running(forwarder(target)) as one, running(forwarder(target)) as other:
            for address in (one, other, one):
                assert await ask(address, b"hello") == b"hello"
        async with running(forwarder(target)) as address:
            assert await ask(address, b"hello") == b"hello"

    run(main())


def test_a_loop_of_ones_own_is_as_asyncios() -> None:
    """Without a worker, too; and its policy doesn't stay (Python 3.10)."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProxyLoop)
        done = loop.create_future()
        loop.call_later(0.01, loop.call_soon_threadsafe, done.set_result, "done")
        return str(await done)

    assert run(main()) == "done"
    another = asyncio.new_event_loop()
    assert not isinstance(another, ProxyLoop)
    another.close()
