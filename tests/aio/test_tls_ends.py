"""How copied pairs end: what was counted or had arrived still reaches whoever takes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trustme", reason="the certificates are trustme's")

from faults.cells import cell
from freebsd_splice import Outcome, Reason, RelayOutcome, aio
from freebsd_splice._platform.send_queue import unacknowledged
from freebsd_splice.aio import _copying, _time_limits
from freebsd_splice.aio._closing import ClosingSide, wait_briefly
from freebsd_splice.aio._sides import StreamSide

from .nets import PATIENCE, SMALL, Peer, RealNet, Stream, play
from .test_copying import Contexts, contexts, every_loop, play_tls
from .test_ends import SteppedClock
from .test_seams import PATTERN

__all__ = ["contexts"]  # a fixture

#: Seconds, by the loop's clock.
SHORT = 0.2


# -- the loop's other tasks


@every_loop
def test_other_tasks_have_their_turn(
    name: str, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither end ever makes it wait: all is buffered, and the writer takes everything."""
    since_the_last_turn = [0]
    send = StreamSide.send

    async def counting(side: StreamSide, data: memoryview) -> int:
        sent = await send(side, data)
        since_the_last_turn.append(since_the_last_turn.pop() + sent)
        return sent

    monkeypatch.setattr(StreamSide, "send", counting)
    most = 0

    async def take_turns() -> None:
        nonlocal most
        while True:
            most = max(most, since_the_last_turn[0])
            since_the_last_turn[0] = 0
            await asyncio.sleep(0)

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        source, _ = await net.stream()
        near[1].transport.set_write_buffer_limits(high=100_000_000)
        source[0].feed_data(bytes(4_000_000))
        turns = asyncio.ensure_future(take_turns())
        copying = asyncio.ensure_future(aio.splice(source, near, initial=bytes(4_000_000)))
        assert len(await far[0].readexactly(8_000_000)) == 8_000_000
        copying.cancel()
        turns.cancel()
        await asyncio.wait([copying, turns])

    play_tls(name, contexts, case)
    assert 0 < most <= 2 * 65_536


# -- transports that have let go


@every_loop
@pytest.mark.parametrize("role", ["source", "drain", "left", "right"])
@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_tls_stream_that_was_closed_twice(
    name: str, role: str, meanwhile: bool, contexts: Contexts
) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        other, peer = await net.socket()
        pair = (near, other) if role in ("source", "left") else (other, near)
        call: Callable[..., Coroutine[Any, Any, Outcome | RelayOutcome]] = (
            aio.splice if role in ("source", "drain") else partial(aio.relay, close=True)
        )
        if not meanwhile:
            near[1].close()
            near[1].close()
        copying = asyncio.ensure_future(call(*pair))
        if meanwhile:
            await asyncio.sleep(0)
            near[1].close()
            near[1].close()
        if role != "source":
            await peer.write(b"hello")
        outcome = await copying
        assert outcome.reason in (Reason.EOF, Reason.DRAIN_ERROR)

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("limit", [10, 65_536])
def test_what_a_stream_had_received_before_it_was_closed_twice(
    name: str, limit: int, contexts: Contexts
) -> None:
    """Its reader has stopped reading, and the transport can't be told to go on any more."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, server = await net.socket()
        near[0]._limit = limit  # type: ignore[attr-defined]
        near[0].feed_data(PATTERN)
        assert near[0]._paused  # type: ignore[attr-defined]
        near[1].close()
        near[1].close()
        copying = asyncio.ensure_future(aio.splice(near, drain))
        assert await server.read(len(PATTERN)) == PATTERN
        assert (await copying).bytes == len(PATTERN)

    play_tls(name, contexts, case)


@every_loop
def test_data_for_a_reader_whose_transport_has_let_go_meanwhile(
    name: str, contexts: Contexts
) -> None:
    """It comes in the very round in which the program closes: nothing of it is lost."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, server = await net.socket()
        near[0]._limit = 10  # type: ignore[attr-defined]
        copying = asyncio.ensure_future(aio.splice(near, drain))
        for _ in range(5):
            await asyncio.sleep(0)
        near[0].feed_data(b"more than twice the limit")
        near[1].close()
        near[1].close()
        assert await server.read(25) == b"more than twice the limit"
        assert (await copying).bytes == 25

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("rounds", [1, 5])
def test_a_failure_of_asyncios_own_is_one_of_the_connection(
    name: str, rounds: int, contexts: Contexts
) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        relaying = asyncio.ensure_future(aio.relay(near, right))
        for _ in range(rounds):
            await asyncio.sleep(0)
        near[0].set_exception(AttributeError("as asyncio's, of a transport that has let go"))
        outcome = await relaying
        assert outcome.reason is Reason.SOURCE_ERROR
        assert isinstance(outcome.error, ConnectionAbortedError)
        with pytest.raises(ConnectionAbortedError):  # for whoever writes, too
            await StreamSide(*near).sent()

    play_tls(name, contexts, case)


