"""What cuts a splice short: cancelling, and time."""

from __future__ import annotations

import asyncio
import gc
import selectors
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from faults.cells import cell
from freebsd_splice import BackendUnavailable, Outcome, Reason, Relay, RelayOutcome, Splice, aio
from freebsd_splice._core import time_limits
from freebsd_splice.aio import _flushing, _sides, _time_limits
from freebsd_splice.aio._ending import end_of

from .nets import LOOPS, MODELS, PATIENCE, Net, buffered, play
from .test_seams import PATTERN

every_net = pytest.mark.parametrize("name", LOOPS + MODELS)

#: Seconds, by the loop's clock.
SHORT = 0.2


@every_net
def test_cancelling_tells_how_far_it_came(name: str) -> None:
    """A drain with small buffers and a reader that stands still: some is moved, most is not."""

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream(small=True)
        await client.write(PATTERN[:150_000])
        await buffered(net, source, 1_000)
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        assert await server.read(10) == PATTERN[:10]
        splicing.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await splicing
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, Outcome)
        assert outcome.reason is Reason.CANCELLED
        assert await server.read(outcome.bytes - 10) == PATTERN[10 : outcome.bytes]
        # The reader goes on where that, and what is in nobody's buffer any more, has ended.
        rest = await source[0].readexactly(150_000 - outcome.bytes - len(outcome.unsent))
        assert outcome.unsent + rest == PATTERN[outcome.bytes : 150_000]
        drain[1].write(b"behind")
        assert await server.read(6) == b"behind"

    play(name, case)


@every_net
def test_cancelling_twice_loses_no_outcome(name: str) -> None:
    async def case(net: Net) -> None:
        left, client = await net.stream()
        right, server = await net.stream()
        relaying = asyncio.ensure_future(aio.relay(left, right))
        await client.write(b"hello")
        assert await server.read(5) == b"hello"
        relaying.cancel()
        asyncio.get_running_loop().call_soon(relaying.cancel)
        with pytest.raises(asyncio.CancelledError) as raised:
            await relaying
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, RelayOutcome)
        assert outcome.left_to_right.bytes == 5
        # Both are the caller's again.
        await client.write(b"again")
        assert await left[0].readexactly(5) == b"again"

    play(name, case)


async def _timed_out_by_wait_for(call: Awaitable[object]) -> None:
    await asyncio.wait_for(call, SHORT)


async def _timed_out_by_a_block(call: Awaitable[object]) -> None:
    async with asyncio.timeout(SHORT):  # type: ignore[attr-defined]
        await call


@every_net
@pytest.mark.parametrize(
    "timed_out",
    [
        _timed_out_by_wait_for,
        pytest.param(
            _timed_out_by_a_block,
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11), reason="asyncio.timeout came with Python 3.11"
            ),
        ),
    ],
)
def test_asyncios_own_time_limits(
    name: str, timed_out: Callable[[Awaitable[object]], Awaitable[None]]
) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.socket()
        await client.write(b"hello")
        with pytest.raises(asyncio.TimeoutError) as raised:
            await timed_out(aio.splice(source, drain))
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, Outcome)
        assert (outcome.bytes, outcome.reason) == (5, Reason.CANCELLED)
        assert await server.read(5) == b"hello"

    play(name, case)


def test_what_is_raised_while_one_is_handled_carries_it_too() -> None:
    async def case(net: Net) -> None:
        source, _ = await net.socket()
        drain, _ = await net.socket()

        async def too_slow() -> None:
            try:
                await asyncio.wait_for(aio.splice(source, drain), SHORT)
            except asyncio.TimeoutError:
                raise ValueError("too slow")  # noqa: B904 - as programs do

        with pytest.raises(ValueError) as raised:
            await too_slow()
        assert isinstance(aio.outcome_of(raised.value), Outcome)

    play("asyncio", case)


def test_an_exception_can_be_its_own_cause() -> None:
    error = ValueError("something else")
    error.__cause__ = error
    assert aio.outcome_of(error) is None


