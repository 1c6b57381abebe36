"""docs/benchmarks.md, written from a run."""

from __future__ import annotations

from pathlib import Path

from .cases import Case, Metric
from .plots import OVERVIEW, plots
from .report import Report
from .results import Spread
from .text import noise_line, number

PAGE = "benchmarks.md"
PICTURES = "benchmarks"

SECTIONS = {
    "bulk": (
        "Bulk",
        "Streams through iperf3 (or the benchmark's own load, where there is no iperf3): `up` from"
        " the client to the target, `down` back. CPU is that of the relay's processes, and of the"
        " kernel's splicing threads where there are any.",
    ),
    "capacity": (
        "Capacity",
        "The same with the relay alone on one CPU and everything else on the others: bytes for each"
        " second of CPU that the relay used, whoever else wanted the machine.",
    ),
    "latency": (
        "Round trips",
        "A message there and back, one after the other on each connection; beside bulk, a stream"
        " goes up through the same relay as fast as it can.",
    ),
    "connections": (
        "Connections",
        "Connect, one request of 100 bytes and its answer, close. CPU has all of a connection's"
        " life in it, its end too.",
    ),
    "scale": (
        "Idle relays",
        "What connections hold and cost on which nothing happens. Memory is what the relay's"
        " processes grew by, without the kernel's sockets.",
    ),
    "short": (
        "Short transfers",
        "One call for each transfer, with bytes always there, against reading and writing by the"
        " program itself: sockets with recv and send, streams with readexactly, write and drain.",
    ),
}


def write_page(report: Report, docs: Path) -> Path:
    """The page, its plots beside it."""
    pictures = plots(report, docs / PICTURES)
    lines = [*_heading(report)]
    if OVERVIEW in pictures:
        path = pictures[OVERVIEW].relative_to(docs)
        lines += ["", f"![The relays beside one of asyncio's streams, which is 1]({path})"]
    for section in dict.fromkeys(case.section for case in report.results.cases):
        cases = [case for case in report.results.cases if case.section == section]
        title, intro = SECTIONS[section]
        lines += ["", f"## {title}", "", intro]
        if section in pictures:
            path = pictures[section].relative_to(docs)
            lines += ["", f"![{title}, as in the tables]({path})"]
        lines += _ours(report, cases)
        for metric in _metrics(cases):
            lines += _table(report, cases, metric)
        if section == "short":
            lines += _where_it_pays(report, cases)
    for failure in report.results.failures():
        what = f"{failure.contestant}, {failure.section}, {failure.case}"
        lines += ["", f"**Failed**: {what}: {failure.failure.splitlines()[0]}"]
    page = docs / PAGE
    page.write_text("\n".join(lines) + "\n")
    return page


def _heading(report: Report) -> list[str]:
    machine = report.machine
    lines = [
        "# Benchmarks",
        "",
        f"`{report.command}` wrote this page on {report.date}, from revision `{report.revision}`.",
        "Figures of one machine say little about another: run it on yours.",
        "",
        f"- {machine['system']}, {machine['cpus']} CPUs ({machine['processor']}),"
        f" {machine['memory'] / 1e9:.0f} GB, {machine['python']}",
        f"- {report.rounds} rounds in {report.seconds / 60:.0f} minutes; in each round all take"
        " turns, in another order each time, and none is left out",
        f"- {noise_line(report.noise)}",
        "",
        "A cell has the median of the ratios, each of two runs of the same round, and their spread."
        " The row of the reference has its own median. The payload of each relay is compared before"
        " it is measured, and that of each round trip and connection as it comes.",
        "",
        "| name | what it is | version | splicing |",
        "|---|---|---|---|",
    ]
    for name, about in report.peers.items():
        cells = (name, about.get("title", ""), about.get("version", ""), about.get("proof", ""))
        lines.append(f"| {' | '.join(cells)} |")
    for name, why in report.missing.items():
        lines.append(f"| {name} | not measured: {why} | | |")
    return lines


def _ours(report: Report, cases: list[Case]) -> list[str]:
    """What this package is to each reference, in the first figure and in CPU."""
    titles = [title for title, _ in report.references(cases[0], "ours")]
    metrics = [metric for metric in _metrics(cases) if metric.name == "CPU"]
    metrics = list(dict.fromkeys([cases[0].metrics[0], *metrics]))
    rows = []
    for case in cases:
        cells = []
        for metric in metrics:
            ratios = report.ratios(case, "ours", metric.name)
            cells += [_with_spread(ratio) if (ratio := ratios[title]) else "-" for title in titles]
        if any(cell != "-" for cell in cells):
            rows.append(f"| {case.name} | {' | '.join(cells)} |")
    if not rows or len(titles) < 2:
        return []
    columns = [f"{metric.name} to {title}" for metric in metrics for title in titles]
    return [
        "",
        "**Ours**, to each of those it is compared with",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
        *rows,
    ]


def _metrics(cases: list[Case]) -> list[Metric]:
    return list(dict.fromkeys(metric for case in cases for metric in case.metrics if metric.shown))


def _table(report: Report, cases: list[Case], metric: Metric) -> list[str]:
    references = [title for title, _ in report.references(cases[0], "")]
    cases = [case for case in cases if metric in case.metrics]
    names = list(dict.fromkeys(name for case in cases for name in case.contestants))
    better = "more is better" if metric.more_is_better else "less is better"
    lines: list[str] = []
    for reference in references[:1]:
        lines += [
            "",
            f"**{metric.name.capitalize() if metric.name.islower() else metric.name}**"
            f" (relative to {reference}; {better})",
            "",
            "| | " + " | ".join(case.name for case in cases) + " |",
            "|---|" + "---|" * len(cases),
        ]
        for name in names:
            cells = [_cell(report, case, metric, name, reference) for case in cases]
            if any(cell != "-" for cell in cells):
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(report: Report, case: Case, metric: Metric, name: str, reference: str) -> str:
    if name not in case.contestants:
        return "-"
    spread = report.results.spread(case, name, metric.name)
    ratio = report.ratios(case, name, metric.name).get(reference)
    if name == reference and spread:
        return f"{number(spread.median)} {metric.unit}".strip()
    if ratio:
        return _with_spread(ratio)
    # Of nothing there is no ratio: an idle reference uses no CPU.
    return f"{number(spread.median)} {metric.unit}".strip() if spread else "-"


def _with_spread(ratio: Spread) -> str:
    if ratio.least == ratio.most:
        return number(ratio.median)
    return f"{number(ratio.median)} ({number(ratio.least)} to {number(ratio.most)})"


def _where_it_pays(report: Report, cases: list[Case]) -> list[str]:
    """From which size on a transfer takes no longer than reading and writing does."""
    lines = [""]
    for kind in dict.fromkeys(case.name.rpartition(", ")[0] for case in cases):
        sizes = [case for case in cases if case.name.startswith(kind + ", ")]
        best = ""
        for case in reversed(sizes):
            ratio = report.results.ratio(case, "ours", case.references[0], case.metrics[0].name)
            if ratio is None or ratio.median > 1:
                break
            best = case.name.rpartition(", ")[2]
        says = f"pays from {best} on" if best else "doesn't pay at any of these sizes"
        lines.append(f"- {kind} {says}.")
    return lines
