"""Numbers about the connections of one process: counters, histograms, and what is live."""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .. import RelayOutcome
from .._platform.descriptors import descriptor_limit, open_descriptors
from .._relay import Progress
from ._live import LiveConnection, LiveConnections
from ._observing import refusal_of

if TYPE_CHECKING:
    from ._client import Client

#: The upper bounds of the histograms' buckets, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: The names of the buckets, as Prometheus writes them.
BUCKETS = (*map(str, BOUNDS), "+Inf")

#: The directions of a connection: from the client to the target, and back.
DIRECTIONS = ("up", "down")

#: What is counted, with the values of its labels: ("ended", "eof"), ("accepted",).
Key = tuple[str, ...]

Totals = dict[Key, float]


class Snapshot(NamedTuple):
    """What a process has counted, and how it is now.

    Attributes:
        totals: numbers that never become smaller.
        now: numbers that do.
    """

    totals: Totals
    now: dict[str, float]

    def to_line(self) -> bytes:
        """Return it as a line of JSON, for another process."""
        totals = [[*key, value] for key, value in self.totals.items()]
        return json.dumps([totals, self.now]).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Snapshot:
        totals, now = json.loads(line)
        return cls({tuple(key): value for *key, value in totals}, now)


class Numbers(LiveConnections):
    """Counts what happens to the clients of a server."""

    def __init__(self) -> None:
        super().__init__()
        self._totals: Totals = {}

    def snapshot(self) -> Snapshot:
        """Return all numbers, with the bytes that live connections have moved so far.

        For a thread that may wait, as ``read`` is.
        """
        self.read()
        descriptors = {"descriptors": open_descriptors(), "descriptor limit": descriptor_limit()}
        known = {name: value for name, value in descriptors.items() if value is not None}
        with self._lock:
            return Snapshot(dict(self._totals), {"live": len(self._live), **known})

    def accepted(self, client: Client) -> None:
        super().accepted(client)
        self._add({("accepted",): 1})

    def dialled(self, client: Client, seconds: float, error: OSError | None) -> None:
        super().dialled(client, seconds, error)
        self._observe(("dial", "connected" if error is None else "failed"), seconds)

    def handshaken(self, client: Client, target_name: str) -> None:
        super().handshaken(client, target_name)
        with self._lock:
            connection = self._live.get(client)
        if connection is not None:
            since = time.monotonic() - connection.accepted
            self._observe(("handshake",), max(0.0, since - connection.dialling))

    def ended(self, client: Client, outcome: RelayOutcome) -> None:
        connection = self._forget(client)
        if connection is None:
            return
        ends = (outcome.left_to_right, outcome.right_to_left)
        connection.ways = tuple(Progress(end.bytes, (end.backend, end.mover)) for end in ends)
        with self._lock:
            self._moved(connection)
            add(self._totals, {("ended", outcome.reason.value): 1})

    def refused(self, client: Client | None, error: OSError | None) -> None:
        super().refused(client, error)
        accepted: Totals = {("accepted",): 1} if client is None else {}
        self._add({**accepted, ("refused", refusal_of(error)): 1})

    def left(self, client: Client) -> None:
        if self._forget(client) is not None:
            self._add({("refused", "stopped"): 1})

    def _moved(self, connection: LiveConnection) -> None:
        # Only the difference is counted, under what serves now: so no total ever becomes smaller.
        for number, (direction, way) in enumerate(zip(DIRECTIONS, connection.ways, strict=True)):
            more = way.bytes - connection.counted[number]
            if way.served_by is not None and more > 0:
                add(self._totals, {("bytes", direction, *way.served_by): more})
                connection.counted[number] = way.bytes

    def _observe(self, name: Key, seconds: float) -> None:
        what, *labels = name
        bucket = BUCKETS[bisect_left(BOUNDS, seconds)]
        self._add({(*name, bucket): 1, (f"{what} seconds", *labels): seconds})

    def _add(self, more: Mapping[Key, float]) -> None:
        with self._lock:
            add(self._totals, more)


def add(totals: Totals, more: Mapping[Key, float]) -> None:
    """Add each number of ``more`` to that of ``totals``."""
    for key, value in more.items():
        totals[key] = totals.get(key, 0) + value
