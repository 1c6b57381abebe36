"""What serves a pair: the kernel, userspace in its place, or nobody; and calls that hang."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from conformance.harness import DEADLINE, Harness
from freebsd_splice import BackendUnavailable, Reason, Relay, Splice, _runtime
from freebsd_splice._userspace.workers import Engine
from model.idle import IdleKernelPlatform
from model.tcp import SYN_SENT
from stateful.rig import Rig, rig
from support.platforms import runtime


@pytest.fixture(params=["14.3", "15.1"])
def on(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig(request.param) as made:
        yield made


def _make_unfit(on: Rig, what: str) -> None:
    if what == "receives by KTLS":
        on.source.endpoint.decrypts = True
    elif what == "sends by KTLS":
        on.drain.endpoint.encrypts = True
    else:
        on.source.endpoint.tcp = False


@pytest.mark.parametrize("what", ["receives by KTLS", "sends by KTLS", "is no TCP"])
def test_what_the_kernel_would_refuse_is_served_by_userspace(on: Rig, what: str) -> None:
    """F9, F22: found out before the call, and said in the outcome."""
    _make_unfit(on, what)
    splice = on.splice()
    on.arrive(b"data")
    on.sender.fin()
    on.now()
    assert on.receiver.read() == b"data"
    outcome = splice.wait()
    assert (outcome.reason, outcome.bytes, outcome.backend) == (Reason.EOF, 4, "userspace")
    assert outcome.mover == "copy"
    assert outcome.fallback is not None
    assert on.world.counts["set"] == 0


@pytest.mark.parametrize("demanded", ["by the caller", "by the environment"])
def test_or_by_nobody(on: Rig, demanded: str) -> None:
    _make_unfit(on, "sends by KTLS")
    on.world.platform.demanded = demanded == "by the environment"
    for make in (Splice, Relay):
        with pytest.raises(BackendUnavailable, match="KTLS") as refused:
            make(on.source, on.drain, fallback=demanded == "by the environment")
        assert refused.value.errno == errno.EPROTONOSUPPORT
    assert on.world.counts["set"] == 0


def test_the_two_directions_of_a_relay_are_served_each_by_itself(on: Rig) -> None:
    _make_unfit(on, "receives by KTLS")
    relay = Relay(on.source, on.drain)
    on.now()
    on.sender.fin()
    on.receiver.fin()
    on.now()
    outcome = relay.wait()
    assert outcome.left_to_right.backend == "userspace"
    assert outcome.right_to_left.backend == "kernel"


def test_without_a_kernel_nothing_but_the_kernel_is_an_error(harness: Harness) -> None:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    with pytest.raises(BackendUnavailable, match="kernel was demanded") as refused:
        Splice(source, drain, fallback=False)
    assert refused.value.errno == errno.ENOPROTOOPT


def test_somebody_elses_drain_is_refused_unasked(on: Rig) -> None:
    """F20, F22"""
    other, _ = on.world.pair()
    on.world.calls.set_splice(other.fileno(), on.drain.fileno(), 0, 0)
    with pytest.raises(OSError, match="somebody else") as refused:
        Splice(on.source, on.drain)
    assert refused.value.errno == errno.EBUSY
    assert on.world.counts["set"] == 1
    on.world.calls.end_splice(other.fileno())
    on.splice().cancel()  # both are as free as before


def test_somebody_elses_source_is_an_outcome(on: Rig) -> None:
    """It can't be seen beforehand."""
    other, _ = on.world.pair()
    on.world.calls.set_splice(on.source.fileno(), other.fileno(), 0, 0)
    outcome = on.splice().wait()
    assert outcome.error is not None
    assert outcome.error.errno == errno.EBUSY
    assert len(on.world.splices) == 1, "somebody else's splice was ended"
    on.world.calls.end_splice(on.source.fileno())


def test_a_source_still_connecting_is_served_by_userspace(on: Rig) -> None:
    on.source.endpoint.state = SYN_SENT
    splice = on.splice()
    on.source.endpoint.state = None
    on.sender.fin()
    on.now()
    outcome = splice.wait()
    assert (outcome.reason, outcome.backend) == (Reason.EOF, "userspace")
    assert outcome.fallback is not None
    assert "still connecting" in outcome.fallback


def test_a_relay_whose_drain_refuses_to_be_one_ends(on: Rig) -> None:
    """Its other direction lives, and would live on alone."""
    other, _ = on.world.pair()
    on.world.calls.set_splice(on.source.fileno(), other.fileno(), 0, 0)
    relay = Relay(on.source, on.drain)
    on.now()
    assert relay.done
    outcome = relay.wait()
    assert outcome.reason is Reason.DRAIN_ERROR
    assert outcome.right_to_left.reason is Reason.CANCELLED
    on.world.calls.end_splice(on.source.fileno())


@pytest.mark.parametrize("backend", ["kernel", "userspace"])
def test_a_relay_to_a_socket_that_is_still_connecting_ends(on: Rig, backend: str) -> None:
    if backend == "userspace":
        _make_unfit(on, "is no TCP")
    on.drain.endpoint.state = SYN_SENT
    relay = Relay(on.source, on.drain)
    on.now()
    outcome = relay.wait(0)
    assert outcome.error is not None
    assert (outcome.reason, outcome.error.errno) == (Reason.DRAIN_ERROR, errno.ENOTCONN)
    assert outcome.right_to_left.reason is Reason.CANCELLED


