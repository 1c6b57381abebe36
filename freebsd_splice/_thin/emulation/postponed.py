"""Splices that are short of something: tried again later, while the others have their turns."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

__all__ = ["Postponed"]

FIRST_SECONDS = 0.01
LONGEST_SECONDS = 0.5

T = TypeVar("T")


class Postponed(Generic[T]):
    """Who is to have another turn although nothing reports it, each after a time that doubles."""

    def __init__(self) -> None:
        #: The time of the next turn, and the seconds that were waited for it.
        self._turns: dict[T, tuple[float, float]] = {}

    def put_off(self, who: T, *, anew: bool = False) -> None:
        """Give ``who`` another turn, after the shortest time if ``anew``."""
        _, before = (0.0, 0.0) if anew else self._turns.get(who, (0.0, 0.0))
        seconds = min(max(2 * before, FIRST_SECONDS), LONGEST_SECONDS)
        self._turns[who] = time.monotonic() + seconds, seconds

    def forget(self, who: T) -> None:
        """Give ``who`` no further turn."""
        self._turns.pop(who, None)

    def due(self) -> list[T]:
        """Return whose turn it is."""
        now = time.monotonic()
        return [who for who, (until, _) in self._turns.items() if until <= now]

    def seconds(self) -> float | None:
        """Return the time until the next turn, in seconds; None if there is none to give."""
        if not self._turns:
            return None
        return max(0.0, min(until for until, _ in self._turns.values()) - time.monotonic())
