"""The time limits of a splice, or of a pair: one policy object for both."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from .._platform.interface import Platform
from .flow import Reason
from .timers import Timer, Timers

#: Time between two looks at the count: this part of the idle time, or these seconds where that is
#: longer. An idle end comes late by at most that much; the larger of 25 % and 0.1 s is promised.
_LOOK_SHARE = 1 / 5
_LOOK_SECONDS = 0.05

#: A process that was stopped, or a machine that was suspended, finds the idle time over when it
#: goes on, with bytes waiting that nobody could move. A look that comes so late decides nothing
#: yet: the one after it does, so many seconds later.
_LATE_SECONDS = 0.05
_GRACE_SECONDS = 1.0


class TimeLimits:
    """Calls ``expire`` when a time limit has passed, and never early.

    TIMEOUT: ``timeout`` seconds after the start. IDLE: after ``idle_timeout`` seconds without
    traffic. Traffic is what ``moved()`` counts, and what a slow reader takes later: then
    ``undelivered()``, the bytes in the send buffers, becomes less.
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
        self._run_blocking = run_blocking  # for calls that may have to wait: counting, and ending
        self._lock = threading.Lock()
        self._over = False
        self._pending: dict[Reason, Timer] = {}
        self._idle: IdleClock | None = None

    def start(self) -> None:
        """Begin to measure time. Called once."""
        if self._timeout is not None:
            self._set(Reason.TIMEOUT, self._timeout, lambda: self._expire(Reason.TIMEOUT))
        if self._idle_timeout is not None:
            self._idle = IdleClock(self._idle_timeout, (0, 0), self._platform.now())
            self._look_again()

    def cancel(self) -> None:
        """Expire no more, unless the call is being made already."""
        with self._lock:
            self._over = True
            timers = list(self._pending.values())
            # They lead back to whoever has this: only the collector would free both.
            self._moved = self._undelivered = _nothing
            self._expire = _ignore
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


def _nothing() -> int:
    return 0


def _ignore(reason: Reason) -> None: ...


class IdleClock:
    """Tells whether a count has stood still for ``idle_timeout`` seconds, and when to look next.

    It is never early: a change counts as made at the moment when it is seen. Nor does it go by a
    look that came late, as after SIGSTOP and SIGCONT: who moves bytes has a turn before the next.
    """

    def __init__(self, idle_timeout: float, count: object, now: float) -> None:
        self._idle_timeout = idle_timeout
        self._step = max(idle_timeout * _LOOK_SHARE, _LOOK_SECONDS)
        self._count = count
        self._changed = now
        self._due = now
        self._has_doubted = False

    def has_passed(self, count: object, now: float) -> bool:
        """Return whether the idle time has passed; ``count`` is the count at ``now``."""
        if count != self._count:
            self._count, self._changed, self._has_doubted = count, now, False
        if now < self._changed + self._idle_timeout:
            return False
        if self._has_doubted or now < self._due + _LATE_SECONDS:
            return True
        self._has_doubted = True  # once: on a busy machine every look may be late
        self._changed = now + min(self._step, _GRACE_SECONDS) - self._idle_timeout
        return False

    def seconds_to_next_look(self, now: float) -> float:
        """Return how long to wait until the next look."""
        seconds = max(0.0, min(self._step, self._changed + self._idle_timeout - now))
        self._due = now + seconds
        return seconds


def check_seconds(name: str, seconds: float | None) -> float | None:
    """Return ``seconds`` unchanged.

    Raises:
        ValueError: not a positive, finite number.
        TypeError: not a number.
    """
    if seconds is None:
        return None
    expected = f"{name} must be a positive number of seconds or None, not"
    try:
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    except OverflowError:  # an int that no float can be
        raise ValueError(f"{expected} one of more than 300 digits") from None
    except TypeError:
        raise TypeError(f"{expected} {seconds!r}") from None
    raise ValueError(f"{expected} {seconds!r}")