def test_a_busy_pair_may_have_cost_the_source_before_15_1(on: Rig) -> None:
    """F22, F20: somebody's drain that is full can't be told from a full one."""
    other, others_peer = on.world.pair()
    on.world.calls.set_splice(other.fileno(), on.drain.fileno(), 0, 0)
    while others_peer.write(b"x" * 5_000):
        on.now()
    outcome = on.splice().wait()
    assert outcome.error is not None
    if on.world.version == "14.3":
        assert outcome.error.errno == errno.ENOTRECOVERABLE
        assert "only closing the source helps" in str(outcome.error)
        assert on.source.endpoint.poisoned
    else:
        assert outcome.error.errno == errno.EBUSY
    on.world.calls.end_splice(other.fileno())


def test_bytes_given_ahead_come_back_where_nobody_sends_them(
    on: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on.splice().cancel()

    def none_left(self: Engine, *given: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Engine, "flows", none_left)
    outcome = Splice(on.source, on.drain, initial=b"hello").wait()
    assert (outcome.bytes, outcome.unsent) == (0, b"hello")
    assert "Too many open files" in str(outcome.error)
    assert "Too many open files" in caplog.text


def test_what_a_splice_leaves_behind_needs_no_new_worker(
    on: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F13, in a program that has run out of descriptors meanwhile."""
    splice = on.splice()

    def none_left(few: bool = False) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(on.world.platform, "poller", none_left)
    monkeypatch.setattr(on.world.platform, "cpus", lambda: 4)
    data = on.fill_the_drain()
    on.arrive(b"and the rest" * 500)
    on.sender.fin()
    on.now()
    assert on.read() == data + b"and the rest" * 500
    on.now()
    on.ended(splice, Reason.EOF, len(data) + 6_000)


def test_two_objects_of_one_socket_share_its_error(on: Rig) -> None:
    """The system tells it once: who comes second must not take what follows for an EOF."""
    other, _ = on.world.pair()
    forth, back = on.splice(), Splice(other, on.source.dup())
    on.sender.reset()
    on.world.deliver_reset(on.sender.outgoing)
    assert back.cancel().reason is Reason.DRAIN_ERROR
    outcome = forth.cancel()
    assert outcome.reason is Reason.SOURCE_ERROR
    assert isinstance(outcome.error, ConnectionResetError)


def test_another_object_of_a_spliced_socket_is_refused_unasked(on: Rig) -> None:
    """F23: the kernel would refuse it too, and set the live splice's count to 0."""
    splice = on.splice(limit=10)
    on.arrive(b"x" * 8)
    on.now()
    other, _ = on.world.pair()
    with pytest.raises(OSError, match="is the source of a splice") as refused:
        Splice(on.source.dup(), other)
    assert refused.value.errno == errno.EBUSY
    on.arrive(b"x" * 8)
    on.now()
    on.ended(splice, Reason.LIMIT, 10)


def test_a_defect_ends_the_flow_and_leaves_nothing(
    on: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    splice = on.splice()

    def broken(source: int) -> int:
        raise RuntimeError("a defect")

    on.world.calls.spliced_count = broken  # type: ignore[method-assign]
    on.sender.fin()
    on.now()
    outcome = splice.wait()
    assert outcome.reason is Reason.SOURCE_ERROR
    assert outcome.error is not None
    assert outcome.error.errno == errno.EIO
    assert "a defect" in caplog.text


@pytest.mark.parametrize("version", ["15.1", "openbsd"])
def test_no_kernel_is_given_the_idle_time(version: str) -> None:
    """F11, F19: the package keeps it itself, on all of them."""
    with rig(version) as on:
        splice = on.splice(idle_timeout=5)
        assert on.world.splices[0].idle == 0
        on.world.quiet(4)
        on.arrive(b"x")
        on.now()
        on.world.quiet(4.9)
        assert not splice.done
        on.world.quiet(1.4)
        on.ended(splice, Reason.IDLE, 1)


def test_openbsds_short_splices_are_continued() -> None:
    with rig("openbsd") as on:
        on.kernel.short_splices = True
        splice = on.splice(limit=1000)
        on.arrive(b"x" * 1005)
        on.now()
        on.ended(splice, Reason.LIMIT, 1000)
        assert on.source.recv(10) == b"xxxxx"


@pytest.mark.parametrize("call", ["end", "count"])
def test_a_call_that_hangs_holds_up_its_own_flow_alone(harness: Harness, call: str) -> None:
    """F24: somebody holds one socket's lock."""
    platform, asked, let_go = IdleKernelPlatform(), threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        assert let_go.wait(DEADLINE)

    platform.world.until_unlocked = hang
    with runtime(platform):
        stuck = [_splice(harness) for _ in range(4)]
        others = [_splice(harness, timeout=0.3) for _ in range(4)]
        flow = stuck[0]._flow
        source = platform.world.endpoint(flow.pair[0])  # type: ignore[attr-defined]
        platform.world.locked.add((source, call))
        for _ in range(50):  # events and looks, again and again
            flow.wake()  # type: ignore[attr-defined]
        assert asked.wait(DEADLINE)
        for other in others:
            assert other.wait(DEADLINE).reason is Reason.TIMEOUT
        threads = [name for name in _thread_names() if "blocking" in name]
        assert len(threads) <= 4, "a thread for each look at a flow that hangs"
        assert not stuck[0].done
        let_go.set()


def _splice(harness: Harness, timeout: float | None = None) -> Splice:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    return Splice(source, drain, timeout=timeout)


def _thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads and a fork
def test_a_forked_child_leaves_the_parents_kqueue_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = IdleKernelPlatform()
    with runtime(platform):
        splice = _splice(harness)
        abandoned: list[bool] = []
        made = _runtime.current()._kernel
        assert made is not None
        monkeypatch.setattr(made.events._events, "abandon", lambda: abandoned.append(True))
        child = os.fork()
        if child == 0:
            os._exit(len(abandoned))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 1
        assert not abandoned
        splice.cancel()
