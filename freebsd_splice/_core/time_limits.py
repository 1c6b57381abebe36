"""When time ends a splice, or a pair: one policy object for both."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from .._platform.interface import Platform
from .flow import Reason
from .timers import Timer, Timers

#: How often the count is looked at, as a part of the idle time, and seconds at least.  An idle end
#: comes late by at most that much, and is allowed the larger of 25 % and 0.1 s.
_LOOK_SHARE = 1 / 5
_LOOK_SECONDS = 0.05


class TimeLimits:
    """Calls ``expire`` with TIMEOUT ``timeout`` seconds after the start, with IDLE once
    ``idle_timeout`` seconds have passed without traffic; never early.

    Traffic is what arrives, as ``moved()`` counts it, and what a slow reader takes of it later:
    then ``undelivered()``, bytes in the send buffers, becomes less.
    """

    def __init__(
        self,
        platform: Platform,
        timers: Timers,
        *,
        idle_timeout: float | None,
        timeout: float | None,
        moved: Callable[[], int],
        undelivered: Callable[[], int],
        expire: Callable[[Reason], object],
        run_blocking: Callable[[Callable[[], object]], object],
    ) -> None:
        self._platform = platform
        self._timers = timers
        self._idle_timeout = check_seconds("idle_timeout", idle_timeout)
        self._timeout = check_seconds("timeout", timeout)
        self._moved = moved
        self._undelivered = undelivered
        self._expire = expire
        self._run_blocking = (
            run_blocking  # makes a call that may have to wait: counting, and ending
        )
        self._lock = threading.Lock()
        self._over = False
        self._pending: dict[Reason, Timer] = {}
        self._idle: IdleClock | None = None

    def start(self) -> None:
        if self._timeout is not None:
            self._set(Reason.TIMEOUT, self._timeout, lambda: self._expire(Reason.TIMEOUT))
        if self._idle_timeout is not None:
            self._idle = IdleClock(self._idle_timeout, (0, 0), self._platform.now())
            self._look_again()

    def cancel(self) -> None:
        with self._lock:
            self._over = True
            timers = list(self._pending.values())
        for timer in timers:
            timer.cancel()

    def _look(self) -> None:
        assert self._idle is not None
        if self._idle.has_passed((self._moved(), self._undelivered()), self._platform.now()):
            self._expire(Reason.IDLE)
        else:
            self._look_again()

    def _look_again(self) -> None:
        assert self._idle is not None
        self._set(Reason.IDLE, self._idle.seconds_to_next_look(self._platform.now()), self._look)

    def _set(self, which: Reason, seconds: float, call: Callable[[], object]) -> None:
        with self._lock:
            if not self._over:
                self._pending[which] = self._timers.after(seconds, lambda: self._run_blocking(call))


class IdleClock:
    """Whether a count has stood still for ``idle_timeout`` seconds, and when to look next.

    It is never early: a change is taken for one of the moment in which it is seen.
    """

    def __init__(self, idle_timeout: float, count: object, now: float) -> None:
        self._idle_timeout = idle_timeout
        self._step = max(idle_timeout * _LOOK_SHARE, _LOOK_SECONDS)
        self._count = count
        self._changed = now

    def has_passed(self, count: object, now: float) -> bool:
        """``count`` is what it is now."""
        if count != self._count:
            self._count, self._changed = count, now
        return now >= self._changed + self._idle_timeout

    def seconds_to_next_look(self, now: float) -> float:
        return max(0.0, min(self._step, self._changed + self._idle_timeout - now))


def check_seconds(name: str, seconds: float | None) -> float | None:
    """``seconds`` as they are; ValueError where they are no time to wait for."""
    if seconds is None:
        return None
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{name} must be a positive number of seconds or None, not {seconds!r}")
    return seconds
