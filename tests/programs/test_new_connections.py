"""A proxy's connections: new, and nobody else's.  Short ones cost little, long ones are spliced."""

from __future__ import annotations

import errno
import gc
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from conformance.backends import MODELS, MOVERS
from conformance.harness import DEADLINE, Harness
from freebsd_splice import Reason, Relay, RelayOutcome
from freebsd_splice._kernel.backend import KernelBackend
from freebsd_splice._platform.interface import Endpoint, Pipe, Runner
from freebsd_splice._relay import GivenRelay
from freebsd_splice._runtime import current
from freebsd_splice._userspace import flow
from freebsd_splice._userspace.flow import MANY_MESSAGES, MOVES_A_TURN, MUCH_BYTES
from freebsd_splice._userspace.workers import LocalWorker
from model.harness import ModelHarness
from model.kqueue import Kqueue, ModelPollSet
from model.local_worker import LoopsWorker
from model.platform import Calls, ModelPlatform
from model.poller import ModelPoller
from support.platforms import RecordingPlatform, runtime

#: System calls of FreeBSD that each of these makes, by reading ``_system`` and ``_kernel_calls``.
CALLS: dict[Any, dict[str, int]] = {
    ModelPlatform: {
        "duplicate": 4,  # dup, F_GETFL, SO_ACCEPTCONN, FIONBIO
        "identity": 2,  # the connection's two addresses
        "close": 1,
        "close_original": 1,
        "is_connected": 1,
        "last_close_waits": 1,
        "lower_read_mark": 1,
        "peek": 1,
        "receive_into": 1,
        "reset_on_close": 1,
        "send": 1,
        "shutdown_write": 1,
        "take_error": 1,
        "unacknowledged": 1,
    },
    Calls: {
        "end_splice": 1,
        "receive_tls_mode": 1,
        "send_low_water": 1,
        "send_space": 1,
        "set_splice": 1,
        "spliced_count": 1,
        "tcp_state": 1,
        "transmit_tls_mode": 1,
        "unread": 1,
        "writable_now": 1,
    },
    Kqueue: {"arm": 2, "disarm": 1, "collect": 1},
    ModelPollSet: {"look": 1},
    ModelPoller: {"watch": 1, "forget": 1, "wait": 1},
}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What the block asks of the system."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, calls: int) -> None:
        method = getattr(owner, name)

        def counting(*given: Any, **options: Any) -> Any:
            counts[name] += calls
            return method(*given, **options)

        patched.setattr(owner, name, counting)

    with monkeypatch.context() as patched:
        for owner, methods in CALLS.items():
            for name, calls in methods.items():
                count(owner, name, calls)
        yield counts


def _short_connection(harness: ModelHarness, kind: type[Relay], **options: Any) -> Any:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = kind(left, right, **options)
    client.write(b"?")
    assert server.read(1) == b"?"
    server.write(b"!")
    assert client.read(1) == b"!"
    client.fin()
    assert server.read(1) == b""
    server.fin()
    assert client.read(1) == b""
    return relay.wait(DEADLINE)


@pytest.mark.parametrize("name", MODELS)
def test_a_short_connection_costs_half_of_what_a_splice_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = ModelHarness(name.split()[1])
    costs = []
    with runtime(harness.world.platform):
        for kind, options in ((Relay, {"close": True}), (GivenRelay, {"worker": None})):
            with counted(monkeypatch) as counts:
                outcome = _short_connection(harness, kind, **options)
            assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, 1)
            costs.append(counts.total())
    # FreeBSD: 85 and 36; OpenBSD, which asks less of its callers: 59 and 36.
    assert costs[1] <= 36, costs
    assert name == "model openbsd" or costs[1] <= costs[0] / 2
    assert outcome.left_to_right.backend == "userspace"
    assert "over before" in (outcome.left_to_right.fallback or "")
    harness.world.check_quiet()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["much", "long"])
