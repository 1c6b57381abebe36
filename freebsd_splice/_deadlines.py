"""When time ends a splice, or a pair: one policy object for both."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from ._flow import Reason
from ._port import Port
from ._watcher import Timer, Watcher

#: How often the count is looked at, as a part of the idle time, and seconds at least.  An idle end
#: comes late by at most that much, and is allowed the larger of 25 % and 0.1 s.
_LOOK_SHARE = 1 / 5
_LOOK_SECONDS = 0.05


class Deadlines:
    """Calls ``expire`` with TIMEOUT ``timeout`` seconds after the start, with IDLE once
    ``idle_timeout`` seconds have passed without traffic; never early.

    Traffic is what arrives, as ``moved()`` counts it, and what a slow reader takes of it later:
    then ``undelivered()``, bytes in the send buffers, becomes less.
    """

    def __init__(
        self,
        port: Port,
        watcher: Watcher,
        *,
        idle_timeout: float | None,
        timeout: float | None,
        moved: Callable[[], int],
        undelivered: Callable[[], int],
        expire: Callable[[Reason], object],
        errand: Callable[[Callable[[], object]], object],
    ) -> None:
        self._port = port
        self._watcher = watcher
        self._idle_timeout = check_seconds("idle_timeout", idle_timeout)
        self._timeout = check_seconds("timeout", timeout)
        self._moved = moved
        self._undelivered = undelivered
        self._expire = expire
        self._errand = errand  # makes a call that may have to wait: counting, and ending
        self._lock = threading.Lock()
        self._over = False
        self._timers: dict[Reason, Timer] = {}
        self._seen = 0, 0
        self._last_change = 0.0

    def start(self) -> None:
        self._last_change = self._port.now()
        if self._timeout is not None:
            self._set(Reason.TIMEOUT, self._timeout, lambda: self._expire(Reason.TIMEOUT))
        if self._idle_timeout is not None:
            self._look_again(self._idle_timeout)

    def cancel(self) -> None:
        with self._lock:
            self._over = True
            timers = list(self._timers.values())
        for timer in timers:
            timer.cancel()

    def _look(self) -> None:
        assert self._idle_timeout is not None
        found = self._moved(), self._undelivered()
        now = self._port.now()
        if found != self._seen:
            # Some time since the last look; counted from now, so that it is never too early.
            self._seen, self._last_change = found, now
        left = self._last_change + self._idle_timeout - now
        if left <= 0:
            self._expire(Reason.IDLE)
        else:
            self._look_again(left)

    def _look_again(self, left: float) -> None:
        assert self._idle_timeout is not None
        step = max(self._idle_timeout * _LOOK_SHARE, _LOOK_SECONDS)
        self._set(Reason.IDLE, min(left, step), self._look)

    def _set(self, which: Reason, seconds: float, call: Callable[[], object]) -> None:
        with self._lock:
            if not self._over:
                self._timers[which] = self._watcher.after(seconds, lambda: self._errand(call))


def check_seconds(name: str, seconds: float | None) -> float | None:
    """``seconds`` as they are; ValueError or TypeError where they are no time to wait for."""
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
