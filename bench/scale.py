"""Relays on which nothing happens: what each of them holds, and what all of them cost."""

from __future__ import annotations

import time
from functools import partial

from .cases import Case, Metric, Settings, Values
from .peers import DIRECT, Peer, descriptors
from .running import Relaying, echo_target, line_of, relaying, settled, started_load
from .usage import Usage

METRICS = (
    Metric("memory", "KB/relay", more_is_better=False),
    Metric("descriptors", "/relay", more_is_better=False),
    Metric("threads", "/relay", more_is_better=False, shown=False),
    Metric("CPU", "ms/s, all together", more_is_better=False),
    Metric("context switches", "/s, all together", more_is_better=False),
    Metric("set-up", "µs/relay", more_is_better=False),
    Metric("then a byte each", "µs/relay", more_is_better=False),
    Metric("relays", "", more_is_better=True, shown=False),
)

#: Of each relay, at most: two sockets and what else it holds for them.
DESCRIPTORS = 5


def cases(settings: Settings) -> list[Case]:
    found: dict[int, Case] = {}
    for asked in settings.idle[:1] if settings.quick else settings.idle:
        most = (descriptors() - 100) // DESCRIPTORS
        # All of them are clients of one address: the system has no more ports for them.
        number = min(asked or most, most, 20_000)
        measure = partial(_measure, 0.5 if settings.quick else 10.0, number)
        relays = [peer for peer in settings.peers if peer.name != DIRECT]
        peers = {peer.name: partial(measure, peer) for peer in relays}
        found[number] = Case("scale", f"{number} idle relays", METRICS, peers)
    return list(found.values())


def _measure(seconds: float, number: int, peer: Peer) -> Values:
    with (
        echo_target() as target,
        relaying(peer, target) as relay,
        started_load("idle", relay.port, 1) as first,
    ):
        assert relay.relay is not None
        # What it needs once, for its first connection, is no cost of a relay's.
        line_of(first, 60)
        before = relay.relay.usage()
        with started_load("idle", relay.port, number) as load:
            set_up = line_of(load, 60 + number / 20)["set up"]
            settled(relay)
            idle, values = relay.relay.usage(), _idle(relay, seconds)
            assert load.stdin is not None
            load.stdin.write("go on\n")
            load.stdin.flush()
            moved = line_of(load, 60 + number / 20)["a byte each"]
    values["set-up"] = set_up / number * 1e6
    values["then a byte each"] = moved / number * 1e6
    values["relays"] = number
    values["memory"] = (idle.memory - before.memory) / number / 1e3
    for name in ("descriptors", "threads"):
        now, then = getattr(idle, name), getattr(before, name)
        if now is not None and then is not None:
            values[name] = (now - then) / number
    return values


def _idle(relay: Relaying, seconds: float) -> Values:
    """What it uses in that time."""
    before = _now(relay)
    time.sleep(seconds)
    after = _now(relay)
    elapsed = after[1] - before[1]
    values = {"CPU": (after[0].cpu - before[0].cpu) / elapsed * 1e3}
    if after[0].switches is not None and before[0].switches is not None:
        values["context switches"] = (after[0].switches - before[0].switches) / elapsed
    return values


def _now(relay: Relaying) -> tuple[Usage, float]:
    assert relay.relay is not None
    return relay.relay.usage(), time.monotonic()