def test_one_that_lasts_is_spliced(name: str, how: str) -> None:
    harness = ModelHarness(name.split()[1])
    with runtime(harness.world.platform):
        left, client = harness.pair()
        right, server = harness.pair()
        relay = GivenRelay(left, right, worker=None, initial=(b"initial", b""))
        assert server.read(7) == b"initial"
        assert harness.world.counts["set"] == 0
        assert {served_by for _, served_by in relay.progress()} <= {("userspace", "copy"), None}
        sent = 0
        while sent < MANY_MESSAGES if how == "long" else sent < 4 * MUCH_BYTES:
            message = b"m" if how == "long" else bytes(MUCH_BYTES)
            client.write(message)
            assert server.read(len(message)) == message
            sent += len(message)
        harness.until(lambda: harness.world.counts["set"] == 1, "it is spliced")
        client.write(b"the last")
        assert server.read(8) == b"the last"
        assert relay.progress()[0][1] == ("kernel", "SO_SPLICE")
        client.fin()
        assert server.read(1) == b""
        server.finish(b"answer")
        assert client.read_to_end() == b"answer"
        towards, back = (
            (outcome := relay.wait(DEADLINE)).left_to_right,
            outcome.right_to_left,
        )
        assert (towards.bytes, towards.mover, towards.fallback) == (7 + sent + 8, "SO_SPLICE", None)
        assert (back.bytes, back.mover) == (6, "copy")
    harness.world.check_quiet()


