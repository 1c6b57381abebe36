"""A report of a run, to be read and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .cases import Case, Metric
from .results import Results, Spread


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
                    other: ratio._asdict()
                    for other in references_of(case)
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


def references_of(case: Case) -> list[str]:
    """Those that took part."""
    return [other for other in case.references if other in case.contestants]


def text(report: Report) -> str:
    lines = [*_heading(report), ""]
    section = ""
    for case in report.results.cases:
        if case.section != section:
            section = case.section
            lines += [section.upper(), ""]
        lines += [*table(report, case), ""]
    for failure in report.results.failures():
        where = f"{failure.section}, {failure.case}, round {failure.round + 1}"
        lines.append(f"FAILED: {failure.contestant}: {where}: {failure.failure}")
    return "\n".join(lines).rstrip() + "\n"


def table(report: Report, case: Case) -> list[str]:
    """Lines: for each contestant the median, the spread of all rounds, and ratios of medians."""
    references = references_of(case)
    shown = [metric for metric in case.metrics if metric.shown]
    lines = []
    for metric in shown:
        rows = [(name, _cells(report, case, metric, name, references)) for name in case.contestants]
        rows = [(name, cells) for name, cells in rows if cells]
        if not rows:
            continue
        better = "more is better" if metric.more_is_better else "less is better"
        heading = f"{case.name}: {metric.name} ({metric.unit}; {better})"
        titles = "".join(f"{'to ' + other:>{_width(other)}}" for other in references)
        lines.append(heading)
        lines.append(f"  {'':<22}{'median':>10}  {'least - most':>23}{titles}")
        for name, cells in rows:
            first, spread, *ratios = cells
            columns = "".join(
                f"{ratio:>{_width(other)}}" for ratio, other in zip(ratios, references, strict=True)
            )
            lines.append(f"  {name:<22}{first:>10}  {spread:>23}{columns}")
    return lines


def number(value: float) -> str:
    """Three figures that mean something."""
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _width(reference: str) -> int:
    return max(13, len(reference) + 6)


def _cells(
    report: Report, case: Case, metric: Metric, name: str, references: list[str]
) -> list[str]:
    spread = report.results.spread(case, name, metric.name)
    if spread is None:
        return []
    ratios = [report.results.ratio(case, name, other, metric.name) for other in references]
    return [number(spread.median), _range(spread), *map(_ratio, ratios)]


def _range(spread: Spread) -> str:
    return f"{number(spread.least)} - {number(spread.most)}"


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f}" if ratio else "-"


def _heading(report: Report) -> list[str]:
    machine = report.machine
    lines = [
        f"{report.command}",
        f"{report.date}, revision {report.revision}, {report.rounds} rounds,"
        f" {report.seconds / 60:.1f} minutes",
        f"{machine['system']}, {machine['cpus']} CPUs ({machine['processor']}),"
        f" {machine['python']}",
        noise_line(report.noise),
        "",
    ]
    for name, about in report.peers.items():
        details = ", ".join(about[key] for key in ("title", "version", "proof") if about.get(key))
        lines.append(f"  {name:<22}{details}")
    lines += [f"  {name:<22}not here: {why}" for name, why in report.missing.items()]
    return lines


def noise_line(noise: dict[str, float]) -> str:
    """How far the figures can be trusted, in one line."""
    parts = []
    if "loop spread" in noise:
        parts.append(
            f"one fixed loop between the runs: 10th to 90th percentile {noise['loop spread']:.0%}"
            f" of its median apart, the worst {noise['loop worst']:.1f} times it"
        )
    if "load at start" in noise:
        parts.append(
            f"load average {noise['load at start']:.1f} at the start,"
            f" {noise['load at most']:.1f} at most"
        )
    if "steal" in noise:
        parts.append(f"{noise['steal']:.1%} of the CPU time stolen by the host")
    return "noise: " + "; ".join(parts)
