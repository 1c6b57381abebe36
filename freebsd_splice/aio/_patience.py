"""The caller's time limits, for waits that are the loop's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from math import inf
from time import monotonic

from .._deadlines import check_seconds
from .._flow import Reason

#: As ``_deadlines`` looks at a count: a share of the idle time, and seconds at least.
_LOOK_SHARE, _LOOK_SECONDS = 1 / 5, 0.05

#: Seconds between two looks whether a connection is lost that nobody reads or writes.
_LOST_SECONDS = 0.8


class Patience:
    """``timeout`` seconds from now, and ``idle_timeout`` in which the count stays the same."""

    def __init__(self, *, idle_timeout: float | None, timeout: float | None) -> None:
        self._idle = check_seconds("idle_timeout", idle_timeout) or inf
        self._changed = monotonic()
        self._deadline = self._changed + (check_seconds("timeout", timeout) or inf)
        self._seen: object = None

    async def wait(
        self,
        tasks: Collection[asyncio.Future[None]],
        moved: Callable[[], object],
        lost: Callable[[], Reason | None] | None = None,
    ) -> Reason | None:
        """Wait until one of ``tasks`` is done: None; or for the end of patience, or ``lost()``.

        There is traffic as long as ``moved()`` changes.
        """
        if self._seen is None:
            self._seen = moved()
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
        step = max(self._idle * _LOOK_SHARE, _LOOK_SECONDS)
        return max(0.0, min(step, self._changed + self._idle - now, self._deadline - now))

    def _look(self, moved: object) -> Reason | None:
        now = monotonic()
        if moved != self._seen:
            self._seen, self._changed = moved, now
        if now >= self._deadline:
            return Reason.TIMEOUT
        return Reason.IDLE if now >= self._changed + self._idle else None