@pytest.mark.parametrize("message", [b"", b"m"])
def test_what_is_cancelled_before_its_first_splice(
    message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = ModelHarness("15.1")
    monkeypatch.setattr(KernelBackend, "submit", lambda self, call: None)
    monkeypatch.setattr(flow, "MANY_MESSAGES", 1)
    with runtime(harness.world.platform):
        left, client = harness.pair()
        right, server = harness.pair()
        relay = GivenRelay(left, right, worker=None)
        client.write(message)
        assert server.read(len(message)) == message
        outcome = relay.cancel().left_to_right
        assert (outcome.backend, outcome.mover, outcome.bytes) == (
            "userspace",
            "copy",
            len(message),
        )
    harness.world.check_quiet()


@pytest.mark.parametrize("name", MODELS)
def test_a_demanded_kernel_is_used_from_the_start(name: str) -> None:
    harness = ModelHarness(name.split()[1])
    harness.world.platform.demanded = True
    with runtime(harness.world.platform):
        outcome = _short_connection(harness, GivenRelay, worker=None)
        assert {outcome.left_to_right.mover, outcome.right_to_left.mover} == {"SO_SPLICE"}
    harness.world.check_quiet()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("demanded", [True, False])
def test_only_the_loop_begins_on_the_loops_worker(name: str, demanded: bool) -> None:
    """Its buffer is of one thread. F13: a splice's remainder begins on a thread of the pool."""
    harness = ModelHarness(name.split()[1])
    world = harness.world
    world.platform.demanded = demanded
    with runtime(world.platform):
        worker = LoopsWorker(world.platform)
        loop = world.start(worker.step, "the loop")
        left, client = harness.pair()
        right, server = harness.pair(small_buffers=True)
        with worker.its_thread():
            relay = GivenRelay(left, right, worker=worker, initial=(b"first", b""))
        data = random.Random(13).randbytes(600_000)
        writing = harness.in_background(client.finish, data)
        harness.sleep(1.0)  # until the FIN is there, and the drain full
        assert server.read_to_end() == b"first" + data
        writing.join()
        server.fin()
        assert relay.wait(DEADLINE).reason is Reason.EOF
        world.loops.remove(loop)
        worker.close()
    assert worker.begun_elsewhere == []
    world.check_quiet()


@pytest.mark.parametrize("name", MODELS)
def test_the_loop_ends_no_splice(name: str) -> None:
    """F24, F34: it could have to wait there, and with it all clients."""
    harness = ModelHarness(name.split()[1])
    world = harness.world
    held_up: list[bool] = []
    with runtime(world.platform):
        worker = LoopsWorker(world.platform)
        loop = world.start(worker.step, "the loop")
        left, client = harness.pair()
        right, server = harness.pair()
        with worker.its_thread():
            relay = GivenRelay(left, right, worker=worker)
        for _ in range(MANY_MESSAGES):
            client.write(b"m")
            assert server.read(1) == b"m"
        harness.until(lambda: world.counts["set"] == 1, "one way is spliced")
        world.locked.add((left.endpoint, "end"))
        world.until_unlocked = lambda: held_up.append(worker.is_its_thread)
        world.loops.insert(0, world.loops.pop())  # before the event is heard of
        server.reset()
        assert relay.wait(DEADLINE).error is not None
        world.loops.remove(loop)
        worker.close()
    assert held_up
    assert not any(held_up)
    world.check_quiet()


@pytest.mark.parametrize("name", ["model 14.3", "model 15.1"])
def test_what_the_kernel_would_refuse_is_found_before_asking(name: str) -> None:
    """F9, F22"""
    harness = ModelHarness(name.split()[1])
    with runtime(harness.world.platform):
        left, client = harness.pair()
        right, server = harness.pair()
        right.endpoint.encrypts = True
        relay = GivenRelay(left, right, worker=None)
        data = bytes(4 * MUCH_BYTES)
        writing = harness.in_background(client.finish, data)
        assert server.read_to_end() == data
        writing.join()
        server.fin()
        outcome = relay.wait(DEADLINE).left_to_right
        assert (outcome.bytes, outcome.mover) == (len(data), "copy")
        assert "KTLS" in (outcome.fallback or "")
        assert harness.world.counts["set"] == 0
    harness.world.check_quiet()


@pytest.fixture(params=[*MOVERS, None])
def local(request: pytest.FixtureRequest) -> Iterator[LocalWorker]:
    """A worker whose thread is the test's."""
    with runtime(RecordingPlatform(), request.param):
        worker = current().local_worker()
        if worker is None:
            pytest.skip("no poller of this system can be watched")
        yield worker
        worker.close()


def _turn_until(harness: Harness, worker: LocalWorker, condition: Any, what: str) -> None:
    def turned() -> object:
        worker.turn()
        return condition()

    harness.until(turned, what)


def _closed(worker: LocalWorker, relay: GivenRelay, harness: Harness) -> RelayOutcome:
    _turn_until(harness, worker, lambda: relay.done, "the relay is over")
    return relay.wait(0)


def test_the_callers_thread_moves_what_is_little(harness: Harness, local: LocalWorker) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    client.write(b"there already")
    relay = GivenRelay(left, right, worker=local, initial=(b"initial, ", b""))
    _turn_until(harness, local, lambda: relay.bytes[0] == 22, "it is sent")
    assert server.read(22) == b"initial, there already"
    for number in range(100):
        client.write(b"%9d" % number)
        _turn_until(harness, local, lambda: not server.has_nothing_to_read(), "it arrives")
        assert server.read(9) == b"%9d" % number
    client.fin()
    _turn_until(harness, local, lambda: not server.has_nothing_to_read(), "the FIN arrives")
    assert server.read(1) == b""
    server.finish(b"answer")
    outcome = _closed(local, relay, harness)
    assert client.read_to_end() == b"answer"
    assert (outcome.reason, relay.bytes) == (Reason.EOF, (22 + 900, 6))
    assert left.fileno() == right.fileno() == -1
    assert "worker-0" in " ".join(thread.name for thread in threading.enumerate())


def test_a_thread_moves_what_is_much(harness: Harness, local: LocalWorker) -> None:
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = GivenRelay(left, right, worker=local)
    data = random.Random(3).randbytes(5_000_000)
    got: list[bytes] = []
    writing = harness.in_background(client.finish, data)
    reading = harness.in_background(lambda: got.append(server.read_to_end()))
    _turn_until(harness, local, lambda: relay.bytes[0] >= 4 * MUCH_BYTES, "it is busy")
    reading.join()  # without any turn of this thread's
    assert got == [data]
    writing.join()
    server.fin()
    outcome = _closed(local, relay, harness)
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, len(data))


