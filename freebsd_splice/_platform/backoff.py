"""Growing pauses for descriptors that are reported although nothing can be done.

poll(2) and select(2) report a message in a socket's error queue at each call, for as long as its
owner leaves it there, and can't be told to ignore it.
"""

from __future__ import annotations

import time

__all__ = ["Backoff"]

FIRST_SECONDS = 0.001
LONGEST_SECONDS = 0.25


class Backoff:
    """The descriptors that poll calls leave out, each for a time that doubles."""

    def __init__(self) -> None:
        # The pause in seconds, and the time when it ends; None: it has ended, and the next call
        # polls the descriptor once.
        self._waits: dict[int, tuple[float, float | None]] = {}

    def was_useless(self, descriptor: int, *, anew: bool = False) -> None:
        """Leave the descriptor out for a while, as its report led to nothing.

        Args:
            descriptor: the one reported.
            anew: begin with the shortest pause again.
        """
        seconds, until = (0.0, None) if anew else self._waits.get(descriptor, (0.0, None))
        if until is None:
            seconds = min(max(2 * seconds, FIRST_SECONDS), LONGEST_SECONDS)
            self._waits[descriptor] = seconds, time.monotonic() + seconds

    def forget(self, descriptor: int) -> None:
        """Poll the descriptor again from now on."""
        self._waits.pop(descriptor, None)

    def left_out(self) -> set[int]:
        """Return the descriptors that the next call must leave out.

        One whose pause was over at the call before, and that was not reported as useless since, is
        forgotten.
        """
        now = time.monotonic()
        for descriptor, (seconds, until) in list(self._waits.items()):
            if until is None:
                del self._waits[descriptor]
            elif until <= now:
                self._waits[descriptor] = seconds, None
        return {descriptor for descriptor, (_, until) in self._waits.items() if until is not None}

    def bounded(self, timeout: float | None) -> float | None:
        """Return the timeout, or less if a pause ends earlier, in seconds."""
        left = [until for _, until in self._waits.values() if until is not None]
        if not left:
            return timeout
        until_next = max(0.0, min(left) - time.monotonic())
        return until_next if timeout is None else min(timeout, until_next)
