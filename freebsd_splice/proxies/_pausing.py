"""Waiting for a connection to end, and pausing while something is short."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from .._errors import SHORTAGES
from ._connecting import reason_of
from ._log import fields, logger

#: Seconds after which a shortage is looked at again although no connection of ours has ended.
RETRY_AFTER = 1.0


class Changes:
    """Wakes all tasks that wait for a connection to end, or for the server to be stopped."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until ``wake`` is called, or until ``seconds`` have passed."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.add(waiting)
        timer = None if seconds is None else loop.call_later(seconds, _set, waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        for waiting in self._waiting:
            _set(waiting)


class Shortage:
    """Lets tasks wait while there are too few descriptors or places, and logs that once."""

    def __init__(self, changes: Changes, live: Callable[[], int]) -> None:
        self._changes = changes
        self._live = live  # how many connections there are
        # From the first that is missing until nobody waits.
        self._is_short = False

    async def wait_after(self, error: OSError, seconds: float = math.inf) -> None:
        """Wait for what ``error`` says is missing, for RETRY_AFTER or ``seconds`` at most.

        A connection that ends gives descriptors back, and so may other processes.

        Raises:
            OSError: ``error`` itself, where waiting doesn't help.
        """
        if error.errno not in SHORTAGES:
            raise error
        self.begins(reason_of(error))
        await self._changes.wait(min(RETRY_AFTER, seconds))

    @property
    def lasts(self) -> bool:
        """Whether it has begun and not ended."""
        return self._is_short

    def begins(self, reason: str) -> None:
        """Log, for the first that is missing, that accepting pauses."""
        if not self._is_short:
            self._is_short = True
            live = self._live()
            paused = fields("accepting paused", connections=live, reason=reason)
            logger.warning("accepting pauses at %d connections: %s", live, reason, extra=paused)

    def ends(self) -> None:
        """Log that accepting goes on: no client is waiting any more."""
        if self._is_short:
            self._is_short = False
            logger.info("accepting has resumed", extra=fields("accepting resumed"))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