class _InSmallPiecesPlatform(RecordingPlatform):
    """The first bytes come in pieces, as fast as they are moved."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces = MOVES_A_TURN

    def receive_into(self, endpoint: Endpoint, buffer: memoryview) -> int:
        return super().receive_into(endpoint, buffer[: self._most(len(buffer))])

    def splice_in(self, source: Endpoint, pipe: Pipe, count: int) -> int:
        return super().splice_in(source, pipe, self._most(count))

    def _most(self, count: int) -> int:
        self._pieces -= 1
        return count if self._pieces < 0 else 1_000


@pytest.mark.parametrize("mover", [*MOVERS, None])
def test_a_thread_moves_what_is_much_from_the_second_turn_on(
    harness: Harness, mover: str | None
) -> None:
    with runtime(_InSmallPiecesPlatform(), mover):
        worker = current().local_worker()
        if worker is None:
            pytest.skip("no poller of this system can be watched")
        left, client = harness.pair()
        right, server = harness.pair()
        client.write_what_fits()
        harness.until(lambda: harness.readable(left), "it is there")
        relay = GivenRelay(left, right, worker=worker)
        reading = harness.in_background(server.read_to_end)
        client.fin()
        _turn_until(harness, worker, lambda: relay.bytes[0] >= 4 * MUCH_BYTES, "it is busy")
        reading.join()
        server.fin()
        assert _closed(worker, relay, harness).reason is Reason.EOF
        worker.close()


def test_an_idle_drain_that_dies_is_noticed(harness: Harness, local: LocalWorker) -> None:
    """F16"""
    left, _ = harness.pair()
    right, server = harness.pair()
    relay = GivenRelay(left, right, worker=local)
    server.reset()
    outcome = _closed(local, relay, harness)
    assert outcome.reason in (Reason.DRAIN_ERROR, Reason.SOURCE_ERROR)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ECONNRESET


def test_a_message_that_finds_the_drain_full_loses_nothing(
    harness: Harness, local: LocalWorker
) -> None:
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = GivenRelay(left, right, worker=local)
    local.turn()
    sent, before = bytearray(), -1
    while relay.bytes[0] != before:  # less than MUCH_BYTES at a time, until no more goes in
        before = relay.bytes[0]
        for _ in range(8):
            message = random.Random(len(sent)).randbytes(1_001)
            client.write(message)
            sent += message
            local.turn()
    assert relay.bytes[0] < len(sent)
    got: list[bytes] = []
    reading = harness.in_background(lambda: got.append(server.read_to_end()))
    client.fin()
    _turn_until(harness, local, lambda: relay.bytes[0] == len(sent), "all is sent")
    server.fin()
    outcome = _closed(local, relay, harness)
    reading.join()
    assert got == [bytes(sent)]
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, len(sent))


def test_a_message_for_a_dead_drain_is_unsent(harness: Harness, local: LocalWorker) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = GivenRelay(left, right, worker=local)
    client.write(b"one")
    _turn_until(harness, local, lambda: relay.bytes[0] == 3, "it is sent")
    server.read(3)
    client.write(b"two")
    server.reset()
    outcome = _closed(local, relay, harness)
    up = outcome.left_to_right
    assert b"one" + up.unsent in (b"one", b"onetwo")
    assert up.bytes + len(up.unsent) in (3, 6)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ECONNRESET


def test_a_relay_that_is_over_needs_no_collector(harness: Harness, local: LocalWorker) -> None:
    """A proxy has thousands a second: each search for what holds itself would take long."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = GivenRelay(left, right, worker=local, idle_timeout=None)
    client.fin()
    server.fin()
    _closed(local, relay, harness)
    remembered = weakref.ref(relay)
    gc.disable()
    try:
        del relay
        assert remembered() is None
    finally:
        gc.enable()


