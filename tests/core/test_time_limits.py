"""Timers and timeouts, on a clock that the tests turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from conformance.harness import Harness
from freebsd_splice import Reason, Splice
from freebsd_splice._core.time_limits import IdleClock, TimeLimits
from freebsd_splice._core.timers import Timers
from support.platforms import SteppedPlatform, runtime


@pytest.mark.parametrize("idle", [0.05, 0.2, 0.4, 1.0, 7.0, 3600.0])
@pytest.mark.parametrize("seed", range(5))
def test_idle_is_never_early_and_late_by_a_quarter_at_most(idle: float, seed: int) -> None:
    platform, timers = _stepped()
    dice = random.Random(seed)
    moved, ended = 0, []
    deadlines = TimeLimits(
        platform,
        timers,
        idle_timeout=idle,
        timeout=None,
        moved=lambda: moved,
        undelivered=lambda: 0,
        expire=lambda reason: ended.append((reason, platform.time)),
        run_blocking=_at_once,
    )
    deadlines.start()
    tick = idle / 200
    for _ in range(4):  # traffic with pauses that are just no idle time
        for _ in range(int(dice.uniform(0.5, 0.95) * idle / tick)):
            platform.advance(tick)
        moved += 1
        assert not ended
    last = platform.time
    while not ended:
        platform.advance(tick)
    [(reason, when)] = ended
    assert reason is Reason.IDLE
    assert idle - 1e-6 <= when - last <= idle + max(0.1, 0.25 * idle)
    timers.close()


@pytest.mark.parametrize("idle", [0.2, 10.0, 3600.0])
def test_a_look_that_comes_late_ends_nothing(idle: float) -> None:
    """After SIGCONT it comes before anybody could move what had arrived meanwhile."""
    clock = IdleClock(idle, 0, 1000.0)
    clock.seconds_to_next_look(1000.0)
    goes_on = 1000.0 + 3 * idle
    assert not clock.has_passed(0, goes_on)
    turn = clock.seconds_to_next_look(goes_on)
    assert 0.04 < turn <= 1.0
    assert not clock.has_passed(1, goes_on + turn)


def test_looks_that_are_always_late_end_it_all_the_same() -> None:
    clock = IdleClock(10.0, 0, 1000.0)
    clock.seconds_to_next_look(1000.0)
    assert not clock.has_passed(0, 1030.0)
    clock.seconds_to_next_look(1030.0)
    assert clock.has_passed(0, 1060.0)


@pytest.mark.parametrize("timeout", [0.01, 1.0, 100.0])
def test_a_timeout_is_exact_on_the_clock_whatever_moves(timeout: float) -> None:
    platform, timers = _stepped()
    counter = iter(range(10**9))
    ended: list[tuple[Reason, float]] = []
    start = platform.time
    deadlines = TimeLimits(
        platform,
        timers,
        idle_timeout=timeout * 10,
        timeout=timeout,
        moved=lambda: next(counter),
        undelivered=lambda: 0,
        expire=lambda reason: ended.append((reason, platform.time)),
        run_blocking=_at_once,
    )
    deadlines.start()
    while not ended:
        platform.advance(timeout / 50)
    assert ended[0][0] is Reason.TIMEOUT
    assert timeout - 1e-6 <= ended[0][1] - start <= timeout * 1.05
    timers.close()


def test_a_cancelled_policy_never_speaks() -> None:
    platform, timers = _stepped()
    ended: list[Reason] = []
    deadlines = TimeLimits(
        platform,
        timers,
        idle_timeout=1,
        timeout=1,
        moved=lambda: 0,
        undelivered=lambda: 0,
        expire=ended.append,
        run_blocking=_at_once,
    )
    deadlines.cancel()  # over before it has started: a splice that ends in its constructor
    deadlines.start()
    platform.advance(10)
    assert not ended
    timers.close()


def test_a_splices_times_run_on_the_ports_clock(harness: Harness) -> None:
    platform = SteppedPlatform()
    with runtime(platform):
        source, sender = harness.pair()
        drain, _ = harness.pair()
        splice = Splice(source, drain, idle_timeout=60, timeout=1000)
        for _ in range(10):
            platform.advance(50)
            sender.write(b"x")
            before = splice.bytes
            platform.until(lambda: splice.bytes > before, "a byte moved")  # noqa: B023
        assert not splice.done
        for _ in range(75):
            platform.advance(1)
        outcome = splice.wait(0)
        assert outcome.reason is Reason.IDLE
        assert 560 <= outcome.seconds <= 575


def test_timers_are_called_in_order_and_once() -> None:
    platform, timers = _stepped()
    called: list[int] = []
    for seconds in (3, 1, 2):
        timers.after(seconds, partial(called.append, seconds))
    timers.after(1.5, lambda: called.append(0)).cancel()
    platform.advance(2.5)
    assert called == [1, 2]
    platform.advance(10)
    assert called == [1, 2, 3]
    timers.close()


def test_a_timer_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    platform, timers = _stepped()
    called: list[str] = []
    timers.after(1, lambda: 1 / 0)
    timers.after(1, lambda: called.append("after"))
    platform.advance(2)
    assert called == ["after"]
    assert "a call on the watcher thread failed" in caplog.text
    timers.close()


def test_cancelled_timers_do_not_pile_up() -> None:
    _platform, timers = _stepped()
    timers.after(5000, lambda: None)
    for _ in range(10_000):
        timers.after(3600, lambda: None).cancel()
    assert len(timers._heap) < 200
    timers.close()


def test_a_nearer_timer_wakes_the_sleeping_watcher(harness: Harness) -> None:
    from freebsd_splice._platform.system import SystemPlatform

    timers = Timers(SystemPlatform())
    called: list[str] = []
    timers.after(3600, lambda: called.append("far"))
    harness.until(lambda: timers._sleeps_until not in (float("-inf"), float("inf")), "asleep")
    timers.after(0.01, lambda: called.append("near"))
    harness.until(lambda: called, "the nearer timer")
    timers.close()
    assert called == ["near"]


def _stepped() -> tuple[SteppedPlatform, Timers]:
    platform = SteppedPlatform()
    return platform, Timers(platform)


def _at_once(call: Callable[[], object]) -> None:
    call()
