"""Looks at an event loop's relays for their idle time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .._core.time_limits import IdleClock


class Idling(Protocol):
    """What can be ended for having had no traffic."""

    def traffic(self) -> object:
        """Return what changes while there is traffic, as ``IdleClock`` wants it."""
        ...

    def end_idle(self) -> None:
        """End it as one that had no traffic for its idle time."""
        ...


class IdleLooks:
    """Ends each relay that has had no traffic for ``idle_timeout`` seconds, and none too early.

    Each is looked at every tenth of that time. So an end is late by a fifth at most; or later,
    where the looks themselves are late.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, now: Callable[[], float], idle_timeout: float
    ) -> None:
        self._loop = loop
        self._now = now
        self._idle_timeout = idle_timeout
        #: When each is to be looked at, as the loop's time; the next one first.
        self._looks: dict[Idling, tuple[float, IdleClock]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, relay: Idling) -> None:
        self._look_later(relay, IdleClock(self._idle_timeout, (0, 0), self._now()))

    def forget(self, relay: Idling) -> None:
        self._looks.pop(relay, None)

    def _look_later(self, relay: Idling, clock: IdleClock) -> None:
        seconds = max(self._idle_timeout / 10, 0.025)
        clock.expect_look(self._now() + seconds)
        self._looks[relay] = self._loop.time() + seconds, clock
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = []
        for relay, (when, clock) in self._looks.items():
            if when > now:
                self._timer = self._loop.call_at(when, self._look)
                break
            due.append((relay, clock))
        for relay, clock in due:
            del self._looks[relay]
            # The traffic first: it counts as of the time that is asked for after it.
            if clock.has_passed(relay.traffic(), self._now()):
                relay.end_idle()
            else:
                self._look_later(relay, clock)