@every_loop
def test_our_close_is_no_second_one(name: str, contexts: Contexts) -> None:
    """The program's own streams go on to answer it."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        far[1].close()
        await aio.relay(near, right, close=True)
        assert near[1].get_extra_info("ssl_object") is not None

    play_tls(name, contexts, case)


@every_loop
def test_resetting_a_stream_that_is_gone(name: str) -> None:
    async def case(net: object) -> None:
        assert isinstance(net, RealNet)
        stream, _ = await net.stream()
        side = StreamSide(*stream)
        stream[1].transport.abort()
        await asyncio.sleep(0.01)
        side.reset()

    play(name, case)


# -- half-closing


@every_loop
def test_a_tls_server_answers_a_client_that_has_half_closed(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, server: Stream, right: Stream) -> None:
        left, client = await net.socket()
        await client.write(b"question")
        client.fin()
        relaying = asyncio.ensure_future(aio.relay(left, right, close=True))
        assert await server[0].readexactly(8) == b"question"
        server[1].write(PATTERN)
        server[1].close()
        assert await client.read(len(PATTERN) + 1) == PATTERN
        outcome = await relaying
        assert outcome.reason is Reason.EOF
        assert outcome.left_to_right.bytes == 8
        assert outcome.right_to_left.reason is Reason.EOF
        assert outcome.right_to_left.bytes == len(PATTERN)

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("half_close", [True, False])
def test_a_tls_server_that_waits_for_an_eof(
    name: str, half_close: bool, contexts: Contexts
) -> None:
    """It is told by a close alone: when the time is over, or at once if none is wanted."""

    async def case(net: RealNet, server: Stream, right: Stream) -> None:
        left, client = await net.socket()
        client.fin()
        outcome = await aio.relay(
            left, right, idle_timeout=SHORT, half_close=half_close, close=True
        )
        assert outcome.reason is (Reason.IDLE if half_close else Reason.EOF)
        assert await server[0].read() == b""

    play_tls(name, contexts, case)


@every_loop
@cell(
    "the peer resets",
    "aio",
    "half-closed",
    sees="`Reason.DRAIN_ERROR` although nobody reads from it or writes to it",
)
def test_a_client_that_half_closes_and_goes(name: str, contexts: Contexts) -> None:
    """Nobody reads from it any more, and there is no answer yet to be written to it."""

    async def case(net: RealNet, server: Stream, right: Stream) -> None:
        left, client = await net.socket()
        client.fin()
        relaying = asyncio.ensure_future(aio.relay(left, right))
        await asyncio.sleep(0.01)
        client.reset()
        outcome = await relaying
        assert outcome.left_to_right.reason is Reason.EOF
        assert outcome.reason is outcome.right_to_left.reason is Reason.DRAIN_ERROR

    play_tls(name, contexts, case)


# -- one side dies


@every_loop
def test_the_answer_of_a_tls_server_that_has_closed(name: str, contexts: Contexts) -> None:
    """The client still sends, which fails; the answer had arrived."""

    async def case(net: RealNet, server: Stream, right: Stream) -> None:
        left, client = await net.socket()
        server[1].write(PATTERN[:100_000])
        server[1].close()
        await net.until(lambda: right[0]._eof)  # type: ignore[attr-defined]
        await client.write(b"more")
        outcome = await aio.relay(left, right)
        assert outcome.reason is outcome.left_to_right.reason is Reason.DRAIN_ERROR
        assert outcome.left_to_right.unsent == b"more"
        assert outcome.right_to_left.reason is Reason.EOF
        assert await client.read(100_000) == PATTERN[:100_000]

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_closed_tls_servers_answer_reaches_a_slow_client(
    name: str, more: bytes, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost is looked at meanwhile, over and over."""
    monkeypatch.setattr(_time_limits, "_LOST_SECONDS", 0.01)

    async def case(net: RealNet, server: Stream, right: Stream) -> None:
        left, client = await net.socket(small=True)
        right[0]._limit = 100_000  # type: ignore[attr-defined]
        relaying = asyncio.ensure_future(aio.relay(left, right))
        server[1].write(PATTERN[:100_000])
        server[1].close()
        await net.until(lambda: right[0]._eof)  # type: ignore[attr-defined]
        await client.write(more)
        got = b""
        while len(got) < 100_000:
            await asyncio.sleep(0.05)
            got += await client.read(min(30_000, 100_000 - len(got)))
        assert got == PATTERN[:100_000]
        outcome = await relaying
        assert outcome.reason is (Reason.DRAIN_ERROR if more else Reason.EOF)
        assert outcome.right_to_left.reason is Reason.EOF

    play_tls(name, contexts, case)


