"""All that a run has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from .cases import Case, Metric
from .results import Results, Sample, Spread


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


def _about() -> list[str]:
    return [each.name for each in fields(Report) if each.name != "results"]
