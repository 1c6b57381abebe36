"""All that a run has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .cases import Case, Metric
from .results import Results, Sample, Spread


class NotTogetherError(Exception):
    """The runs are of different revisions or machines, or of the same section."""


@dataclass(frozen=True)
class Report:
    """One run: where, how, and with what result."""

    command: str
    date: str
    #: Of this package.
    revision: str
    machine: dict[str, Any]
    noise: dict[str, float]
    rounds: int
    #: How long all of it took.
    seconds: float
    #: By name: title, version, and what showed that it splices.
    peers: dict[str, dict[str, str]]
    #: By name, why it isn't here.
    missing: dict[str, str]
    #: What the names of the other revision's relays end with; "" where there is none.
    against: str
    results: Results

    def references(self, case: Case, name: str) -> list[tuple[str, str]]:
        """Whom a contestant is compared with: the heading of the column, and the name."""
        found = [(other, other) for other in case.references if other in case.contestants]
        if self.against:
            found.append((self.against, name.removesuffix(self.against) + self.against))
        return found

    def ratios(self, case: Case, name: str, metric: str) -> dict[str, Spread | None]:
        """By the headings of the columns."""
        return {
            title: self.results.ratio(case, name, other, metric)
            for title, other in self.references(case, name)
        }

    def as_dict(self) -> dict[str, Any]:
        """For json.dump: every run, and what follows from them."""
        about = {name: getattr(self, name) for name in _about()}
        return {
            **about,
            "cases": [
                {
                    "section": case.section,
                    "name": case.name,
                    "metrics": [asdict(metric) for metric in case.metrics],
                    "contestants": list(case.contestants),
                    "references": list(case.references),
                }
                for case in self.results.cases
            ],
            "summary": [
                entry
                for case in self.results.cases
                for metric in case.metrics
                for name in case.contestants
                if (entry := self._summary(case, metric, name))
            ],
            "samples": [asdict(sample) for sample in self.results.samples],
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Report:
        """What ``as_dict`` gave; the cases can't be run again."""
        cases = [
            Case(
                case["section"],
                case["name"],
                tuple(Metric(**metric) for metric in case["metrics"]),
                dict.fromkeys(case["contestants"], dict),
                tuple(case["references"]),
            )
            for case in found["cases"]
        ]
        samples = [Sample(**sample) for sample in found["samples"]]
        about = {name: found[name] for name in _about()}
        return cls(**about, results=Results(cases, samples))

    def _summary(self, case: Case, metric: Metric, name: str) -> dict[str, Any] | None:
        spread = self.results.spread(case, name, metric.name)
        if spread is None:
            return None
        ratios = self.ratios(case, name, metric.name)
        return {
            "section": case.section,
            "case": case.name,
            "metric": metric.name,
            "unit": metric.unit,
            "contestant": name,
            **spread._asdict(),
            "ratios": {title: ratio._asdict() for title, ratio in ratios.items() if ratio},
        }


def together(reports: list[Report]) -> Report:
    """One report of several runs, which measured other sections of the same revision.

    Raises:
        NotTogetherError: they don't go together.
    """
    first = reports[0]
    if any((each.revision, each.machine) != (first.revision, first.machine) for each in reports):
        raise NotTogetherError("these runs are not of one revision on one machine")
    cases = [case for each in reports for case in each.results.cases]
    if len({(case.section, case.name) for case in cases}) < len(cases):
        raise NotTogetherError("a case is in more than one of these runs")
    noise: dict[str, float] = {}
    for each in reports:
        noise = {key: max(noise.get(key, value), value) for key, value in each.noise.items()}
    return replace(
        first,
        command="; ".join(each.command for each in reports),
        date=max(each.date for each in reports),
        noise=noise,
        rounds=min(each.rounds for each in reports),
        seconds=sum(each.seconds for each in reports),
        peers={name: about for each in reports for name, about in each.peers.items()},
        results=Results(cases, [sample for each in reports for sample in each.results.samples]),
    )


def _about() -> list[str]:
    return [each.name for each in fields(Report) if each.name != "results"]