@every_loop
def test_a_reader_that_was_told_eof_ends_by_itself(name: str, contexts: Contexts) -> None:
    """Ended from outside, between its last byte and its EOF, it would say CANCELLED."""

    async def case(net: RealNet, server: Stream, right: Stream) -> None:
        server[1].write(b"answer")
        server[1].close()
        assert await right[0].read() == b"answer"
        right[1].close()
        assert not StreamSide(*right).is_exhausted

    play_tls(name, contexts, case)


@every_loop
def test_a_reset_that_the_loop_has_not_noticed_yet(name: str) -> None:
    """Nothing is written then: the transport would meet the failure, and stop reading."""

    async def case(net: object) -> None:
        assert isinstance(net, RealNet)
        stream, peer = await net.stream()
        side = StreamSide(*stream)
        assert not side.is_lost
        peer.reset()
        for _ in range(2_000):  # without a turn for the loop
            if side.is_lost:
                break
            time.sleep(0.001)
        with pytest.raises(BrokenPipeError):
            await side.send(memoryview(b"more"))
        assert stream[0].exception() is None

    play(name, case)


@every_loop
def test_a_tls_server_that_is_closed_by_the_program(
    name: str, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with an EOF, when its peer has closed as well."""
    monkeypatch.setattr(_time_limits, "_LOST_SECONDS", 0.01)

    async def case(net: RealNet, server: Stream, right: Stream) -> None:
        left, client = await net.socket()
        client.fin()
        server[1].transport.pause_reading()  # type: ignore[attr-defined]
        relaying = asyncio.ensure_future(aio.relay(left, right))
        await asyncio.sleep(0.02)
        right[1].close()
        await asyncio.sleep(0.1)
        assert not relaying.done()
        server[1].transport.resume_reading()  # type: ignore[attr-defined]
        assert (await relaying).reason is Reason.EOF

    play_tls(name, contexts, case)


@every_loop
def test_the_answer_of_a_plain_server_that_has_reset(name: str, contexts: Contexts) -> None:
    """From the other side: the TLS client still sends."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.stream()
        right[0].feed_data(PATTERN[:100_000])
        right[0].set_exception(ConnectionResetError("by its peer"))
        right[1].transport.abort()
        far[1].write(b"more")
        # Not yet lost for ``relay``, which refuses what is lost already.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StreamSide, "check_open", lambda side: None)
            outcome = await aio.relay(near, right)
        assert outcome.right_to_left.reason is Reason.SOURCE_ERROR
        assert await far[0].readexactly(100_000) == PATTERN[:100_000]

    play_tls(name, contexts, case)


@every_loop
def test_what_came_before_a_failure(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, server = await net.socket()
        far[1].write(PATTERN[:50_000])
        await net.until(lambda: len(near[0]._buffer) == 50_000)  # type: ignore[attr-defined]
        far[1].get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        far[1].transport.abort()
        await net.until(near[0].exception)
        outcome = await aio.splice(near, drain)
        assert (outcome.reason, outcome.bytes) == (Reason.SOURCE_ERROR, 50_000)
        assert await server.read(50_000) == PATTERN[:50_000]

    play_tls(name, contexts, case)


@every_loop
def test_a_closed_tls_drain_whose_peer_says_nothing(name: str, contexts: Contexts) -> None:
    """Nothing comes from there any more, but asyncio would wait for the peer's own close."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        left, client = await net.socket()
        far[1].transport.pause_reading()  # type: ignore[attr-defined]
        relaying = asyncio.ensure_future(aio.relay(left, near, close=True))
        await asyncio.sleep(0)
        near[1].close()
        await client.write(b"hello")
        outcome = await relaying
        assert outcome.reason is outcome.left_to_right.reason is Reason.DRAIN_ERROR
        assert outcome.right_to_left.reason is Reason.CANCELLED
        with pytest.raises(ConnectionResetError):  # what it sent was refused, and not answered
            await client.read(1)

    play_tls(name, contexts, case)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no error queue")
@every_loop
def test_a_notice_in_the_error_queue_is_no_loss(
    name: str, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_time_limits, "_LOST_SECONDS", 0.01)

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, server = await net.socket()
        # SO_TIMESTAMPING: when it was sent, by software, without the packet.
        drain.setsockopt(socket.SOL_SOCKET, 37, 2 | 16 | 2048)
        copying = asyncio.ensure_future(aio.splice(near, drain))
        far[1].write(b"hello")
        assert await server.read(5) == b"hello"
        await asyncio.sleep(0.05)
        far[1].write(b"again")
        assert await server.read(5) == b"again"
        far[1].close()
        assert (await copying).reason is Reason.EOF

    play_tls(name, contexts, case)


# -- what a writer holds


@every_loop
def test_what_was_counted_comes_before_the_end_of_a_cut_answer(
    name: str, contexts: Contexts
) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        relaying, held = await _cut(net, near, far)
        await asyncio.sleep(0.05)  # longer than closing takes that waits for nothing
        assert not relaying.done()
        assert len(await _all(far)) == held
        outcome = await relaying
        assert outcome.reason is Reason.SOURCE_ERROR

    play_tls(name, contexts, case)


@every_loop
@cell(
    "the peer stands still",
    "aio",
    "closing",
    sees="of a TLS stream: the outcome `linger` seconds later",
    counted="what may not have arrived is `Outcome.undelivered`",
)
def test_a_peer_that_stands_still_is_not_waited_for(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        relaying, _ = await _cut(net, near, far, linger=SHORT)
        outcome = await relaying
        assert outcome.reason is Reason.SOURCE_ERROR
        assert outcome.right_to_left.undelivered
        assert near[1].is_closing()

    play_tls(name, contexts, case)


@every_loop
@cell(
    "the peer resets",
    "aio",
    "closing",
    sees="of a TLS stream: the outcome, at once",
)
def test_a_peer_that_goes_is_not_waited_for(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        relaying, _ = await _cut(net, near, far)
        far[1].transport.abort()
        assert (await relaying).reason is Reason.SOURCE_ERROR

    play_tls(name, contexts, case)


@every_loop
def test_a_whole_answer_comes_before_the_close(name: str, contexts: Contexts) -> None:
    """What the client still sends would make TLS's own close drop what the writer holds."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        relaying, held = await _answered(net, near, far)
        far[1].write(b"more")
        await asyncio.sleep(0.05)
        assert not relaying.done()
        assert len(await _all(far)) == held
        assert (await relaying).reason is Reason.EOF

    play_tls(name, contexts, case)


@every_loop
def test_what_a_socket_has_taken_comes_before_its_reset(name: str, contexts: Contexts) -> None:
    """F27: what the peer has not acknowledged is thrown away by a reset."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.socket(small=True)
        sent = bytes(PATTERN[: 2 * SMALL - 384])
        relaying = asyncio.ensure_future(aio.relay(near, right, close=True, linger=1000.0))
        far[1].write(sent)
        await net.until(lambda: unacknowledged(right))
        await net.until(lambda: not len(near[0]._buffer))  # type: ignore[attr-defined]
        sock = far[1].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far[1].transport.abort()
        await asyncio.sleep(0.05)  # longer than closing takes that waits for nothing
        assert not relaying.done()
        assert await server.read(len(sent)) == sent
        with pytest.raises(ConnectionResetError):
            await server.read(1)
        outcome = (await relaying).left_to_right
        assert (outcome.bytes, outcome.undelivered) == (len(sent), 0)
        assert outcome.reason is Reason.SOURCE_ERROR

    play_tls(name, contexts, case)


@every_loop
def test_cancelling_a_close_keeps_nobody_waiting_and_delivers(
    name: str, contexts: Contexts
) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        relaying, held = await _answered(net, near, far)
        relaying.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await relaying
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, RelayOutcome)
        assert outcome.reason is Reason.EOF
        assert outcome.right_to_left.undelivered
        assert len(await _all(far)) == held

    play_tls(name, contexts, case)


@every_loop
def test_cancelling_holds_nobody_up_and_delivers_what_counts(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        _narrow(near, far)
        held = await _hold(near)
        relaying = asyncio.ensure_future(aio.relay(near, right, close=True))
        await asyncio.sleep(0)
        relaying.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await relaying
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, RelayOutcome)
        assert outcome.reason is Reason.CANCELLED
        assert not near[1].is_closing()
        assert len(await _all(far)) == held
        assert near[1].is_closing()

    play_tls(name, contexts, case)


@every_loop
def test_a_time_limit_holds_nobody_up_and_delivers_what_counts(
    name: str, contexts: Contexts
) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        _narrow(near, far)
        held = await _hold(near)
        outcome = await aio.relay(near, right, close=True, timeout=SHORT, linger=1000.0)
        assert outcome.reason is Reason.TIMEOUT
        assert outcome.right_to_left.undelivered
        assert len(await _all(far)) == held

    play_tls(name, contexts, case)


def test_a_writer_that_gets_rid_of_it_slowly_is_not_idle(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On asyncio's loops: uvloop's TLS doesn't tell what waits below it."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        near[1].transport.set_write_buffer_limits(high=100_000_000)
        source, client = await net.socket()
        clock = SteppedClock(monkeypatch)
        copying = asyncio.ensure_future(
            aio.splice(source, near, initial=bytes(20_000_000), idle_timeout=10.0)
        )
        held = StreamSide(*near)
        before = 0
        while held.pending != before or before < 5_000_000:  # until all of it has been counted
            before = held.pending
            await asyncio.sleep(0.05)
        for _ in range(5):
            before = held.pending
            while held.pending >= before:
                await far[0].read(65_536)
            await clock.step(net, 4.0)
        assert not copying.done()
        client.fin()
        assert (await copying).reason is Reason.EOF

    play_tls("asyncio", contexts, case)


def test_idleness_begins_with_the_call(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        clock = SteppedClock(monkeypatch)
        relaying = asyncio.ensure_future(aio.relay(near, right, idle_timeout=10.0))
        await asyncio.sleep(0)  # it begins, and looks for the first time when this has gone by:
        await clock.step(net, 4.0)
        await clock.step(net, 6.5)  # a look that comes so late ends nothing yet
        clock.now += 1.0
        assert (await relaying).reason is Reason.IDLE

    play_tls("asyncio", contexts, case)


@every_loop
def test_what_nobody_has_taken_from_a_stream(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        side = StreamSide(*near)
        assert not side.has_rest()
        far[1].write(b"rest")
        await net.until(side.has_rest)
        assert await near[0].read(4) == b"rest"  # it was looked at, and not taken
        near[0].set_exception(ConnectionResetError())
        assert side.has_rest()

    play_tls(name, contexts, case)


async def _cut(
    net: RealNet, near: Stream, far: Stream, linger: float = 1000.0
) -> tuple[asyncio.Task[RelayOutcome], int]:
    """A relay whose server resets, after so many bytes that its client hasn't read yet."""
    right, server = await net.socket()
    relaying, held = await _relayed(net, near, far, right, server, linger)
    server.reset()
    return relaying, held


async def _answered(
    net: RealNet, near: Stream, far: Stream
) -> tuple[asyncio.Task[RelayOutcome], int]:
    """The same with a server that closes."""
    right, server = await net.socket()
    relaying, held = await _relayed(net, near, far, right, server)
    server.fin()
    await asyncio.sleep(0.05)
    assert not relaying.done()
    return relaying, held


async def _relayed(
    net: RealNet,
    near: Stream,
    far: Stream,
    right: socket.socket,
    server: Peer,
    linger: float = 1000.0,
) -> tuple[asyncio.Task[RelayOutcome], int]:
    _narrow(near, far)
    held = await _hold(near)
    relaying = asyncio.ensure_future(aio.relay(near, right, close=True, linger=linger))
    await server.write(b"the beginning of an answ")
    await net.until(lambda: not _peek(right))
    return relaying, held + 24


async def _hold(stream: Stream) -> int:
    """Write until the writer holds something for good; gives how many bytes that took."""
    total = 0
    while StreamSide(*stream).pending < 20_000:
        stream[1].write(bytes(4_096))
        total += 4_096
        await asyncio.sleep(0.001)
    return total


def _narrow(*streams: Stream) -> None:
    """Let the system hold little, so that the writers do."""
    for _, writer in streams:
        sock = writer.get_extra_info("socket")
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SMALL)


async def _all(stream: Stream) -> bytes:
    got = bytearray()
    with contextlib.suppress(OSError):
        while data := await stream[0].read(65_536):
            got += data
    return bytes(got)


def _peek(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


#: Relays an endless TLS stream to whoever connects, and ends while it is at it.
ENDS_IN_THE_MIDDLE = """
import asyncio, socket, ssl
import trustme
from freebsd_splice import aio

async def main():
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("splice.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    loop = asyncio.get_running_loop()
    accepted = loop.create_future()
    listening = await asyncio.start_server(
        lambda *stream: accepted.set_result(stream), "127.0.0.1", 0, ssl=server
    )
    _, far = await asyncio.open_connection(
        *listening.sockets[0].getsockname(), ssl=client, server_hostname="splice.test"
    )
    front = socket.create_server(("127.0.0.1", 0))
    print(front.getsockname()[1], flush=True)
    plain, _ = front.accept()
    plain.setblocking(False)
    asyncio.ensure_future(aio.relay(await accepted, plain, close=True))
    for _ in range(200):
        far.write(bytes(65_536))
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_a_loop_that_ends_puts_no_ordinary_end_behind_a_cut() -> None:
    program = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ENDS_IN_THE_MIDDLE],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(aio.__file__).parents[2])},
    )
    assert program.stdout is not None
    with (
        program,
        socket.create_connection(("127.0.0.1", int(program.stdout.readline())), PATIENCE) as reader,
        contextlib.suppress(ConnectionResetError),
    ):
        assert program.wait(PATIENCE) == 0
        while reader.recv(1 << 20):
            pass
        pytest.fail("an ordinary end")


@every_loop
def test_a_cancelling_behind_a_time_limit_is_not_lost(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        _narrow(near, far)
        await _hold(near)
        began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        moment = wait_briefly

        async def watched(*sides: ClosingSide) -> bool:
            began.set_result(None)
            return await moment(*sides)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_copying, "wait_briefly", watched)
            relaying = asyncio.ensure_future(
                aio.relay(near, right, close=True, timeout=SHORT, linger=1000.0)
            )
            await began
            relaying.cancel()
            with pytest.raises(asyncio.CancelledError) as raised:
                await relaying
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, RelayOutcome)
        assert outcome.reason is Reason.TIMEOUT
        assert await _all(far)

    play_tls(name, contexts, case)


@every_loop
def test_a_time_limit_bounds_the_closing_too(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.socket()
        _narrow(near, far)
        held = await _hold(near)
        relaying = asyncio.ensure_future(
            aio.relay(near, right, close=True, timeout=1.0, linger=1000.0)
        )
        await server.write(b"the beginning of an answ")
        await net.until(lambda: not _peek(right))
        server.reset()
        outcome = await relaying
        assert outcome.reason is Reason.SOURCE_ERROR
        assert outcome.right_to_left.undelivered
        assert len(await _all(far)) == held + 24

    play_tls(name, contexts, case)
