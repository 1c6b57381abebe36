"""What happens to the clients of several boxes when one restarts or dies: a simulation.

python -m bench.boxes FILE [--docs]

FILE is what ``python -m bench scale connections --peers ours --json FILE`` has written: the costs
measured there are the simulation's parameters.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import simpy

from .balancing import BALANCERS
from .costs import Costs, NoCostsError, costs
from .farm import Box, Farm, Setting, Steps
from .peers import ROOT
from .plots import NoPlotsError, need_plots
from .report import Report
from .scaling import NoPageError, measured, write_page

#: The mean time for which a client stays, in seconds; times are exponentially distributed.
LIFE = 3_600.0

#: How often the balancer looks who is up.
CHECK = 2.0

#: Of all boxes together, in steady state, and how many of them each simulated one stands for.
RELAYS, STANDS_FOR = 1_000_000, 100

#: How many clients may wait in the queues of a box: those of two workers, as they come.
BACKLOG = 2 * 1024

#: A box is as loaded as before the event if its share of all clients differs by less than this.
EVEN = 0.1

#: Nobody misses anything where this share of the clients is served.
SERVED = 0.95

BOXES = (2, 4, 8)
GRACES = (0.1, 1.0, 3.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.boxes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what a run has measured")
    parser.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=ROOT / "docs",
        metavar="DIRECTORY",
        help="write it, and what was measured, into scaling.md there, or in docs",
    )
    parser.add_argument("--quick", action="store_true", help="the first experiment: does it work?")
    options = parser.parse_args(arguments)
    try:
        if options.docs:
            need_plots()
        report = Report.from_dict(json.loads(options.file.read_text()))
        todo = list(experiments())[: 1 if options.quick else None]
        lines = table(todo, costs(report))
        print("\n".join([*measured(report), "", *lines]))
        if options.docs:
            print(f"written: {write_page(report, lines, options.docs)}")
    except (NoCostsError, NoPlotsError, NoPageError) as error:
        print(f"bench.boxes: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Outcome:
    """What an event has done; ratios all."""

    #: Connections cut, of those that were live before.
    cut: float
    #: Attempts in vain, of the same.
    refused: float
    #: The most memory of a box, to what it was before.
    memory: float
    #: The most clients of a box, to those before.
    clients: float
    #: From the event's beginning until all boxes have had their old shares from then on, in mean
    #: times of a client.
    even: float
    #: The longest time in which fewer than 95 % of the clients were served, in a client's pauses.
    back: float


@dataclass(frozen=True)
class Experiment:
    """One row: what happens, to how many boxes, behind which balancer."""

    event: str
    boxes: int
    balancing: str
    #: Mean times of a client, where the event has to do with it.
    grace: float = 0.0


def experiments() -> Iterator[Experiment]:
    for boxes in BOXES:
        for balancing in BALANCERS:
            yield Experiment("a box dies", boxes, balancing)
    for event in ("takeover", "stop and start"):
        for grace in GRACES:
            yield Experiment(event, 4, "fewest connections", grace)


def table(todo: list[Experiment], measured: Costs) -> list[str]:
    """A row for each experiment."""
    lines = [
        "| event | boxes | balancing | cut | attempts in vain | most clients of a box | most memory"
        " of a box | fewer than 95 % served, pauses | shares as before after, lives |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in todo:
        print(f"{each.event}, {each.boxes} boxes, {each.balancing}", file=sys.stderr, flush=True)
        found = run(each, measured)
        event = f"{each.event}, grace {each.grace:g} lives" if each.grace else each.event
        cells = (
            *(event, each.boxes, each.balancing, f"{found.cut:.1%}", f"{found.refused:.2f}"),
            *(f"{found.clients:.2f}", f"{found.memory:.2f}"),
            *(f"{found.back:.0f}", f"{found.even:.1f}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def run(experiment: Experiment, measured: Costs, seed: int = 1) -> Outcome:
    """Let it happen once, among so many clients in steady state."""
    scaled = replace(
        measured,
        connection=measured.connection * STANDS_FOR,
        relay=measured.relay * STANDS_FOR,
    )
    setting = Setting(
        boxes=experiment.boxes,
        grace=experiment.grace * LIFE,
        backlog=BACKLOG / STANDS_FOR,
    )
    env, chance = simpy.Environment(), random.Random(seed)
    farm = Farm(env, setting, scaled, BALANCERS[experiment.balancing](), chance)
    number = RELAYS // STANDS_FOR
    for client in range(number):
        env.process(farm.client(client, chance.expovariate(1 / LIFE), is_old=True))
    env.process(_arrivals(farm, number, chance))
    env.process(_checks(farm))
    env.run(until=2 * CHECK)
    watch = _Watch(farm)
    env.process(watch.run())
    env.process(_EVENTS[experiment.event](farm))
    env.run(until=(3 + experiment.grace * experiment.boxes) * LIFE)
    return watch.outcome()


def _arrivals(farm: Farm, number: int, chance: random.Random) -> Steps:
    """As many as leave, on average."""
    client = number
    while True:
        yield farm.env.timeout(chance.expovariate(number / LIFE))
        farm.env.process(farm.client(client, chance.expovariate(1 / LIFE)))
        client += 1


def _checks(farm: Farm) -> Steps:
    while True:
        farm.look()
        yield farm.env.timeout(CHECK)


def _death(farm: Farm) -> Steps:
    """Of one box, which is back after a tenth of a client's time."""
    farm.die(farm.boxes[0])
    yield farm.env.timeout(LIFE / 10)
    yield from farm.come_back(farm.boxes[0])


