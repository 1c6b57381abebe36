"""The caller's time limits, for waits that the loop itself does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from math import inf
from time import monotonic

from .._core.flow import Reason
from .._core.time_limits import IdleClock, check_seconds

#: Seconds between two checks whether a connection that nothing reads or writes is lost.
_LOST_SECONDS = 0.8


class LoopTimeLimits:
    """``timeout`` seconds from now, and ``idle_timeout`` seconds in which nothing has moved."""

    def __init__(self, *, idle_timeout: float | None, timeout: float | None) -> None:
        self._idle_timeout = check_seconds("idle_timeout", idle_timeout)
        self._began = monotonic()
        self._deadline = self._began + (check_seconds("timeout", timeout) or inf)
        self._idle: IdleClock | None = None

    async def wait(
        self,
        tasks: Collection[asyncio.Future[None]],
        moved: Callable[[], object],
        lost: Callable[[], Reason | None] | None = None,
    ) -> Reason | None:
        """Wait until one of ``tasks`` is done, a time limit ends, or ``lost()`` gives a reason.

        Return None if a task is done, otherwise the reason. There is traffic as long as the value
        of ``moved()`` changes.
        """
        if self._idle is None and self._idle_timeout is not None:
            self._idle = IdleClock(self._idle_timeout, moved(), self._began)
        while True:
            seconds = min(self._until_the_next_look(), inf if lost is None else _LOST_SECONDS)
            done, _ = await asyncio.wait(
                tasks,
                timeout=None if seconds == inf else seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done:
                return None
            reason = (lost() if lost is not None else None) or self._look(moved())
            if reason is not None:
                return reason

    def _until_the_next_look(self) -> float:
        now = monotonic()
        look = inf if self._idle is None else self._idle.seconds_to_next_look(now)
        return max(0.0, min(look, self._deadline - now))

    def _look(self, moved: object) -> Reason | None:
        now = monotonic()
        has_passed = self._idle is not None and self._idle.has_passed(moved, now)
        if now >= self._deadline:
            return Reason.TIMEOUT
        return Reason.IDLE if has_passed else None
