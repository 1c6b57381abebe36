"""Event loops that show that they are alive: to the service manager, and to the workers' parent."""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from . import service_manager

_TIME = struct.Struct("d")


async def run_with_heartbeat(
    serving: Coroutine[Any, Any, None], beat: Callable[[], object]
) -> None:
    """Run ``serving``, and show all the while that the event loop is alive.

    Args:
        serving: accepts clients once it waits for the first time.
        beat: is called on the loop then and, where the service manager watches the program, four
            times in the time after which that takes the program for hung.
    """
    loop = asyncio.get_running_loop()
    whole = service_manager.watchdog_seconds()
    timer: asyncio.Handle

    def beat_again() -> None:
        nonlocal timer
        beat()
        if whole is not None:
            timer = loop.call_later(whole / 4, beat_again)

    timer = loop.call_soon(beat_again)
    try:
        await serving
    finally:
        timer.cancel()


class Heartbeats:
    """When the event loop of each worker was last alive, in memory that all processes share.

    Args:
        count: how many workers.
    """

    def __init__(self, count: int) -> None:
        self._has_retired = False
        self._times = mmap.mmap(-1, count * _TIME.size)
        self._started = [0.0] * count
        whole = service_manager.watchdog_seconds()
        self._every = None if whole is None else whole / 2
        self._next = time.monotonic()

    def beat(self, number: int) -> None:
        """Note, in a worker, that its loop is alive, unless another one has its place."""
        if self._has_retired:
            return
        _TIME.pack_into(self._times, number * _TIME.size, time.monotonic())

    def retire(self) -> None:
        """Note nothing any more, in a worker whose place another one takes."""
        self._has_retired = True

    def starts(self, number: int) -> None:
        """Note, in the parent, that the worker is started, anew perhaps."""
        self._started[number] = time.monotonic()

    def look(self, live: Collection[int]) -> None:
        """Say, in the parent, that the workers are alive, if that is so and it is time to.

        Args:
            live: the numbers of the workers that have not ended.
        """
        now = time.monotonic()
        if self._every is not None and now >= self._next:
            self._next = now + self._every
            if all(now - self._last(number) < 2 * self._every for number in live):
                service_manager.alive()

    def times(self) -> list[float]:
        """Return when ``look`` has to be called, at the latest, by ``time.monotonic``."""
        return [] if self._every is None else [self._next]

    def _last(self, number: int) -> float:
        """Return when the worker was last alive. Its start counts too: it has yet to get going."""
        (beaten,) = _TIME.unpack_from(self._times, number * _TIME.size)
        return max(float(beaten), self._started[number])
