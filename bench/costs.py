"""What a relay costs, from what a run of the benchmark has written (``--json``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cases import Case
from .report import Report

OURS = "ours"

#: The case whose CPU is that of a connection; a short run has others.
CONNECTIONS = "1 worker, 32 at once"


class NoCostsError(Exception):
    """The run lacks a section; the text says what to run."""


@dataclass(frozen=True)
class Costs:
    """What the model of several boxes (farm.py) takes: seconds, and bytes."""

    #: CPU seconds for a connection that is made.
    connection: float
    #: Memory of a relay.
    relay: float
    #: Memory of a process without relays.
    process: float
    #: From a start to the first client.
    start: float


@dataclass(frozen=True)
class Row:
    """What was measured with a number of relays, in the units of the benchmark's figures."""

    relays: float
    #: KB, of each relay.
    memory: float
    #: Milliseconds in a second, of all together: while nothing moves, and while half of them do.
    idle: float
    moving: float
    #: A connection more, to one while no relay is held.
    latency: float
    #: KB of the kernel's, of each relay with its client's and its target's socket; None: not known.
    kernel: float | None


@dataclass(frozen=True)
class Line:
    """The straight line that is nearest to some points (least squares)."""

    slope: float
    start: float
    #: How far the worst point is from it, as a share of the largest.
    off: float


def line(points: Sequence[tuple[float, float]]) -> Line:
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0
    start = middle_y - slope * middle_x
    most = max(y for _, y in points)
    off = max(abs(start + slope * x - y) for x, y in points) / most if most else 0.0
    return Line(slope, start, off)


def rows(report: Report, contestant: str = OURS) -> list[Row]:
    """By the number of relays, medians of all rounds."""
    found = []
    for case in report.results.cases:
        if case.section != "scale" or contestant not in case.contestants:
            continue
        names = ("relays", "memory", "CPU", "CPU, half of them moving", "a connection more")
        values = [_median(report, case, contestant, name) for name in names]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(names):
            relays, memory, idle, moving, latency = numbers
            kernel = _median(report, case, contestant, "kernel memory")
            found.append(Row(relays, memory, idle, moving, latency, kernel))
    return sorted(found, key=lambda row: row.relays)


def points(found: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    """What all relays together take, by their number: MB of memory, or ms of CPU a second."""
    if metric == "memory":
        return [(row.relays, row.memory * row.relays / 1e3) for row in found]
    return [(row.relays, row.idle if metric == "CPU" else row.moving) for row in found]


def costs(report: Report) -> Costs:
    """What the model of several boxes takes.

    Raises:
        NoCostsError: the run has not measured it.
    """
    scale = [each for each in report.results.cases if each.section == "scale"]
    made = [each for each in report.results.cases if each.section == "connections"]
    made = [each for each in made if each.name == CONNECTIONS] or made
    if not scale or not made:
        raise NoCostsError("run: python -m bench scale connections --peers ours --json FILE")
    biggest = scale[-1]
    values = {
        "connection": _median(report, made[0], OURS, "CPU"),
        "relay": _median(report, biggest, OURS, "memory"),
        "process": _median(report, biggest, OURS, "memory without relays"),
        "start": _median(report, biggest, OURS, "start"),
    }
    if missing := [name for name, value in values.items() if value is None]:
        raise NoCostsError(f"the run has not measured: {', '.join(missing)}")
    units = {"connection": 1e-6, "relay": 1e3, "process": 1e6, "start": 1e-3}
    return Costs(**{name: value * units[name] for name, value in values.items() if value})


def _median(report: Report, case: Case, contestant: str, metric: str) -> float | None:
    spread = report.results.spread(case, contestant, metric)
    return spread.median if spread else None
