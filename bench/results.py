"""The runs, and what follows from them: medians, spreads, ratios."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .cases import Case, Values
from .running import FailedError

#: To say that something is worse.
ENOUGH_ROUNDS = 5


@dataclass(frozen=True)
class Sample:
    """One run of one contestant."""

    section: str
    case: str
    contestant: str
    round: int
    values: Values
    #: Why it has no values.
    failure: str = ""


class Spread(NamedTuple):
    """The median of all rounds, and the least and the most of any."""

    median: float
    least: float
    most: float


@dataclass
class Results:
    cases: list[Case]
    samples: list[Sample] = field(default_factory=list)

    def of(self, case: Case, contestant: str, metric: str) -> dict[int, float]:
        """By round."""
        return {
            sample.round: sample.values[metric]
            for sample in self.samples
            if (sample.section, sample.case) == (case.section, case.name)
            and sample.contestant == contestant
            and metric in sample.values
        }

    def spread(self, case: Case, contestant: str, metric: str) -> Spread | None:
        return _spread(self.of(case, contestant, metric).values())

    def ratio(self, case: Case, contestant: str, other: str, metric: str) -> Spread | None:
        """Round by round: what slows the machine down for a while slows both of them down."""
        mine, others = self.of(case, contestant, metric), self.of(case, other, metric)
        return _spread(mine[n] / others[n] for n in mine if others.get(n))

    def worse(self, mark: str, by: float = 0.1) -> list[str]:
        """What is worse than the same contestant with that mark, in each round and by that share.

        One line each.  Fewer than five rounds prove nothing, and a figure that isn't shown isn't
        looked at.  One of 32 comes out worse five times by chance alone: run it again.
        """
        lines = []
        for case in self.cases:
            for name in case.contestants:
                for metric in case.metrics:
                    ratio = self.ratio(case, name, name + mark, metric.name)
                    rounds = len(self.of(case, name, metric.name))
                    if ratio is None or not metric.shown or rounds < ENOUGH_ROUNDS:
                        continue
                    if metric.more_is_better:
                        worse = ratio.most < 1 and ratio.median < 1 - by
                    else:
                        worse = ratio.least > 1 and ratio.median > 1 + by
                    if worse:
                        what = f"{case.section}: {case.name}: {name}: {metric.name}"
                        lines.append(f"{what}: {ratio.median:.2f} of {name + mark}'s")
        return lines

    def failures(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.failure]


def measure(cases: list[Case], rounds: int, between: Callable[[], None]) -> Results:
    """All contestants of a case one after the other, in another order each round.

    between: called before each run.
    """
    results = Results(cases)
    for number in range(rounds):
        for case in cases:
            say = f"round {number + 1} of {rounds}: {case.section}: {case.name}"
            print(say, file=sys.stderr, flush=True)
            for name in random.sample(list(case.contestants), len(case.contestants)):
                between()
                values, failure = _run(case.contestants[name])
                if failure:
                    print(f"  {name} FAILED: {failure}", file=sys.stderr, flush=True)
                results.samples.append(
                    Sample(case.section, case.name, name, number, values, failure)
                )
    return results


def _run(contestant: Callable[[], Values]) -> tuple[Values, str]:
    try:
        return contestant(), ""
    except (FailedError, OSError, subprocess.SubprocessError) as error:
        return {}, f"{type(error).__name__}: {error}"


def _spread(values: Iterable[float]) -> Spread | None:
    numbers = list(values)
    return Spread(statistics.median(numbers), min(numbers), max(numbers)) if numbers else None
