"""Round trips of 1 byte and of 16 KB, on 1 connection and on 100, alone and beside bulk."""

from __future__ import annotations

import contextlib
import subprocess
from functools import partial

from .cases import Case, Metric, Settings, Values
from .peers import Peer
from .running import echo_target, load, relaying, result_of, started_load, verify

METRICS = (
    Metric("median", "µs", more_is_better=False),
    Metric("p99", "µs", more_is_better=False),
    Metric("round trips", "/s", more_is_better=True),
    Metric("CPU", "µs/round trip", more_is_better=False),
    Metric("bulk beside", "MB/s", more_is_better=True),
    Metric("generator", "CPUs", more_is_better=False, shown=False),
)

SIZES = {1: "1 byte", 16_384: "16 KB"}


def cases(settings: Settings) -> list[Case]:
    found = []
    for beside in (False, True):
        for size, text in SIZES.items():
            for connections in (1, 100):
                name = f"{text}, {connections} connection{'s' if connections > 1 else ''}"
                name += ", beside bulk" if beside else ""
                measure = partial(_measure, settings.seconds, size, connections, beside)
                peers = {peer.name: partial(measure, peer) for peer in settings.peers}
                found.append(Case("latency", name, METRICS, peers))
    return [found[0], found[-1]] if settings.quick else found


def _measure(seconds: float, size: int, connections: int, beside: bool, peer: Peer) -> Values:
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(echo_target())
        relay = stack.enter_context(relaying(peer, target))
        verify(peer, relay.port)
        bulk: subprocess.Popen[str] | None = None
        if beside:
            # It begins before and ends after: a second for the start of the other load.
            whole = seconds + 1.5
            bulk = stack.enter_context(started_load("bulk", relay.port, 1, "up", whole))
        cpu = relay.cpu()
        result = load("latency", relay.port, connections, size, seconds, seconds=seconds)
        cpu = relay.cpu() - cpu
        values = {
            "median": result["median"] * 1e6,
            "p99": result["p99"] * 1e6,
            "round trips": result["a second"],
            "generator": result["generator"],
        }
        if bulk is not None:
            moved = result_of(bulk, seconds)
            values["bulk beside"] = moved["bytes"] / moved["seconds"] / 1e6
        elif relay.relay is not None:
            values["CPU"] = cpu / (result["a second"] * seconds) * 1e6
    return values
