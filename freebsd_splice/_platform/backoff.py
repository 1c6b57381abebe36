"""Looking ever more seldom at descriptors that are reported although nothing can be done.

poll(2) and select(2) can't be told to leave something out: a message in a socket's error queue is
reported at each call, for as long as its owner leaves it there.
"""

from __future__ import annotations

import time

__all__ = ["Backoff"]

FIRST_SECONDS = 0.001
LONGEST_SECONDS = 0.25


class Backoff:
    """The descriptors that a call leaves out, each for a time that doubles."""

    def __init__(self) -> None:
        # Seconds, and when they are over; None: the descriptor is looked at once more now.
        self._waits: dict[int, tuple[float, float | None]] = {}

    def was_useless(self, descriptor: int, *, anew: bool = False) -> None:
        """Leave it out for a while: what is reported of it leads to nothing."""
        seconds, until = (0.0, None) if anew else self._waits.get(descriptor, (0.0, None))
        if until is None:
            seconds = min(max(2 * seconds, FIRST_SECONDS), LONGEST_SECONDS)
            self._waits[descriptor] = seconds, time.monotonic() + seconds

    def forget(self, descriptor: int) -> None:
        """Look at it again from now on."""
        self._waits.pop(descriptor, None)

    def left_out(self) -> set[int]:
        """Those that the next call is not to look at. Whichever was of use since is forgotten."""
        now = time.monotonic()
        for descriptor, (seconds, until) in list(self._waits.items()):
            if until is None:
                del self._waits[descriptor]
            elif until <= now:
                self._waits[descriptor] = seconds, None
        return {descriptor for descriptor, (_, until) in self._waits.items() if until is not None}

    def bounded(self, timeout: float | None) -> float | None:
        """The timeout, or less where one of them is to be looked at before."""
        left = [until for _, until in self._waits.values() if until is not None]
        if not left:
            return timeout
        until_next = max(0.0, min(left) - time.monotonic())
        return until_next if timeout is None else min(timeout, until_next)
