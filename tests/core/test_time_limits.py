"""Timers and timeouts, on a clock that the tests turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from conformance.harness import Harness
from freebsd_splice import Reason, Splice
from freebsd_splice._core.time_limits import Deadlines
from freebsd_splice._core.timers import Watcher
from ports import SteppedPort, runtime


@pytest.mark.parametrize("idle", [0.05, 0.2, 0.4, 1.0, 7.0, 3600.0])
@pytest.mark.parametrize("seed", range(5))
def test_idle_is_never_early_and_late_by_a_quarter_at_most(idle: float, seed: int) -> None:
    port, watcher = _stepped()
    dice = random.Random(seed)
    moved, ended = 0, []
    deadlines = Deadlines(
        port,
        watcher,
        idle_timeout=idle,
        timeout=None,
        moved=lambda: moved,
        undelivered=lambda: 0,
        expire=lambda reason: ended.append((reason, port.time)),
        errand=_at_once,
    )
    deadlines.start()
    tick = idle / 200
    for _ in range(4):  # traffic with pauses that are just no idle time
        for _ in range(int(dice.uniform(0.5, 0.95) * idle / tick)):
            port.advance(tick)
        moved += 1
        assert not ended
    last = port.time
    while not ended:
        port.advance(tick)
    [(reason, when)] = ended
    assert reason is Reason.IDLE
    assert idle - 1e-6 <= when - last <= idle + max(0.1, 0.25 * idle)
    watcher.close()


@pytest.mark.parametrize("timeout", [0.01, 1.0, 100.0])
def test_a_timeout_is_exact_on_the_clock_whatever_moves(timeout: float) -> None:
    port, watcher = _stepped()
    counter = iter(range(10**9))
    ended: list[tuple[Reason, float]] = []
    start = port.time
    deadlines = Deadlines(
        port,
        watcher,
        idle_timeout=timeout * 10,
        timeout=timeout,
        moved=lambda: next(counter),
        undelivered=lambda: 0,
        expire=lambda reason: ended.append((reason, port.time)),
        errand=_at_once,
    )
    deadlines.start()
    while not ended:
        port.advance(timeout / 50)
    assert ended[0][0] is Reason.TIMEOUT
    assert timeout - 1e-6 <= ended[0][1] - start <= timeout * 1.05
    watcher.close()


def test_a_cancelled_policy_never_speaks() -> None:
    port, watcher = _stepped()
    ended: list[Reason] = []
    deadlines = Deadlines(
        port,
        watcher,
        idle_timeout=1,
        timeout=1,
        moved=lambda: 0,
        undelivered=lambda: 0,
        expire=ended.append,
        errand=_at_once,
    )
    deadlines.cancel()  # over before it has started: a splice that ends in its constructor
    deadlines.start()
    port.advance(10)
    assert not ended
    watcher.close()


def test_a_splices_times_run_on_the_ports_clock(harness: Harness) -> None:
    port = SteppedPort()
    with runtime(port):
        source, sender = harness.pair()
        drain, _ = harness.pair()
        splice = Splice(source, drain, idle_timeout=60, timeout=1000)
        for _ in range(10):
            port.advance(50)
            sender.write(b"x")
            before = splice.bytes
            port.until(lambda: splice.bytes > before, "a byte moved")  # noqa: B023
        assert not splice.done
        for _ in range(75):
            port.advance(1)
        outcome = splice.wait(0)
        assert outcome.reason is Reason.IDLE
        assert 560 <= outcome.seconds <= 575


def test_timers_are_called_in_order_and_once() -> None:
    port, watcher = _stepped()
    called: list[int] = []
    for seconds in (3, 1, 2):
        watcher.after(seconds, partial(called.append, seconds))
    watcher.after(1.5, lambda: called.append(0)).cancel()
    port.advance(2.5)
    assert called == [1, 2]
    port.advance(10)
    assert called == [1, 2, 3]
    watcher.close()


def test_a_timer_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    port, watcher = _stepped()
    called: list[str] = []
    watcher.after(1, lambda: 1 / 0)
    watcher.after(1, lambda: called.append("after"))
    port.advance(2)
    assert called == ["after"]
    assert "a call of the watcher's failed" in caplog.text
    watcher.close()


def test_cancelled_timers_do_not_pile_up() -> None:
    _port, watcher = _stepped()
    watcher.after(5000, lambda: None)
    for _ in range(10_000):
        watcher.after(3600, lambda: None).cancel()
    assert len(watcher._heap) < 200
    watcher.close()


def test_a_nearer_timer_wakes_the_sleeping_watcher(harness: Harness) -> None:
    from freebsd_splice._platform.system import SystemPort

    watcher = Watcher(SystemPort())
    called: list[str] = []
    watcher.after(3600, lambda: called.append("far"))
    harness.until(lambda: watcher._sleeps_until not in (float("-inf"), float("inf")), "asleep")
    watcher.after(0.01, lambda: called.append("near"))
    harness.until(lambda: called, "the nearer timer")
    watcher.close()
    assert called == ["near"]


def _stepped() -> tuple[SteppedPort, Watcher]:
    port = SteppedPort()
    return port, Watcher(port)


def _at_once(call: Callable[[], object]) -> None:
    call()