def test_another_thread_may_end_it(harness: Harness, local: LocalWorker) -> None:
    left, client = harness.pair()
    right, _ = harness.pair()
    relay = GivenRelay(left, right, worker=local)
    harness.in_background(relay.cancel).join()
    assert relay.wait(0).reason is Reason.CANCELLED
    local.turn()
    assert client.read_to_end() == b""


class _RaisingPlatform(RecordingPlatform):
    """A signal's handler raises, or there is a defect, where certain bytes are about to be sent."""

    def __init__(self, raised: type[BaseException]) -> None:
        super().__init__()
        self._raised = raised

    def send(self, endpoint: Endpoint, data: memoryview) -> int:
        if bytes(data) == b"interrupted":
            raise self._raised
        return super().send(endpoint, data)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_signals_exception_is_the_programs_and_ends_the_flow(
    harness: Harness, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Else what that flow holds would be in a buffer that the others use."""
    with runtime(_RaisingPlatform(raised)):
        worker = current().local_worker()
        if worker is None:
            pytest.skip("no poller of this system can be watched")
        left, client = harness.pair()
        right, server = harness.pair()
        relay = GivenRelay(left, right, worker=worker)
        others = harness.pair(), harness.pair()
        other = GivenRelay(others[0][0], others[1][0], worker=worker)
        client.write(b"interrupted")
        with pytest.raises(raised) if raised is not ValueError else nullcontext():
            _turn_until(harness, worker, lambda: relay.done, "it has failed")
        others[0][1].write(b"another's")
        _turn_until(harness, worker, lambda: other.bytes[0], "the other goes on")
        assert others[1][1].read(9) == b"another's"
        outcome = _closed(worker, relay, harness)
        assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.SOURCE_ERROR, 0)
        assert outcome.left_to_right.unsent == b"interrupted"
        with pytest.raises(ConnectionResetError):
            server.read(1)
        other.cancel()
        worker.close()


def test_a_defect_at_the_start_is_an_end(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    with runtime(_RaisingPlatform(ValueError)):
        worker = current().local_worker()
        if worker is None:
            pytest.skip("no poller of this system can be watched")
        left, client = harness.pair()
        right, _ = harness.pair()
        client.write(b"interrupted")
        harness.until(lambda: harness.readable(left), "it is there")
        outcome = _closed(worker, GivenRelay(left, right, worker=worker), harness)
        assert outcome.reason is Reason.SOURCE_ERROR
        worker.close()


class _NoWatcherPlatform(RecordingPlatform):
    """A system that has no thread left for the timers."""

    def run(self, step: Callable[[], bool], name: str) -> Runner:
        if name == "freebsd-splice-watcher":
            raise RuntimeError("can't start new thread")
        return super().run(step, name)


def test_without_a_thread_for_its_times_nothing_has_begun(harness: Harness) -> None:
    """Its caller closes the sockets then, and nothing may watch numbers that are others' soon."""
    with runtime(_NoWatcherPlatform()):
        worker = current().local_worker()
        if worker is None:
            pytest.skip("no poller of this system can be watched")
        left, _ = harness.pair()
        right, _ = harness.pair()
        with pytest.raises(RuntimeError, match="new thread"):
            GivenRelay(left, right, worker=worker, idle_timeout=1.0)
        assert not worker._watched
        worker.close()


def test_a_closed_socket_is_refused(harness: Harness) -> None:
    with runtime(RecordingPlatform()):
        left, _ = harness.pair()
        right, _ = harness.pair()
        right.close()
        with pytest.raises(OSError, match="closed") as caught:
            GivenRelay(left, right, worker=None)
        assert caught.value.errno == errno.EBADF
        assert left.fileno() >= 0
