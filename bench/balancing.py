"""How clients are dealt out among boxes."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol


class Balancer(Protocol):
    """Chooses a box for each connection, of those that it knows to be up."""

    def know(self, boxes: Sequence[int]) -> None:
        """These are up, by their numbers."""
        ...

    def choose(self, client: int, connections: Mapping[int, int]) -> int | None:
        """The box for a client; None if none is up.

        connections: those of each box.
        """
        ...


class RoundRobin:
    """One after another."""

    def __init__(self) -> None:
        self._boxes: Sequence[int] = ()
        self._last = -1

    def know(self, boxes: Sequence[int]) -> None:
        self._boxes = boxes

    def choose(self, client: int, connections: Mapping[int, int]) -> int | None:
        if not self._boxes:
            return None
        later = [box for box in self._boxes if box > self._last]
        self._last = min(later or self._boxes)
        return self._last


class LeastConnections:
    """The box that has the fewest."""

    def __init__(self) -> None:
        self._boxes: Sequence[int] = ()

    def know(self, boxes: Sequence[int]) -> None:
        self._boxes = boxes

    def choose(self, client: int, connections: Mapping[int, int]) -> int | None:
        return min(self._boxes, key=connections.__getitem__, default=None)


class ConsistentHash:
    """The box whose point follows the client's on a ring, on which each has many.

    The clients of a box that is gone are dealt out among all others, whose own clients stay.
    """

    POINTS = 200

    def __init__(self) -> None:
        self._boxes: Sequence[int] = ()
        self._ring: list[tuple[int, int]] = []

    def know(self, boxes: Sequence[int]) -> None:
        if boxes == self._boxes:
            return
        self._boxes = boxes
        self._ring = sorted(
            (_place(f"box {box} {point}"), box) for box in boxes for point in range(self.POINTS)
        )

    def choose(self, client: int, connections: Mapping[int, int]) -> int | None:
        if not self._ring:
            return None
        index = bisect.bisect(self._ring, (_place(f"client {client}"), -1))
        return self._ring[index % len(self._ring)][1]


BALANCERS: Mapping[str, type[RoundRobin] | type[LeastConnections] | type[ConsistentHash]] = {
    "round robin": RoundRobin,
    "fewest connections": LeastConnections,
    "consistent hashing": ConsistentHash,
}


def _place(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
