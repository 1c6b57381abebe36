"""Numbers about the connections of a process: counters, histograms, and what is live."""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from .. import Reason, RelayOutcome
from .._platform.descriptors import descriptor_limit, open_descriptors
from ._live import LiveConnection, LiveConnections, Watched
from ._observing import REFUSALS, refusal_of

if TYPE_CHECKING:
    from ._client import Client

#: The upper bounds of the histograms' buckets, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: The names of the buckets, as Prometheus writes them.
BUCKETS = (*map(str, BOUNDS), "+Inf")

#: The directions of a connection: from the client to the target, and back.
DIRECTIONS = ("up", "down")

#: What is counted, with the values of its labels: ("ended", ":80", "eof"), ("descriptors",). What
#: is counted of a proxy has as its first label where that listens.
Key = tuple[str, ...]

Totals = dict[Key, float]


class Snapshot(NamedTuple):
    """What a process has counted, and how it is now.

    Attributes:
        totals: numbers that never become smaller.
        now: numbers that do.
    """

    totals: Totals
    now: Totals

    def to_line(self) -> bytes:
        """Return it as a line of JSON, for another process."""
        numbers = [[[*key, value] for key, value in each.items()] for each in self]
        return json.dumps(numbers).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Snapshot:
        totals, now = ({tuple(key): value for *key, value in each} for each in json.loads(line))
        return cls(totals, now)


class Numbers(LiveConnections):
    """Counts what happens to the clients of a proxy.

    Args:
        listen: where the proxy listens, as that is written.
    """

    def __init__(self, listen: str) -> None:
        super().__init__(listen)
        self._accepted = 0
        self._refused = dict.fromkeys(REFUSALS, 0)
        self._ended = {reason.value: 0 for reason in Reason}
        self._bytes: dict[Key, int] = {}
        self._connected, self._failed, self._handshakes = _Histogram(), _Histogram(), _Histogram()

    def snapshot(self) -> Snapshot:
        """Return the numbers, with the bytes that live connections had moved when they were asked.

        The first label of all is where the proxy listens.
        """
        with self._lock:
            totals, live = self._totals(), len(self._live)
        named = {(key[0], self.listen, *key[1:]): value for key, value in totals.items()}
        return Snapshot(named, {("live", self.listen): live})

    def accepted(self, client: Client) -> None:
        super().accepted(client)
        with self._lock:
            self._accepted += 1

    def dialled(self, client: Client, seconds: float, error: OSError | None) -> None:
        super().dialled(client, seconds, error)
        with self._lock:
            connection = self._live.get(client)
            if connection is not None:
                seconds += connection.looking
                connection.looking = 0.0
            (self._connected if error is None else self._failed).observe(seconds)

    def handshaken(self, client: Client, target_name: str) -> None:
        super().handshaken(client, target_name)
        now = time.monotonic()
        with self._lock:
            connection = self._live.get(client)
            if connection is not None:
                self._handshakes.observe(max(0.0, now - connection.accepted - connection.dialling))

    def ended(self, client: Client, outcome: RelayOutcome) -> None:
        connection = self._forget(client)
        if connection is None:
            return
        up, down = outcome.left_to_right, outcome.right_to_left
        with self._lock:
            self._ended[outcome.reason.value] += 1
            self._count(("up", up.backend, up.mover), up.bytes - connection.counted_up)
            self._count(("down", down.backend, down.mover), down.bytes - connection.counted_down)

    def refused(self, client: Client | None, error: OSError | None) -> None:
        super().refused(client, error)
        with self._lock:
            self._accepted += client is None
            self._refused[refusal_of(error)] += 1

    def left(self, client: Client) -> None:
        if self._forget(client) is not None:
            with self._lock:
                self._refused["stopped"] += 1

    def _moved(self, connection: LiveConnection) -> None:
        # Only the difference is counted, under what serves now: so no total ever becomes smaller.
        up, down = connection.ways
        if up.served_by is not None:
            self._count(("up", *up.served_by), up.bytes - connection.counted_up)
            connection.counted_up = up.bytes
        if down.served_by is not None:
            self._count(("down", *down.served_by), down.bytes - connection.counted_down)
            connection.counted_down = down.bytes

    def _count(self, key: Key, more: int) -> None:
        self._bytes[key] = self._bytes.get(key, 0) + more

    def _totals(self) -> Totals:
        return {
            ("accepted",): self._accepted,
            **{("refused", reason): count for reason, count in self._refused.items()},
            **{("ended", reason): count for reason, count in self._ended.items()},
            **{("bytes", *key): count for key, count in self._bytes.items()},
            **self._connected.totals("dial", "connected"),
            **self._failed.totals("dial", "failed"),
            **self._handshakes.totals("handshake"),
        }


def snapshot(watched: Watched[Numbers]) -> Snapshot:
    """Return all numbers of this process.

    For a thread that may wait, as ``Watched.read`` is.
    """
    watched.read()
    whole = Snapshot({}, {})
    for numbers in watched.all():
        own = numbers.snapshot()
        whole.totals.update(own.totals)
        whole.now.update(own.now)
    descriptors = {"descriptors": open_descriptors(), "descriptor limit": descriptor_limit()}
    whole.now.update({(name,): value for name, value in descriptors.items() if value is not None})
    return whole


class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * len(BUCKETS)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds += seconds

    def totals(self, name: str, *labels: str) -> Totals:
        counts = zip(BUCKETS, self._counts, strict=True)
        return {
            **{(name, *labels, bucket): count for bucket, count in counts},
            (f"{name} seconds", *labels): self._seconds,
        }


def add(totals: Totals, more: Totals) -> None:
    """Add each number of ``more`` to that of ``totals``."""
    for key, value in more.items():
        totals[key] = totals.get(key, 0) + value