def _one_by_one(restart: Callable[[Farm, Box], Steps]) -> Callable[[Farm], Steps]:
    """All boxes, each once the one before has finished, and the balancer knows it."""

    def steps(farm: Farm) -> Steps:
        for box in farm.boxes:
            yield farm.env.process(restart(farm, box))
            yield farm.env.timeout(2 * CHECK)

    return steps


_EVENTS: dict[str, Callable[[Farm], Steps]] = {
    "a box dies": _death,
    "takeover": _one_by_one(Farm.take_over),
    "stop and start": _one_by_one(Farm.restart),
}


class _Watch:
    """Looks at the boxes every so often, from the event on."""

    SECONDS = 1.0

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._began = farm.env.now
        self._clients = [box.clients for box in farm.boxes]
        self._memory = [box.memory(farm.costs) for box in farm.boxes]
        self._most_clients = self._most_memory = 1.0
        self._uneven = self._began
        farm.cut.clear()
        farm.refused.clear()
        self._whole = self._began
        self._longest_lack = 0.0

    def run(self) -> Steps:
        while True:
            self._look()
            yield self._farm.env.timeout(self.SECONDS)

    def _look(self) -> None:
        farm = self._farm
        now = [box.clients for box in farm.boxes]
        memory = [box.memory(farm.costs) for box in farm.boxes]
        self._most_clients = max(self._most_clients, *_ratios(now, self._clients))
        self._most_memory = max(self._most_memory, *_ratios(memory, self._memory))
        served = sum(now) / sum(self._clients)
        if served and any(abs(each / served - 1) > EVEN for each in _ratios(now, self._clients)):
            self._uneven = farm.env.now
        if served >= SERVED:
            self._whole = farm.env.now
        self._longest_lack = max(self._longest_lack, farm.env.now - self._whole)

    def outcome(self) -> Outcome:
        farm, live = self._farm, sum(self._clients)
        return Outcome(
            cut=len(farm.cut) / live,
            refused=len(farm.refused) / live,
            memory=self._most_memory,
            clients=self._most_clients,
            even=(self._uneven - self._began) / LIFE,
            back=self._longest_lack / farm.setting.pause,
        )


def _ratios(now: list[int] | list[float], before: list[int] | list[float]) -> list[float]:
    return [one / other for one, other in zip(now, before, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
