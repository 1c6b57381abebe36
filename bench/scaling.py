"""The parts of docs/scaling.md that are written from runs: what relays cost, and what boxes do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .costs import Row, line, points, rows
from .plots import GROWTH, growth
from .report import Report
from .scale import EVERY, MESSAGE
from .text import noise_line, number

PAGE = "scaling.md"
PICTURES = "scaling"

#: A part stands between two of these, which are comments of the page.
BEGINS, ENDS = "<!-- {}: python -m bench.boxes writes this -->", "<!-- {}: to here -->"


class NoPageError(Exception):
    """The page lacks the place of a part."""


def write_page(report: Report, outcomes: Sequence[str], docs: Path) -> Path:
    """Put both parts, and the picture, into the page.

    Raises:
        NoPageError: it has no place for them.
    """
    page = docs / PAGE
    picture = docs / PICTURES / f"{GROWTH}.svg"
    costs = measured(report)
    if growth(report, picture):
        what = "Memory and CPU of all relays together, over their number"
        costs += ["", f"![{what}]({picture.relative_to(docs)})"]
    text = filled(page.read_text(), "costs", costs)
    page.write_text(filled(text, "boxes", outcomes))
    return page


def filled(text: str, part: str, lines: Sequence[str]) -> str:
    """The text with that part of it replaced."""
    begins, ends = BEGINS.format(part), ENDS.format(part)
    pattern = re.compile(f"{re.escape(begins)}\n.*?{re.escape(ends)}", re.S)
    if not pattern.search(text):
        raise NoPageError(f"{PAGE} has no place for the part {part}: {begins}")
    new = "\n".join([begins, "", *lines, "", ends])
    return pattern.sub(lambda _: new, text)


def measured(report: Report) -> list[str]:
    """What the relays of the run took, as ratios to its largest number, and of one of them."""
    found = rows(report)
    if not found:
        return ["Nothing was measured."]
    machine, most = report.machine, found[-1]
    lines = [
        f"`{report.command}`, {report.date}, revision `{report.revision}`, on {machine['system']},"
        f" {machine['cpus']} CPUs ({machine['processor']}), {machine['python']};"
        f" rounds: {report.rounds}; {noise_line(report.noise)}.",
        "",
        f"Of one relay, relative to one of {most.relays:.0f}; a dash is less than the clock shows:",
        "",
        "| relays held | memory | CPU while idle | CPU while half of them move"
        " | a connection more, to one while none is held |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        cells = [
            f"{row.relays:.0f}",
            _ratio(row.memory, most.memory),
            _ratio(row.idle / row.relays, most.idle / most.relays),
            _ratio(row.moving / row.relays, most.moving / most.relays),
            number(row.latency),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *_of_one(found)]


def _of_one(found: Sequence[Row]) -> list[str]:
    most = found[-1]
    memory = line(points(found, "memory"))
    moving = line(points(found, "CPU, half of them moving"))
    # Every second relay has a message each so many seconds; the lines are of MB and milliseconds.
    message = moving.slope * 2 * EVERY * 1e3
    idle = f"{number(most.idle / 10)} % of a CPU" if most.idle else "less CPU than the clock shows"
    lines = [
        f"- An idle relay takes {number(memory.slope * 1e3)} KB of the processes' memory there"
        f" (the slope of the line; the worst point is off by {memory.off:.1%} of the largest).",
        f"- {most.relays:.0f} idle relays take {idle}.",
        f"- A message of {MESSAGE} bytes, there and back, takes {number(message)} µs of CPU (the"
        f" slope; the worst point is off by {moving.off:.1%} of the largest).",
    ]
    if most.kernel is not None:
        lines.append(
            f"- The kernel takes {number(most.kernel)} KB for a relay's two sockets, and for those"
            " of its client and its target, which are on the same machine there."
        )
    return lines


def _ratio(value: float, whole: float) -> str:
    return number(value / whole) if value and whole else "-"
