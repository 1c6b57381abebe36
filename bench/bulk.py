"""Throughput of 1, 8 and 64 streams, what it costs, and how far one CPU would carry the relay."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial

from .cases import Case, Metric, Settings, Values
from .machine import cpus, pinned
from .peers import DIRECT, Peer
from .ports import HOST, free_port
from .running import PATIENCE, FailedError, echo_target, load, relaying, running, verify

THROUGHPUT = Metric("throughput", "MB/s", more_is_better=True)
CPU = Metric("CPU", "s/GB", more_is_better=False)
CAPACITY = Metric("capacity", "MB/CPU second", more_is_better=True)
SHARE = Metric("CPU used", "of one", more_is_better=False, shown=False)

#: What makes iperf3 send which way, seen from the client.
DIRECTIONS = {"up": [], "down": ["-R"]}


def cases(settings: Settings) -> list[Case]:
    found = []
    for streams in settings.streams:
        for direction in DIRECTIONS:
            name = f"{streams} stream{'s' if streams > 1 else ''} {direction}"
            measure = partial(_measure, settings.seconds, streams, direction, None)
            peers = {peer.name: partial(measure, peer) for peer in settings.peers}
            found.append(Case("bulk", name, (THROUGHPUT, CPU), peers))
    return [found[0], found[3]] if settings.quick else found


def capacity_cases(settings: Settings) -> list[Case]:
    """None where nothing can be kept on one CPU, or there is only one."""
    available = cpus()
    if len(available) < 2:
        return []
    found = []
    for streams in settings.streams:
        name = f"{streams} stream{'s' if streams > 1 else ''}, the relay alone on one CPU"
        measure = partial(_measure, settings.seconds, streams, "up", available)
        peers = {
            peer.name: partial(measure, peer) for peer in settings.peers if peer.name != DIRECT
        }
        found.append(Case("capacity", name, (CAPACITY, THROUGHPUT, SHARE), peers))
    return found[1:2] if settings.quick else found


def generator() -> str:
    return "iperf3" if shutil.which("iperf3") else "load.py"


def _measure(
    seconds: float, streams: int, direction: str, apart: list[int] | None, peer: Peer
) -> Values:
    """apart: all CPUs, the first of which is for the relay alone."""
    relays, others = (apart[:1], apart[1:]) if apart else (None, None)
    target = free_port()
    with relaying(peer, target, cpus=relays) as relay:
        with echo_target(others, target):
            verify(peer, relay.port)
        if generator() == "iperf3":
            whole: float = max(1, round(seconds))
            with _iperf3_server(target, others):
                cpu = relay.cpu()
                rate = _iperf3_client(relay.port, streams, direction, int(whole), others)
                cpu = relay.cpu() - cpu
            moved = rate * whole
        else:
            with echo_target(others, target):
                cpu = relay.cpu()
                result = load(
                    "bulk", relay.port, streams, direction, seconds, cpus=others, seconds=seconds
                )
                cpu = relay.cpu() - cpu
            moved, whole = result["bytes"], result["seconds"]
            rate = moved / whole
    values = {"throughput": rate / 1e6}
    if relay.relay is not None:
        values["CPU"] = cpu / (moved / 1e9)
        values["CPU used"] = cpu / whole
        if cpu:
            values["capacity"] = moved / cpu / 1e6
    return values


@contextlib.contextmanager
def _iperf3_server(port: int, cpus: list[int] | None) -> Iterator[None]:
    command = ["iperf3", "-s", "-B", HOST, "-p", str(port)]
    with running(pinned(command, cpus), port):
        yield


def _iperf3_client(
    port: int, streams: int, direction: str, seconds: int, cpus: list[int] | None
) -> float:
    """Bytes a second that arrived at the receiver."""
    # Large blocks: with small ones iperf3 itself is what a fast relay waits for.
    command = ["iperf3", "-c", HOST, "-p", str(port), "-J", "-l", "1M", *DIRECTIONS[direction]]
    command += ["-P", str(streams), "-t", str(seconds)]
    run = subprocess.run(pinned(command, cpus), stdout=subprocess.PIPE, timeout=seconds + PATIENCE)
    try:
        report = json.loads(run.stdout)
    except ValueError:
        raise FailedError(f"iperf3: {run.stdout.decode(errors='replace')[-300:]}") from None
    if run.returncode or "error" in report:
        raise FailedError(f"iperf3: {report.get('error')}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8
