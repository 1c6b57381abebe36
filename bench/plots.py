"""The report as pictures (SVG), by matplotlib."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

from .cases import Case, Metric
from .costs import OURS, Row, line, points, rows
from .report import Report
from .results import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What the overview shows, and whom: section, case, figure, heading.
PANELS = (
    ("bulk", "8 streams up", "throughput", "bulk throughput"),
    ("bulk", "8 streams up", "CPU", "CPU for each byte"),
    ("latency", "1 byte, 1 connection", "median", "round trip"),
    ("connections", "1 worker, 32 at once", "connections", "connections a second"),
)
OVERVIEW = "overview"

#: How the relays that are held grow in number: what is drawn over it, and of whom.
GROWTH = "growth"
GROWING = {
    "memory": "memory",
    "CPU": "CPU while all are idle",
    "CPU, half of them moving": "CPU while half of them move",
}
COMPARED = ("ours", "haproxy", "nginx", "threads", "asyncio")
BASE = "asyncio"

OURS_COLOUR, OTHERS, REFERENCE = "#b5322b", "#9aa5b1", "#52606d"


class NoPlotsError(Exception):
    """matplotlib isn't installed."""


def need_plots() -> None:
    """NoPlotsError now, not after an hour of runs."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NoPlotsError('plots take matplotlib: pip install "freebsd-splice[bench]"')


def plots(report: Report, directory: Path) -> dict[str, Path]:
    """One file for each section, by its name."""
    need_plots()
    _begin(directory)
    found = {}
    for section in dict.fromkeys(case.section for case in report.results.cases):
        path = directory / f"{section}.svg"
        plot = _plot_sizes if section == "short" else _plot
        if plot(report, section, path):
            found[section] = path
    for name, draw in ((OVERVIEW, overview), (GROWTH, growth)):
        if draw(report, directory / f"{name}.svg"):
            found[name] = directory / f"{name}.svg"
    return found


def _begin(directory: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    # The same run makes the same file; text stays text. The ground is white in a dark window too.
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 8})
    directory.mkdir(parents=True, exist_ok=True)


def overview(report: Report, path: Path) -> bool:
    """One small picture for those who have a minute; False if the run lacks one of its figures."""
    from matplotlib import pyplot

    panels = []
    for section, name, metric, heading in PANELS:
        wanted = (section, name)
        cases = [case for case in report.results.cases if (case.section, case.name) == wanted]
        rows = _against_base(report, cases[0], metric) if cases else {}
        if len(rows) < 2:
            return False
        [found] = [each for each in cases[0].metrics if each.name == metric]
        panels.append((f"{heading}\n({name})", found, rows))
    figure, grid = pyplot.subplots(1, len(panels), figsize=(9, 2), layout="constrained")
    for axes, (heading, metric_of, rows) in zip(grid, panels, strict=True):
        for place, (name, median) in enumerate(rows.items()):
            colour = OURS_COLOUR if name == OURS else REFERENCE if name == BASE else OTHERS
            axes.barh(place, median, color=colour, height=0.7)
            axes.annotate(f" {median:.2f}", (median, place), verticalalignment="center", fontsize=7)
        axes.set_yticks(range(len(rows)), list(rows) if axes is grid[0] else [""] * len(rows))
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.margins(x=0.2)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        better = "more is better" if metric_of.more_is_better else "less is better"
        axes.set_title(f"{heading}\n{better}", fontsize=7)
    _save(figure, path)
    return True


def growth(report: Report, path: Path) -> bool:
    """What all relays together take, over their number; False where few numbers were measured.

    Each figure is relative to this package's at the largest number, and the broken line is the
    straight one that is nearest to its points.
    """
    by_name: dict[str, list[Row]] = {}
    for case in report.results.cases:
        for name in case.contestants if case.section == "scale" else ():
            by_name.setdefault(name, rows(report, name))
    ours = by_name.get(OURS, [])
    if len(ours) < 3:
        return False
    _begin(path.parent)
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, len(GROWING), figsize=(9, 2.6), layout="constrained")
    for (metric, title), axes in zip(GROWING.items(), grid, strict=True):
        whole = points(ours, metric)[-1][1]
        for name, found in by_name.items():
            scaled = [(x, y / whole if whole else y) for x, y in points(found, metric)]
            colour = OURS_COLOUR if name == OURS else None
            axes.plot(*zip(*scaled, strict=True), "o-", color=colour, label=name, markersize=3)
            if name == OURS:
                straight = line(scaled)
                ends = [0.0, scaled[-1][0]]
                heights = [straight.start + straight.slope * end for end in ends]
                axes.plot(ends, heights, "--", color=REFERENCE, linewidth=0.8)
        axes.set_title(f"{title}\n(ours at {ours[-1].relays:.0f} = 1)", fontsize=8)
        axes.set_xlabel("relays")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=None if whole else 1)
        if not whole:
            axes.annotate("less than the clock shows", (0.1, 0.1), xycoords="axes fraction")
        axes.spines[["top", "right"]].set_visible(False)
    if len(by_name) > 1:
        grid[0].legend(frameon=False)
    _save(figure, path)
    return True


def _against_base(report: Report, case: Case, metric: str) -> dict[str, float]:
    ratios = {name: report.results.ratio(case, name, BASE, metric) for name in COMPARED}
    return {name: ratio.median for name, ratio in ratios.items() if ratio}


def _plot(report: Report, section: str, path: Path) -> bool:
    """A row for each case, in it a picture for the first two of its figures that are shown."""
    from matplotlib import pyplot

    cases = [case for case in report.results.cases if case.section == section]
    cases = [case for case in cases if _rows(report, case, case.metrics[0])]
    if not cases:
        return False
    height = sum(0.9 + 0.17 * len(case.contestants) for case in cases)
    figure, grid = pyplot.subplots(
        len(cases),
        2,
        figsize=(9, height),
        squeeze=False,
        layout="constrained",
        height_ratios=[4 + len(case.contestants) for case in cases],
    )
    for case, (left, right) in zip(cases, grid, strict=True):
        _bars(report, case, case.metrics[0], left)
        costs = [metric for metric in case.metrics[1:] if _rows(report, case, metric)]
        wanted = [metric for metric in costs if metric.name == "CPU"] or costs
        if wanted:
            _bars(report, case, wanted[0], right)
        else:
            right.axis("off")
    _save(figure, path)
    return True


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _plot_sizes(report: Report, section: str, path: Path) -> bool:
    """A line for each contestant, over the sizes: a picture for each kind of transfer."""
    from matplotlib import pyplot

    cases = [case for case in report.results.cases if case.section == section]
    kinds = list(dict.fromkeys(case.name.rpartition(", ")[0] for case in cases))
    figure, grid = pyplot.subplots(
        1, len(kinds), figsize=(9, 3), squeeze=False, sharey=True, layout="constrained"
    )
    for kind, axes in zip(kinds, grid[0], strict=True):
        sizes = [case for case in cases if case.name.startswith(kind + ", ")]
        for name in sizes[0].contestants:
            rows = [_rows(report, case, case.metrics[0]).get(name) for case in sizes]
            places = [place for place, row in enumerate(rows) if row]
            axes.plot(places, [row.median for row in rows if row], marker="o", label=name)
        axes.set_xticks(range(len(sizes)), [case.name.rpartition(", ")[2] for case in sizes])
        axes.set_yscale("log")
        axes.set_title(kind, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel(f"time, relative to {cases[0].references[0]} (less is better)")
    grid[0][-1].legend(frameon=False)
    _save(figure, path)
    return True


def _rows(report: Report, case: Case, metric: Metric) -> dict[str, Spread]:
    """Relative to the first reference that there is."""
    titles = [title for title, _ in report.references(case, "")]
    for title in titles:
        rows = {name: report.ratios(case, name, metric.name)[title] for name in case.contestants}
        if any(rows.values()):
            return {name: row for name, row in rows.items() if row and row.median > 0}
    return {}


def _bars(report: Report, case: Case, metric: Metric, axes: Axes) -> None:
    rows = _rows(report, case, metric)
    reference = report.references(case, "")[0][0]
    for place, (name, row) in enumerate(rows.items()):
        colour = (
            OURS_COLOUR if name.startswith(OURS) else REFERENCE if name == reference else OTHERS
        )
        axes.barh(place, row.median, color=colour, height=0.7)
        axes.plot([row.least, row.most], [place, place], color="black", linewidth=0.8)
        axes.annotate(
            f" {row.median:.2f}",
            (max(row.median, row.most), place),
            verticalalignment="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.axvline(1, color=REFERENCE, linewidth=0.8)
    medians = [row.median for row in rows.values()]
    if max(medians) / min(medians) > 20:
        axes.set_xscale("log")
        axes.set_xlim(left=10 ** math.floor(math.log10(min(medians))) / 2)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    better = "more is better" if metric.more_is_better else "less is better"
    axes.set_title(f"{case.name}\n{metric.name}, relative to {reference} ({better})", fontsize=8)