@pytest.mark.parametrize("name", LOOPS)
def test_two_flushes_at_once_keep_the_writers_limits(name: str) -> None:
    async def case(net: Net) -> None:
        one, one_client = await net.socket()
        other, _ = await net.socket()
        drain, server = await net.stream(small=True)
        limits = drain[1].transport.get_write_buffer_limits()
        drain[1].write(PATTERN)
        one_client.fin()
        first = asyncio.ensure_future(aio.splice(one, drain))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(aio.splice(other, drain, timeout=60))
        assert await server.read(len(PATTERN)) == PATTERN
        await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert drain[1].transport.get_write_buffer_limits() == limits
        second.cancel()
        await asyncio.wait([first, second])

    play(name, case)


def test_what_has_cut_nothing_short_has_no_outcome() -> None:
    error = ValueError("something else")
    error.__context__ = KeyError()
    assert aio.outcome_of(error) is None


@every_net
@pytest.mark.parametrize("limit", ["timeout", "idle_timeout"])
@cell(
    "the peer stands still",
    "aio",
    "moving",
    sees="`Reason.IDLE` or `Reason.TIMEOUT` after the caller's time limit; both sides can be used",
    counted="all that was moved",
)
def test_the_splices_own_time_limits(name: str, limit: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        await client.write(b"hello")
        outcome = await aio.splice(source, drain, **{limit: SHORT})  # type: ignore[arg-type]
        assert outcome.reason is (Reason.TIMEOUT if limit == "timeout" else Reason.IDLE)
        assert await server.read(5) == b"hello"
        await client.write(b"again")
        assert await source[0].readexactly(5) == b"again"

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("limit", ["timeout", "idle_timeout"])
@cell(
    "the peer stops reading for ever",
    "aio",
    "initial",
    sees="`Reason.IDLE` or `Reason.TIMEOUT` after the caller's time limit",
    counted="nothing was taken: `initial` is `Outcome.unsent`",
)
def test_a_writer_that_is_never_rid_of_what_it_holds(name: str, limit: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream(small=True)
        drain[1].write(bytes(10_000_000))
        await client.write(b"hello")
        options = {limit: SHORT}
        outcome = await aio.splice(source, drain, initial=b"12", **options)  # type: ignore[arg-type]
        assert outcome.reason is (Reason.TIMEOUT if limit == "timeout" else Reason.IDLE)
        assert (outcome.bytes, outcome.unsent) == (0, b"12")
        pair = await aio.relay(source, drain, initial=(b"12", b"3"), **options)  # type: ignore[arg-type]
        assert pair.reason is outcome.reason
        assert (pair.left_to_right.unsent, pair.right_to_left.unsent) == (b"12", b"3")
        assert await source[0].readexactly(5) == b"hello"

    play(name, case)


class SteppedClock:
    """``monotonic`` of the time limits, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._asked = 0
        monkeypatch.setattr(time_limits, "_LOOK_SECONDS", 0.001)
        monkeypatch.setattr(time_limits, "_LOOK_SHARE", 0.0)
        monkeypatch.setattr(_time_limits, "monotonic", self._monotonic)

    async def step(self, net: Net, seconds: float) -> None:
        """Let time go by, and be looked at."""
        self.now += seconds
        asked = self._asked
        await net.until(lambda: self._asked > asked + 3)

    def _monotonic(self) -> float:
        self._asked += 1
        return self.now


def _is_less(count: Callable[[], int], before: int) -> bool:
    return count() < before


@pytest.mark.parametrize("name", LOOPS)
def test_a_writer_that_gets_rid_of_it_slowly_is_not_idle(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream(small=True)
        drain[1].write(bytes(10_000_000))
        client.fin()
        clock = SteppedClock(monkeypatch)
        splicing = asyncio.ensure_future(aio.splice(source, drain, idle_timeout=10.0))
        pending = drain[1].transport.get_write_buffer_size
        for _ in range(5):
            before = pending()
            await server.read(1_000_000)
            await net.until(partial(_is_less, pending, before))
            await clock.step(net, 4.0)
        assert not splicing.done()
        await server.read(5_000_000)
        assert (await splicing).reason is Reason.EOF

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
def test_flushing_is_waited_for_and_not_asked_about(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is so little that writing goes on: ``drain`` alone would not wait for it."""
    asked: list[None] = []
    flush = _flushing._flush

    async def counting(sides: Any) -> None:
        asked.append(None)
        await flush(sides)

    monkeypatch.setattr(_flushing, "_flush", counting)

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream(small=True)
        size = 0
        while drain[1].transport.get_write_buffer_size() < 10_000:
            drain[1].write(bytes(1_000))
            size += 1_000
            await asyncio.sleep(0)
        client.fin()
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        for _ in range(50):  # rounds of the loop
            await asyncio.sleep(0)
        assert len(asked) == 1
        assert len(await server.read(size)) == size
        await splicing

    play(name, case)


def test_what_the_flushing_takes_is_part_of_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    class WatchedSplice(Splice):
        def __init__(self, source: Any, drain: Any, *, timeout: float, **options: Any) -> None:
            given.append(timeout)
            super().__init__(source, drain, timeout=timeout, **options)

    monkeypatch.setattr(aio, "Splice", WatchedSplice)

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        client.fin()
        await aio.splice(source, drain, timeout=60.0)

    play("asyncio", case)
    assert 50.0 < given[0] < 60.0


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("ended", [Reason.TIMEOUT, Reason.CANCELLED])
def test_a_relay_that_closes_does_so_where_it_never_began(name: str, ended: Reason) -> None:
    async def case(net: Net) -> None:
        left, client = await net.socket()
        right, server = await net.stream(small=True)
        right[1].write(bytes(10_000_000))
        if ended is Reason.TIMEOUT:
            outcome = await aio.relay(left, right, timeout=SHORT, close=True)
        else:
            with pytest.raises(asyncio.TimeoutError) as raised:
                await asyncio.wait_for(aio.relay(left, right, close=True), SHORT)
            found = aio.outcome_of(raised.value)
            assert isinstance(found, RelayOutcome)
            outcome = found
        assert outcome.reason is ended
        assert left.fileno() == -1
        assert right[1].is_closing()
        with pytest.raises(ConnectionResetError):
            await client.read(1)
        with pytest.raises(ConnectionResetError):
            await server.read(20_000_000)

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
def test_what_the_socket_took_is_delivered_if_it_never_began(name: str) -> None:
    """Before the reset, which throws away what the peer has not acknowledged (F27)."""

    async def case(net: Net) -> None:
        left, _client = await net.socket()
        right, server = await net.stream(small=True)
        right[1].write(bytes(10_000_000))
        seen = [0] * 100
        held = right[1].transport.get_write_buffer_size

        def stands_still() -> bool:
            seen[:] = [*seen[1:], held()]
            return seen[0] == seen[-1] > 0

        await net.until(stands_still)
        await aio.relay(left, right, timeout=SHORT, close=True)
        got = await server.read(10_000_000 - seen[-1])
        assert len(got) == 10_000_000 - seen[-1]
        with pytest.raises(ConnectionResetError):
            await server.read(1)

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
def test_cancelled_while_the_writer_is_flushed(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream(small=True)
        limits = drain[1].transport.get_write_buffer_limits()
        drain[1].write(bytes(1_000_000))
        await client.write(b"hello")
        with pytest.raises(asyncio.TimeoutError) as raised:
            await asyncio.wait_for(aio.splice(source, drain, initial=b"12"), SHORT)
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, Outcome)
        assert (outcome.bytes, outcome.unsent) == (0, b"12")
        assert outcome.reason is Reason.CANCELLED
        assert drain[1].transport.get_write_buffer_limits() == limits
        assert await source[0].readexactly(5) == b"hello"
        drain[1].write(b"behind")
        assert await server.read(1_000_006) == bytes(1_000_000) + b"behind"

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
@cell(
    "the peer resets",
    "aio",
    "initial",
    sees="of a drain whose writer still holds bytes: ConnectionError is raised",
)
def test_a_writer_whose_connection_is_lost(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def case(net: Net) -> None:
        source, _ = await net.stream()
        drain, server = await net.stream(small=True)
        drain[1].write(bytes(10_000_000))
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        await asyncio.sleep(0)
        server.reset()
        with pytest.raises(ConnectionError):
            await splicing

    play(name, case)
    gc.collect()  # asyncio complains of an error that nobody has asked for when it is forgotten
    assert not caplog.records


@pytest.mark.parametrize("name", MODELS)
def test_cancelling_waits_for_no_kernel_call_on_the_loop(name: str) -> None:
    """F24, F34: ending sleeps until the kernel's worker has let go; the loop goes on meanwhile."""

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.socket()
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        await client.write(b"hello")
        assert await server.read(5) == b"hello"
        ends = net.world.counts["end"]  # type: ignore[attr-defined]
        splicing.cancel()
        await asyncio.sleep(0)  # its step, in which it asks for the end
        assert net.world.counts["end"] == ends  # type: ignore[attr-defined]
        with pytest.raises(asyncio.CancelledError):
            await splicing
        assert net.world.counts["end"] > ends  # type: ignore[attr-defined]

    play(name, case)


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_serves(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        client.fin()
        outcome = await aio.splice(source, drain, fallback=False)
        assert (outcome.backend, outcome.mover) == ("kernel", "SO_SPLICE")

    play(name, case)


def test_the_kernel_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        await client.write(b"hello")
        await buffered(net, source, 5)
        with pytest.raises(BackendUnavailable):
            await aio.splice(source, drain, fallback=False)
        with pytest.raises(BackendUnavailable):
            await aio.relay(source, drain, fallback=False)
        assert await source[0].readexactly(5) == b"hello"

    play("asyncio", case)


@pytest.mark.parametrize("name", LOOPS)
@cell(
    "the peer resets",
    "aio",
    "moving",
    sees="an outcome with `Reason.SOURCE_ERROR`; no exception",
    counted="all that was moved",
)
def test_a_peers_reset_is_an_outcome(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.socket()
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        await client.write(b"hello")
        assert await server.read(5) == b"hello"
        client.reset()
        outcome = await splicing
        assert outcome.reason is Reason.SOURCE_ERROR
        assert outcome.error is not None

    play(name, case)


@pytest.mark.skipif(sys.platform == "win32", reason="a socket can't be asked there")
def test_a_socket_may_be_closed_while_it_is_asked() -> None:
    """By another thread: it is asked for its descriptor once."""
    with socket.socket() as listening, socket.socket() as ours:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ours.connect(listening.getsockname())
        numbers = iter([ours.fileno()])
        closing = SimpleNamespace(fileno=lambda: next(numbers, -1))
        assert not _sides.hangs_up(closing)


class _SignalledSelector(selectors.DefaultSelector):
    """A signal comes while the loop sleeps: its handler runs on the loop's thread, within this."""

    handler: Callable[[], object] | None = None
    was_woken = False

    def select(self, timeout: float | None = None) -> Any:
        if self.handler is not None and timeout != 0:
            handler, self.handler = self.handler, None
            handler()
            ready = super().select(PATIENCE)
            self.was_woken = bool(ready)
            return ready
        return super().select(timeout)


@cell(
    "a signal",
    "aio",
    "any",
    sees="a handler that cancels a relay wakes the loop, and the outcome is there",
)
def test_an_end_by_a_signals_handler_wakes_the_loop() -> None:
    selector = _SignalledSelector()
    loop = asyncio.SelectorEventLoop(selector)
    pairs = [socket.socketpair() for _ in range(2)]
    made = Relay(pairs[0][0], pairs[1][0])

    async def ended() -> None:
        waiting = asyncio.ensure_future(end_of(made))
        await asyncio.sleep(0)
        selector.handler = made.cancel
        assert (await waiting).reason is Reason.CANCELLED

    loop.run_until_complete(ended())
    loop.close()
    for sock in (*pairs[0], *pairs[1]):
        sock.close()
    assert selector.was_woken
