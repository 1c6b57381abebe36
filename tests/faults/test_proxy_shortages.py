"""A shortage at each call of a proxy's server: it costs one client at most, and the log says why.

``ProxyServer`` is what all proxies share: it listens, accepts, reads the handshake, looks names up,
dials, joins and closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import pytest

from conformance.harness import DEADLINE
from faults.cells import cell
from freebsd_splice.proxies import (
    Address,
    Client,
    Limits,
    ListenError,
    ProxyServer,
    _event_loop,
    _pausing,
    forwarder,
)
from support.platforms import UserspacePlatform

from .injection import (
    NO_BUFFER,
    NO_DESCRIPTOR,
    NO_FILE,
    NO_MEMORY,
    NO_THREAD,
    Call,
    Injection,
    Shortage,
)
from .stage import DATA, Stage, stage

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="which call can lack what is by Linux's manual pages"
)


def of_all_proxies(shortage: Shortage, sees: str) -> Any:
    marks = cell(shortage.name, "processes", "any", sees=sees, others=True)
    return pytest.param(shortage, id=shortage.name, marks=marks)


WAITS = "accepting pauses while it lasts, and the log says so once, with what to raise"
COSTS = "one client is closed at most; the log names it and the system's words"
AT_START = "a server that can't begin says so at once; a look-up is tried again"

#: The second is more than a message: worker threads move it.
SAID = b"hello", DATA[:70_000], b"hello again"


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pausing, "RETRY_AFTER", 0.02)


def a_server(target: int, *, direct: bool) -> ProxyServer:
    """Return one that dials an address at once, or one that reads first and dials a name."""
    if direct:
        return forwarder(Address("127.0.0.1", target), connect_timeout=DEADLINE, idle_timeout=600)

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        await client.handshake.read(lambda piece: piece)
        dialled = await client.dial(Address("localhost", target))
        return dialled, (bytes(client.handshake.received), b"")

    limits = Limits(handshake_timeout=DEADLINE)
    return ProxyServer(open_target, connect_timeout=DEADLINE, idle_timeout=600, limits=limits)


@asynccontextmanager
async def an_echo() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def ask(address: tuple[str, int], data: bytes) -> bytes:
    """Return what comes back, as far as it comes."""
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    with contextlib.suppress(OSError):
        writer.write(data)
        while len(answer) < len(data) and (piece := await reader.read(1 << 16)):
            answer += piece
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


async def serve_three_clients(on: Stage, *, direct: bool) -> None:
    async with an_echo() as target:
        server = a_server(target, direct=direct)
        try:
            (address,) = server.listen(Address("127.0.0.1", 0))
        except ListenError as error:
            on.injection.check_text(error, "127.0.0.1:0")
            return
        running = asyncio.ensure_future(server.run())
        answers = [await answered(ask(address, data), running) for data in SAID]
        if running.done():
            assert set(answers) == {None}  # it has said at once that it can't serve
            failure = running.exception()
            assert failure is not None
            on.check(failure)
            return
        server.stop()
        server.stop()
        await asyncio.wait_for(running, DEADLINE)
    missing = 0
    for said, answer in zip(SAID, answers, strict=True):
        assert answer is not None
        assert said[: len(answer)] == answer
        missing += answer != said
    assert missing <= bool(on.injection.failed)
    shortage = on.injection.shortage.make()
    reason = str(getattr(shortage, "strerror", shortage))
    assert not missing or any(reason in each.getMessage() for each in on.records)


async def end_the_rest() -> None:
    """Do what ``asyncio.run`` does at its end."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def answered(
    asking: Coroutine[object, object, bytes], running: asyncio.Future[None]
) -> bytes | None:
    """Return the answer; None where the server has ended before."""
    task = asyncio.ensure_future(asking)
    both: list[asyncio.Future[Any]] = [running, task]
    await asyncio.wait(both, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        assert task.done(), "the client has got neither an answer nor an end"
        return task.result()
    task.cancel()
    await asyncio.wait([task])
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    "shortage",
    [
        of_all_proxies(NO_DESCRIPTOR, WAITS),
        pytest.param(NO_FILE, id=NO_FILE.name),
        of_all_proxies(NO_MEMORY, COSTS),
        of_all_proxies(NO_BUFFER, COSTS),
        of_all_proxies(NO_THREAD, AT_START),
    ],
)
@pytest.mark.parametrize("direct", [False, True], ids=["asked", "direct"])
def test_a_shortage_at_each_call_costs_one_client_at_most(
    direct: bool, shortage: Shortage, userspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    injection = Injection(shortage, depth=3)
    injection.install(monkeypatch)

    def once(injecting: AbstractContextManager[object]) -> None:
        # The programs' loop, or any. It is there before, and its own descriptors with it.
        loop = _event_loop.ProxyLoop() if direct else asyncio.new_event_loop()
        with contextlib.closing(loop), stage(injection, injecting, UserspacePlatform()) as on:
            loop.run_until_complete(serve_three_clients(on, direct=direct))
            loop.run_until_complete(end_the_rest())

    assert injection.play_each(once)


@pytest.mark.parametrize(
    ("shortage", "also"),
    [
        (NO_DESCRIPTOR, "raise ulimit -n (systemd: LimitNOFILE)"),
        (NO_FILE, "raise kern.maxfiles (Linux: fs.file-max)"),
        (NO_MEMORY, ""),
        (NO_BUFFER, ""),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_clients_wait_for_as_long_as_a_shortage_lasts(
    shortage: Shortage, also: str, userspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepting pauses, one line says so, and all of them are served afterwards."""
    injection = Injection(shortage)
    injection.install(monkeypatch)
    lasts = True

    def fails(call: Call) -> bool:
        # What a client needs that waits: its own descriptor, and those that are reserved for it.
        return lasts and call.name in ("socket.accept", "os.open")

    async def main(on: Stage) -> None:
        nonlocal lasts
        async with an_echo() as target:
            server = a_server(target, direct=False)
            (address,) = server.listen(Address("127.0.0.1", 0))
            running = asyncio.ensure_future(server.run())
            asking = [asyncio.ensure_future(ask(address, b"hello")) for _ in range(5)]
            while injection.failed < 5:
                await asyncio.sleep(0.001)
            assert not any(each.done() for each in asking)
            lasts = False
            answers = await asyncio.wait_for(asyncio.gather(*asking), DEADLINE)
            assert answers == [b"hello"] * 5
            server.stop()
            server.stop()
            await asyncio.wait_for(running, DEADLINE)

    injecting = injection.failing_while(fails)
    with stage(injection, injecting, UserspacePlatform()) as on:
        asyncio.run(main(on))
        said = [each.getMessage() for each in on.records if "accepting" in each.getMessage()]
    strerror = getattr(shortage.make(), "strerror", "")
    advice = f"; {also}" if also else ""
    assert said == [
        f"accepting pauses at 0 connections: {strerror}{advice}",
        "accepting has resumed",
    ]


def test_a_server_that_lacks_descriptors_begins_a_little_later(
    userspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a reload, where live connections may have them all: it must not end the program."""
    injection = Injection(NO_DESCRIPTOR)
    injection.install(monkeypatch)

    async def main() -> None:
        async with an_echo() as target:
            server = a_server(target, direct=False)
            (address,) = server.listen(Address("127.0.0.1", 0))
            running = asyncio.ensure_future(server.run())
            assert await asyncio.wait_for(ask(address, b"hello"), DEADLINE) == b"hello"
            server.stop()
            server.stop()
            await asyncio.wait_for(running, DEADLINE)

    def fails(call: Call) -> bool:
        return injection.failed < 3 and "_open_worker" in str(call)

    with stage(injection, injection.failing_while(fails), UserspacePlatform()) as on:
        asyncio.run(main())
        said = [each.getMessage() for each in on.records if "accepting" in each.getMessage()]
    assert injection.failed == 3
    assert said[0].startswith("accepting pauses at 0 connections: Too many open files")
    assert said[1:] == ["accepting has resumed"]
