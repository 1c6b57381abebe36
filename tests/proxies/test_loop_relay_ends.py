"""Relays that a loop's thread moves: how failures, defects, signals and a shutdown end them."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest

from conformance.harness import DEADLINE, Harness, Peer
from freebsd_splice import Reason, RelayOutcome, shutdown
from freebsd_splice._platform.interface import Endpoint
from freebsd_splice._runtime import current, install
from freebsd_splice.proxies._event_loop import ProxyLoop
from freebsd_splice.proxies._loop_relay import LoopRelays
from proxies.on_loop import Loop, OnLoop, looping
from support.platforms import RecordingPlatform, runtime


class FailingPlatform(RecordingPlatform):
    """The system says of sockets what it is told to say."""

    def __init__(self) -> None:
        super().__init__()
        self.sending: BaseException | None = None
        self.errors: dict[int, OSError] = {}
        self.not_shut_down: Endpoint | None = None

    def shutdown_write(self, endpoint: Endpoint) -> None:
        if endpoint is self.not_shut_down:
            raise OSError(errno.ENOTCONN, "not connected")
        super().shutdown_write(endpoint)

    def send(self, endpoint: Endpoint, data: memoryview) -> int:
        if self.sending is not None and bytes(data) == b"interrupted":
            raise self.sending
        return super().send(endpoint, data)

    def take_error(self, endpoint: Endpoint) -> OSError | None:
        return self.errors.pop(endpoint.fileno(), None) or super().take_error(endpoint)


@pytest.mark.parametrize("at_source", [True, False])
def test_an_error_that_is_told_once_is_the_outcomes(harness: Harness, at_source: bool) -> None:
    platform = FailingPlatform()
    left, client = harness.pair()
    right, server = harness.pair()
    platform.errors[(left if at_source else right).fileno()] = OSError(errno.ETIMEDOUT, "gone")
    with runtime(platform), looping() as loop:
        relay = OnLoop(loop, left, right)
        client.finish(b"all of it")
        assert server.read(9) == b"all of it"
        with suppress(OSError):  # it may have been reset by now
            server.fin()  # the system's own error would come to that direction as well
        outcome = relay.wait()
    reason = Reason.SOURCE_ERROR if at_source else Reason.DRAIN_ERROR
    assert (outcome.left_to_right.reason, outcome.left_to_right.bytes) == (reason, 9)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ETIMEDOUT


def test_a_defect_ends_one_relay(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    platform = FailingPlatform()
    platform.sending = ZeroDivisionError()
    with runtime(platform), looping() as loop:
        left, client = harness.pair()
        right, server = harness.pair()
        others = harness.pair(), harness.pair()
        relay = OnLoop(loop, left, right)
        other = OnLoop(loop, others[0][0], others[1][0])
        client.write(b"interrupted")
        outcome = relay.wait()
        assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.SOURCE_ERROR, 0)
        assert outcome.left_to_right.unsent == b"interrupted"
        for peer in (client, server):
            with pytest.raises(ConnectionResetError):
                peer.read(1)
        others[0][1].write(b"another's")
        assert others[1][1].read(9) == b"another's"
        other.cancel()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_a_signals_exception_is_the_programs(harness: Harness, raised: type[BaseException]) -> None:
    platform = FailingPlatform()
    platform.sending = raised()
    ended: list[RelayOutcome] = []
    with runtime(platform):
        left, client = harness.pair()
        right, _ = harness.pair()
        client.write(b"interrupted")
        harness.until(lambda: harness.readable(left), "it is there")
        loop = ProxyLoop()
        worker = current().local_worker()
        assert worker is not None
        assert loop.serve(worker)

        async def begin() -> None:
            relays = LoopRelays(current(), worker, None)
            relay = relays.begin(left, right, lambda: ended.append(relay.outcome()))
            await asyncio.sleep(DEADLINE)

        task = loop.create_task(begin())
        with pytest.raises(raised):
            loop.run_until_complete(task)
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.serve_no_more(worker)
        worker.close()
        loop.close()
    assert ended[0].left_to_right.unsent == b"interrupted"
    assert left.fileno() == -1


def test_shutdown_ends_it(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"moved")
    assert server.read(5) == b"moved"
    shutdown()
    assert relay.wait().reason is Reason.CANCELLED
    assert client.read_to_end() == server.read_to_end() == b""


def test_each_shutdown_ends_what_there_is(harness: Harness, loop: Loop) -> None:
    for _ in range(2):
        left, client = harness.pair()
        right, server = harness.pair()
        relay = OnLoop(loop, left, right)
        client.write(b"moved")
        assert server.read(5) == b"moved"
        shutdown()
        assert relay.wait().reason is Reason.CANCELLED


@pytest.mark.parametrize("becomes", [True, False])
def test_none_outlives_a_shutdown(harness: Harness, loop: Loop, becomes: bool) -> None:
    """Neither one that becomes another amid it, nor one while another is begun."""
    relay = OnLoop(loop, harness.pair()[0], harness.pair()[0])
    closing = install(None)  # what ``shutdown`` does first
    assert closing is not None
    if becomes:
        loop.do(relay.relay.as_relay)
    begun = OnLoop(loop, harness.pair()[0], harness.pair()[0])
    closing.close()
    assert relay.wait().reason is Reason.CANCELLED
    assert not begun.done
    shutdown()
    assert begun.wait().reason is Reason.CANCELLED


def test_a_shutdown_needs_no_running_loop(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    relay = OnLoop(loop, left, harness.pair()[0])
    with loop.standing_still():
        shutdown()
        assert client.read_to_end() == b""
    assert relay.wait().reason is Reason.CANCELLED


def sent_and_not_taken(harness: Harness, loop: Loop) -> tuple[OnLoop, Peer, bytes]:
    """A relay that has sent its client more than that one's buffer takes."""
    left, client = harness.pair(small_buffers=True)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    sent = bytearray()
    while len(sent) < 100_000:
        message = random.Random(len(sent)).randbytes(10_000)
        server.write(message)
        sent.extend(message)
        harness.until(lambda: relay.relay.ways[1].moved == len(sent), "it is moved")
    assert relay.relay.relay is None
    return relay, client, bytes(sent)


