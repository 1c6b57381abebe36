"""Relays that a loop's thread moves: what holds for every ``Relay`` that closes, and their own."""

from __future__ import annotations

import asyncio
import errno
import gc
import random
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from conformance import test_relay as cases
from conformance.backends import MODELS
from conformance.harness import DEADLINE, Harness, Peer
from freebsd_splice import Reason, Relay, RelayOutcome, shutdown
from freebsd_splice._core.flow import End
from freebsd_splice._platform.interface import Endpoint, Readiness
from freebsd_splice._platform.pollers import KqueuePoller
from freebsd_splice._runtime import current, install
from freebsd_splice._userspace.flow import MANY_MESSAGES, MUCH_BYTES
from freebsd_splice._userspace.workers import LocalWorker
from freebsd_splice.proxies._event_loop import ProxyLoop
from freebsd_splice.proxies._loop_relay import LoopRelay, LoopRelays
from model.harness import ModelHarness
from model.local_worker import LoopsWorker
from programs.processes import descriptors_left
from support.platforms import RecordingPlatform, runtime
from system.test_pollers import PollingKqueue


class Loop:
    """An event loop in a thread of its own, with the relays that it moves."""

    def __init__(self, kind: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = kind()
        self.worker: LocalWorker
        self.raised: list[BaseException] = []
        self._relays: dict[float | None, LoopRelays] = {}
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._begun.wait(DEADLINE)

    def do(self, call: Callable[[], Any]) -> Any:
        """Do that on the loop's thread, and return what it returns."""

        async def done() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(DEADLINE)

    def relays(self, idle_timeout: float | None = None) -> LoopRelays:
        if idle_timeout not in self._relays:
            make = partial(LoopRelays, current(), self.worker, idle_timeout)
            self._relays[idle_timeout] = self.do(make)
        return self._relays[idle_timeout]

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        try:
            yield
        finally:
            self._thread = threading.Thread(target=self.loop.run_forever)
            self._thread.start()

    def close(self) -> None:
        for relays in self._relays.values():
            self.do(relays.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if isinstance(self.loop, ProxyLoop):
            self.loop.serve_no_more(self.worker)
        self.worker.close()
        self.loop.close()
        assert current().call_before_close == set()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        worker = current().local_worker()
        assert worker is not None
        self.worker = worker
        if not (isinstance(self.loop, ProxyLoop) and self.loop.serve(worker)):
            self.loop.add_reader(worker.fileno(), self._turn)
        self._begun.set()
        self.loop.run_forever()

    def _turn(self) -> None:
        if self.worker.turn():
            self.loop.call_soon(self._turn)


class OnLoop:
    """Such a relay, as the cases for ``Relay`` use theirs."""

    def __init__(
        self,
        loop: Loop,
        left: socket.socket,
        right: socket.socket,
        idle_timeout: float | None = None,
        close: bool = True,
    ) -> None:
        self._loop = loop
        self._over = threading.Event()
        relays = loop.relays(idle_timeout)

        def begin() -> LoopRelay:
            relay = relays.begin(left, right, self._over.set)
            relay.look()
            return relay

        self.relay: LoopRelay = loop.do(begin)

    def __enter__(self) -> OnLoop:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    @property
    def done(self) -> bool:
        return self._over.is_set()

    @property
    def bytes(self) -> tuple[int, int]:
        relay, (up, down) = self.relay.relay, self.relay.ways
        return (up.moved, down.moved) if relay is None else relay.bytes

    @property
    def _ends(self) -> list[End | None]:
        relay = self.relay.relay
        return [way.end for way in self.relay.ways] if relay is None else relay._ends

    def wait(self, timeout: float = DEADLINE) -> RelayOutcome:
        assert self._over.wait(timeout)
        return self.relay.outcome()

    def cancel(self) -> RelayOutcome:
        self._loop.do(self.relay.end_soon)
        return self.wait()


@contextmanager
def looping(kind: Callable[[], asyncio.AbstractEventLoop] = ProxyLoop) -> Iterator[Loop]:
    loop = Loop(kind)
    try:
        yield loop
    finally:
        loop.close()


@pytest.fixture(params=[ProxyLoop, asyncio.SelectorEventLoop])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """A loop that waits in the worker's poller, and one that watches it."""
    with runtime(RecordingPlatform()), looping(request.param) as made:
        yield made


#: The cases that hold for these as well, with what each takes besides the harness.
CASES: list[Any] = [
    (cases.test_eof_is_passed_on_and_the_other_direction_lives_on, {}),
    (cases.test_eof_behind_a_slow_reader_comes_after_the_last_byte, {}),
    pytest.param(
        cases.test_traffic_one_way_keeps_both_directions_alive, {}, marks=pytest.mark.slow
    ),
    (cases.test_close_closes_both_at_the_end, {}),
    (cases.test_a_reset_is_passed_on_as_a_reset, {"from_left": True}),
    (cases.test_a_reset_is_passed_on_as_a_reset, {"from_left": False}),
    (cases.test_a_reset_after_the_answer_is_passed_on_too, {}),
    (cases.test_a_client_whose_bytes_nobody_took_is_reset, {}),
    (cases.test_bytes_left_at_the_source_by_a_cut_get_no_fin, {}),
    (cases.test_an_idle_end_closes_in_the_ordinary_way, {}),
    (cases.test_what_a_dying_server_had_sent_is_still_delivered, {}),
    (cases.test_bulk_both_ways_at_once, {}),
]


def name_of(case: Any) -> str:
    return case.__name__.removeprefix("test_") if callable(case) else ""


@pytest.mark.parametrize(("case", "more"), CASES, ids=name_of)
def test_what_holds_for_every_relay(
    case: Callable[..., None],
    more: dict[str, Any],
    harness: Harness,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cases, "Relay", partial(OnLoop, loop))
    case(harness, **more)


def test_a_short_one_becomes_no_other_relay(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    client.write(b"there already")
    relay = OnLoop(loop, left, right)
    assert server.read(13) == b"there already"
    for number in range(100):
        client.write(b"%9d" % number)
        assert server.read(9) == b"%9d" % number
        server.write(b"%9d" % -number)
        assert client.read(9) == b"%9d" % -number
    client.fin()
    assert server.read(1) == b""
    server.finish(b"answer")
    assert client.read_to_end() == b"answer"
    outcome = relay.wait()
    assert relay.relay.relay is None
    assert outcome.reason is Reason.EOF
    up, down = outcome.left_to_right, outcome.right_to_left
    assert (up.bytes, up.reason, up.unsent, up.error) == (913, Reason.EOF, b"", None)
    assert (down.bytes, down.mover, down.fallback) == (906, "copy", None)
    assert 0 < up.seconds <= down.seconds == outcome.seconds
    assert left.fileno() == right.fileno() == -1


def test_a_short_one_on_kqueue(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KqueuePoller, "module", WatchedKqueue)
    monkeypatch.setattr("freebsd_splice._platform.system.make_poller", lambda kind: KqueuePoller())
    with runtime(RecordingPlatform()), looping() as loop:
        test_a_short_one_becomes_no_other_relay(harness, loop)


class WatchedKqueue(PollingKqueue):
    """One that is said to have a descriptor, for whom a loop watches nothing else."""

    class kqueue(PollingKqueue.kqueue):
        def fileno(self) -> int:
            return 0


def test_a_drain_that_was_shut_down_may_say_so(harness: Harness, loop: Loop) -> None:
    """kqueue(2): EV_EOF of a write filter is our own shutdown, too."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.finish(b"request")
    assert server.read_to_end() == b"request"
    harness.until(lambda: relay.relay.ways[0].end is not None, "the EOF is passed on")
    loop.do(lambda: relay.relay.ways[1].ready(Readiness.WRITE | Readiness.HANGUP))
    server.finish(b"answer")
    assert client.read_to_end() == b"answer"
    assert relay.wait().reason is Reason.EOF
    assert relay.relay.relay is None


def test_an_error_without_an_end_is_left_to_a_relay(harness: Harness, loop: Loop) -> None:
    """A notice in Linux's error queue is reported for ever; only a ``Relay`` quietens that."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.finish(b"request")
    assert server.read_to_end() == b"request"
    harness.until(lambda: relay.relay.ways[0].end is not None, "the EOF is passed on")
    loop.do(lambda: relay.relay.ways[1].ready(Readiness.ERROR))
    assert relay.relay.relay is not None
    server.finish(b"answer")
    assert client.read_to_end() == b"answer"
    assert relay.wait().reason is Reason.EOF


def test_the_loop_has_its_turns_while_bytes_are_moved(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    passed = threading.Event()

    def messages() -> None:
        while not passed.is_set():
            client.write(b"?")
            assert server.read(1) == b"?"

    busy = harness.in_background(messages)
    try:
        loop.do(lambda: loop.loop.call_later(0.05, loop.loop.call_soon, passed.set))
        assert passed.wait(DEADLINE)
    finally:
        passed.set()
        busy.join()
    relay.cancel()


def test_it_is_a_relay_for_whom_asks(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"before, ")
    assert server.read(8) == b"before, "
    relay.relay.started -= 1_000
    made = loop.do(relay.relay.as_relay)
    assert isinstance(made, Relay)
    assert loop.do(relay.relay.as_relay) is made
    client.write(b"after")
    assert server.read(5) == b"after"
    harness.until(lambda: made.bytes == (13, 0), "it is counted")
    client.fin()
    server.fin()
    assert relay.wait() == made.wait(0)
    assert relay.wait().left_to_right.bytes == 13
    assert relay.wait().seconds >= 1_000


def test_much_goes_on_without_the_loop(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = OnLoop(loop, left, right)
    client.write(b"little")
    assert server.read(6) == b"little"
    data = random.Random(3).randbytes(5_000_000)
    writing = harness.in_background(client.finish, data)
    got = server.read(16 * MUCH_BYTES)
    held_up = threading.Event()
    loop.loop.call_soon_threadsafe(held_up.wait, DEADLINE)
    try:
        got += server.read_to_end()
    finally:
        held_up.set()
    assert got == data
    writing.join()
    server.fin()
    outcome = relay.wait()
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, 6 + len(data))


def test_to_become_another_takes_no_descriptor(harness: Harness, loop: Loop) -> None:
    """A proxy's clients can have them all, and bytes are under way."""
    left, client = harness.pair()
    right, server = harness.pair()
    current().start_workers()  # as a server does
    relay = OnLoop(loop, left, right, idle_timeout=1_000)
    data = random.Random(7).randbytes(1_000_000)
    with descriptors_left(0):
        writing = harness.in_background(client.finish, data)
        assert server.read_to_end() == data
        writing.join()
    server.fin()
    outcome = relay.wait()
    assert relay.relay.relay is not None
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, len(data))


def test_what_finds_the_drain_full_is_not_lost(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = OnLoop(loop, left, right)
    sent = bytearray()
    while relay.relay.relay is None:  # less than MUCH_BYTES at a time, until no more goes in
        message = random.Random(len(sent)).randbytes(1_001)
        client.write(message)
        sent += message
        loop.do(lambda: None)
    client.fin()
    assert server.read_to_end() == bytes(sent)
    server.fin()
    outcome = relay.wait()
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, len(sent))


def test_the_answer_to_a_half_closed_client_may_be_much(harness: Harness, loop: Loop) -> None:
    """The direction that has ended is over for the relay that goes on, and is counted once."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.finish(b"request")
    assert server.read_to_end() == b"request"
    answer = random.Random(5).randbytes(3_000_000)
    writing = harness.in_background(server.finish, answer)
    assert client.read_to_end() == answer
    writing.join()
    outcome = relay.wait()
    assert relay.relay.relay is not None
    up, down = outcome.left_to_right, outcome.right_to_left
    assert (up.reason, up.bytes, down.reason, down.bytes) == (
        Reason.EOF,
        7,
        Reason.EOF,
        len(answer),
    )
    assert up.seconds < down.seconds


def test_an_idle_drain_that_dies_is_noticed(harness: Harness, loop: Loop) -> None:
    """F16"""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"?")
    assert server.read(1) == b"?"
    server.reset()
    error = relay.wait().error
    assert error is not None
    assert error.errno == errno.ECONNRESET


def test_a_message_for_a_dead_drain_is_unsent(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"one")
    assert server.read(3) == b"one"

    def both() -> None:
        client.write(b"two")
        server.reset()

    loop.do(both)  # the loop sees them together
    outcome = relay.wait()
    up = outcome.left_to_right
    assert up.bytes + len(up.unsent) in (3, 6)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ECONNRESET


def test_a_fin_behind_which_the_drain_is_dead_is_no_success(harness: Harness, loop: Loop) -> None:
    """F16: the drain's peer may not have got what was moved."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"one")
    assert server.read(3) == b"one"

    def both() -> None:
        client.fin()
        server.reset()

    loop.do(both)
    outcome = relay.wait()
    assert outcome.reason in (Reason.DRAIN_ERROR, Reason.SOURCE_ERROR)
    assert outcome.left_to_right.reason is Reason.DRAIN_ERROR


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


def test_one_that_is_over_needs_no_collector(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right, idle_timeout=1_000)
    way = weakref.ref(left)
    gc.disable()
    try:
        client.fin()
        server.fin()
        relay.wait()
        del relay, left, right
        harness.keep(socket.socket()).close()
        made = harness._sockets
        made[:] = [each for each in made if each is not way()]
        loop.do(lambda: None)
        assert way() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["much", "long"])
def test_one_that_lasts_is_spliced(name: str, how: str) -> None:
    harness = ModelHarness(name.split()[1])
    world = harness.world
    over: list[bool] = []
    with runtime(world.platform):
        worker = LoopsWorker(world.platform)
        loop = world.start(worker.step, "the loop")
        left, client = harness.pair()
        right, server = harness.pair()
        with worker.its_thread():
            relays = LoopRelays(current(), worker, None, _NoLoop())  # type: ignore[arg-type]
            relay = relays.begin(left, right, lambda: over.append(True))
        sent = 0
        while sent < (MANY_MESSAGES if how == "long" else MUCH_BYTES):
            assert how == "much" or world.counts["set"] == 0
            message = b"m" if how == "long" else bytes(MUCH_BYTES)
            client.write(message)
            assert server.read(len(message)) == message
            sent += len(message)
        harness.until(lambda: world.counts["set"] == 1, "it is spliced")
        client.write(b"the last")
        assert server.read(8) == b"the last"
        client.fin()
        assert server.read(1) == b""
        server.finish(b"answer")
        assert client.read_to_end() == b"answer"
        harness.until(lambda: over, "it is over")
        outcome = relay.outcome()
        towards, back = outcome.left_to_right, outcome.right_to_left
        assert (towards.bytes, towards.mover, towards.fallback) == (sent + 8, "SO_SPLICE", None)
        assert (back.bytes, back.mover) == (6, "copy")
        world.loops.remove(loop)
        relays.close()
        worker.close()
    assert worker.begun_elsewhere == []
    world.check_quiet()


class _NoLoop:
    """What such relays need of an event loop, in a modelled world."""

    def is_running(self) -> bool:
        return False

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        call()

    call_soon = call_soon_threadsafe
