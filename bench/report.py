"""All that a run has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .cases import Case
from .results import Results


@dataclass(frozen=True)
class Report:
    """All that a run said."""

    command: str
    date: str
    #: Of this package.
    revision: str
    machine: dict[str, object]
    noise: dict[str, float]
    rounds: int
    #: By name: title, version, and what showed that it splices.
    peers: dict[str, dict[str, str]]
    #: By name, why it isn't here.
    missing: dict[str, str]
    results: Results
    seconds: float
    #: What the names of the other revision's relays end with; "" where there is none.
    against: str = ""

    def references(self, case: Case, name: str) -> list[tuple[str, str]]:
        """Whom a contestant is compared with: the heading of the column, and the name."""
        found = [(other, other) for other in case.references if other in case.contestants]
        if self.against:
            found.append((self.against, name.removesuffix(self.against) + self.against))
        return found

    def as_dict(self) -> dict[str, object]:
        """For json.dump."""
        return {
            **{name: value for name, value in self.__dict__.items() if name != "results"},
            "summary": [entry for case in self.results.cases for entry in self._summary(case)],
            "samples": [asdict(sample) for sample in self.results.samples],
        }

    def _summary(self, case: Case) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for metric in case.metrics:
            for name in case.contestants:
                spread = self.results.spread(case, name, metric.name)
                if spread is None:
                    continue
                ratios = {
                    title: ratio._asdict()
                    for title, other in self.references(case, name)
                    if (ratio := self.results.ratio(case, name, other, metric.name))
                }
                found.append(
                    {
                        "section": case.section,
                        "case": case.name,
                        "metric": metric.name,
                        "unit": metric.unit,
                        "contestant": name,
                        **spread._asdict(),
                        "ratios": ratios,
                    }
                )
        return found
