"""A report to be read in a terminal."""

from __future__ import annotations

from .cases import Case, Metric
from .report import Report
from .results import Spread


def text(report: Report) -> str:
    lines = [*heading(report), ""]
    section = ""
    for case in report.results.cases:
        if case.section != section:
            section = case.section
            lines += [section.upper(), ""]
        for metric in case.metrics:
            if metric.shown:
                lines += _table(report, case, metric)
        lines += _limited_by_the_load(report, case)
        lines.append("")
    for failure in report.results.failures():
        where = f"{failure.section}, {failure.case}, round {failure.round + 1}"
        lines.append(f"FAILED: {failure.contestant}: {where}: {failure.failure}")
    return "\n".join(lines).rstrip() + "\n"


def number(value: float) -> str:
    """Three figures that mean something."""
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _table(report: Report, case: Case, metric: Metric) -> list[str]:
    """For each contestant the median, the spread of all rounds, and the median of the ratios."""
    titles = [title for title, _ in report.references(case, "")]
    width = max(12, *(len(title) + 5 for title in titles)) if titles else 0
    lines = []
    for name in case.contestants:
        spread = report.results.spread(case, name, metric.name)
        if spread is None:
            continue
        ratios = report.ratios(case, name, metric.name).values()
        cells = "".join(f"{_ratio(ratio):>{width}}" for ratio in ratios)
        least_to_most = f"{number(spread.least)} - {number(spread.most)}"
        lines.append(f"  {name:<22}{number(spread.median):>10}  {least_to_most:>21}{cells}")
    if not lines:
        return []
    better = "more is better" if metric.more_is_better else "less is better"
    columns = "".join(f"{'to ' + title:>{width}}" for title in titles)
    return [
        f"{case.name}: {metric.name} ({metric.unit}; {better})",
        f"  {'':<22}{'median':>10}  {'least - most':>21}{columns}",
        *lines,
    ]


def _limited_by_the_load(report: Report, case: Case) -> list[str]:
    """Who might do more than the load asked for: its own process had no time left."""
    spreads = {name: report.results.spread(case, name, "generator") for name in case.contestants}
    names = [name for name, spread in spreads.items() if spread and spread.median > 0.85]
    return [f"  (the load was as busy as it can be with: {', '.join(names)})"] if names else []


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f}" if ratio else "-"


def heading(report: Report) -> list[str]:
    machine = report.machine
    lines = [
        f"{report.command}",
        f"{report.date}, revision {report.revision}, rounds: {report.rounds},"
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