def test_a_shutdown_destroys_nothing_that_was_sent(harness: Harness, loop: Loop) -> None:
    relay, client, sent = sent_and_not_taken(harness, loop)
    got: list[bytes] = []
    reads = threading.Event()

    def read() -> None:
        assert reads.wait(DEADLINE)
        got.append(client.read(len(sent)))

    reading = harness.in_background(read)

    def unread_at_the_end() -> None:
        client.write(b"unread")
        harness.until(lambda: harness.readable(relay.relay.ways[0].source), "it is there")
        reads.set()
        shutdown()

    loop.do(unread_at_the_end)
    reading.join()
    assert got == [sent]
    assert relay.wait().reason is Reason.CANCELLED


def test_a_defect_destroys_nothing_that_was_sent(harness: Harness) -> None:
    platform = FailingPlatform()
    platform.sending = ZeroDivisionError()
    with runtime(platform), looping() as loop:
        relay, client, sent = sent_and_not_taken(harness, loop)
        client.write(b"interrupted")
        assert relay.wait().reason is Reason.SOURCE_ERROR
        assert client.read(len(sent)) == sent
        with pytest.raises(ConnectionResetError):
            client.read(1)


def test_the_cause_of_a_broken_pipe_is_asked_for(harness: Harness) -> None:
    """The BSDs raise EPIPE for a connection that was reset."""
    platform = FailingPlatform()
    platform.sending = BrokenPipeError(errno.EPIPE, "broken pipe")
    left, client = harness.pair()
    right, server = harness.pair()
    platform.errors[right.fileno()] = OSError(errno.ETIMEDOUT, "gone")
    with runtime(platform), looping() as loop:
        relay = OnLoop(loop, left, right)
        client.write(b"interrupted")
        harness.until(lambda: relay.relay.relay, "it is left to another")
        server.fin()
        outcome = relay.wait()
    assert (outcome.reason, outcome.left_to_right.unsent) == (Reason.DRAIN_ERROR, b"interrupted")
    assert outcome.error is not None
    assert outcome.error.errno == errno.ETIMEDOUT


def test_a_fin_that_cannot_be_passed_on_is_no_success(harness: Harness) -> None:
    platform = FailingPlatform()
    left, client = harness.pair()
    right, server = harness.pair()
    platform.not_shut_down = right
    with runtime(platform), looping() as loop:
        relay = OnLoop(loop, left, right)
        client.finish(b"all of it")
        assert server.read(9) == b"all of it"
        server.fin()
        outcome = relay.wait()
    assert outcome.left_to_right.reason is Reason.DRAIN_ERROR
    assert outcome.error is not None
    assert outcome.error.errno == errno.ENOTCONN


def test_where_one_finds_no_room_neither_is_watched(
    harness: Harness, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, relays = harness.pair()[0], harness.pair()[0], loop.relays()
    tell = loop.worker.tell

    def tell_of_one(endpoint: socket.socket, *given: Any) -> None:
        if endpoint is right:
            raise OSError(errno.ENOSPC, "no room")
        tell(endpoint, *given)

    monkeypatch.setattr(loop.worker, "tell", tell_of_one)
    with pytest.raises(OSError, match="no room"):
        loop.do(lambda: relays.begin(left, right, lambda: None))
    assert loop.worker._told == {}
    monkeypatch.undo()
    OnLoop(loop, left, right).cancel()


def test_the_loop_is_not_woken_by_itself(
    harness: Harness, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    loop.do(relay.relay.as_relay)
    woken_for, wake = [], loop.loop.call_soon_threadsafe

    def noted(call: Any, *given: Any, **options: Any) -> Any:
        woken_for.append(call)
        return wake(call, *given, **options)

    monkeypatch.setattr(loop.loop, "call_soon_threadsafe", noted)
    client.fin()
    assert server.read_to_end() == b""
    server.fin()
    relay.wait()
    assert relay.relay._tell not in woken_for


def test_a_closed_loop_is_told_nothing(harness: Harness) -> None:
    with runtime(RecordingPlatform()):
        left, client = harness.pair()
        loop, worker = ProxyLoop(), current().local_worker()
        assert worker is not None
        relays = LoopRelays(current(), worker, None, loop)
        relay = relays.begin(left, harness.pair()[0], lambda: None)
        loop.close()
        shutdown()
        assert relay.relay is not None
        assert relay.relay.wait(0).reason is Reason.CANCELLED
        assert client.read_to_end() == b""
        worker.close()


def test_a_failure_of_whom_it_tells_is_logged(
    harness: Harness, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    told = threading.Event()

    def over() -> None:
        told.set()
        raise ZeroDivisionError

    relays = loop.relays()
    loop.do(lambda: relays.begin(left, right, over))
    client.fin()
    server.fin()
    assert told.wait(DEADLINE)
    loop.do(lambda: None)
    assert "ZeroDivisionError" in caplog.text
