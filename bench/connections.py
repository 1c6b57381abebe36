"""Connections a second: connect, one request and its answer, close."""

from __future__ import annotations

from functools import partial

from .cases import Case, Metric, Settings, Values
from .peers import Peer
from .running import echo_target, load, relaying, settled, verify

METRICS = (
    Metric("connections", "/s", more_is_better=True),
    Metric("median", "µs", more_is_better=False),
    Metric("p99", "µs", more_is_better=False),
    Metric("CPU", "µs/connection", more_is_better=False),
    Metric("generator", "CPUs", more_is_better=False, shown=False),
)


def cases(settings: Settings) -> list[Case]:
    found = []
    for workers in (1, 2):
        for at_once in (1, 32):
            name = f"{workers} worker{'s' if workers > 1 else ''}, {at_once} at once"
            measure = partial(_measure, settings.seconds, workers, at_once)
            peers = [peer for peer in settings.peers if workers == 1 or peer.scales]
            contestants = {peer.name: partial(measure, peer) for peer in peers}
            found.append(Case("connections", name, METRICS, contestants))
    return [found[0], found[-1]] if settings.quick else found


def _measure(seconds: float, workers: int, at_once: int, peer: Peer) -> Values:
    with echo_target() as target, relaying(peer, target, workers=workers) as relay:
        verify(peer, relay.port)
        cpu = settled(relay)
        result = load("connections", relay.port, at_once, seconds, seconds=seconds)
        cpu = settled(relay) - cpu
    values = {
        "connections": result["a second"],
        "median": result["median"] * 1e6,
        "p99": result["p99"] * 1e6,
        "generator": result["generator"],
    }
    if relay.relay is not None:
        values["CPU"] = cpu / result["count"] * 1e6
    return values
