"""Draws a graph in layers, as SVG: boxes in rows, and arrows that run downwards between them.

No more than what the package's pictures need (``pictures.py``). The same graph gives the same
bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.sax.saxutils import escape

#: Pixels.
_ROW_GAP, _BOX_GAP, _LANE = 46, 34, 16
_MARGIN, _PADDING, _LINE = 24, 10, 17
#: Widths of a character: of the names, in bold monospace, and at most of the lines below them.
_NAME_WIDTH, _TEXT_WIDTH = 8.5, 6.9
#: How often the rows are put in order, and the boxes moved below and above their neighbours.
_SWEEPS = 24

#: Colours of a light page and of a dark one. The picture has a background of its own: it can be
#: read as well where the page's colours aren't those that the reader's system asks for.
_COLOURS = {
    "light": {"paper": "#ffffff", "box": "#eef3f9", "edge": "#57606a", "ink": "#1f2328"},
    "dark": {"paper": "#0d1117", "box": "#1b2430", "edge": "#9aa5b1", "ink": "#e6edf3"},
}


class Box(NamedTuple):
    """A node: a name, and lines of text below it."""

    name: str
    lines: tuple[str, ...] = ()

    @property
    def width(self) -> float:
        widths = [len(self.name) * _NAME_WIDTH, *(len(line) * _TEXT_WIDTH for line in self.lines)]
        return 2 * _PADDING + max(widths)

    @property
    def height(self) -> int:
        return 2 * _PADDING + _LINE * (1 + len(self.lines))


#: A point at which an arrow passes a row without a box of its own: (from, to, row).
_Lane = tuple[str, str, int]
_Item = str | _Lane


class Layout:
    """Where everything lies. ``rows`` are from the top; each arrow leads to a lower one."""

    def __init__(
        self,
        boxes: Mapping[str, Box],
        rows: Mapping[str, int],
        arrows: Iterable[tuple[str, str]],
    ) -> None:
        self.boxes = boxes
        self.paths = {arrow: _path(arrow, rows) for arrow in sorted(arrows)}
        self.rows: list[list[_Item]] = [[] for _ in range(max(rows.values()) + 1)]
        for name in boxes:
            self.rows[rows[name]].append(name)
        for path in self.paths.values():
            for item in path:
                if isinstance(item, tuple):
                    self.rows[item[2]].append(item)
        self.links = [link for path in self.paths.values() for link in pairwise(path)]
        self.x: dict[_Item, float] = {}
        self._put_in_order()
        self._move_sideways()
        self.tops = self._tops()

    def height_of(self, row: int) -> int:
        return max(self.boxes[item].height for item in self.rows[row] if isinstance(item, str))

    @property
    def size(self) -> tuple[float, float]:
        right = max(self.x[item] + self._width(item) / 2 for row in self.rows for item in row)
        return right + _MARGIN, self.tops[-1] + self.height_of(len(self.rows) - 1) + _MARGIN

    def _width(self, item: _Item) -> float:
        return self.boxes[item].width if isinstance(item, str) else _LANE

    def _put_in_order(self) -> None:
        """Each item by the mean place of its neighbours in the row before; the order kept is that
        with the fewest crossings."""
        best = [list(row) for row in self.rows]
        for sweep in range(_SWEEPS):
            places = {item: at / len(row) for row in self.rows for at, item in enumerate(row)}
            numbers = range(len(self.rows))
            for number in numbers if sweep % 2 == 0 else reversed(numbers):
                neighbours = self._neighbours(number, above=sweep % 2 == 0)
                row = self.rows[number]
                row.sort(key=lambda item: _mean(neighbours[item], places, places[item]))
                places |= {item: at / len(row) for at, item in enumerate(row)}
            if self._crossings(self.rows) < self._crossings(best):
                best = [list(row) for row in self.rows]
        self.rows = best

    def _crossings(self, rows: Sequence[Sequence[_Item]]) -> int:
        place = {item: (row, at) for row, items in enumerate(rows) for at, item in enumerate(items)}
        links = [(*place[upper], place[lower][1]) for upper, lower in self.links]
        return sum(
            row == other_row and upper < other_upper and lower > other_lower
            for row, upper, lower in links
            for other_row, other_upper, other_lower in links
        )

    def _move_sideways(self) -> None:
        for row in self.rows:
            self._place(row, {item: 0.0 for item in row})
        for sweep in range(_SWEEPS):
            numbers = range(len(self.rows))
            for number in numbers if sweep % 2 == 0 else reversed(numbers):
                above = self._neighbours(number, above=True)
                below = self._neighbours(number, above=False)
                wanted = {}
                for item in self.rows[number]:
                    # All lanes of an arrow at the same place, as far as there is room: straight.
                    others = self.paths[item[:2]] if isinstance(item, tuple) else ()
                    others = others or [*above[item], *below[item]]
                    wanted[item] = _mean(others, self.x, self.x[item])
                self._place(self.rows[number], wanted)
        left = min(self.x[item] - self._width(item) / 2 for row in self.rows for item in row)
        self.x = {item: x - left + _MARGIN for item, x in self.x.items()}

    def _place(self, row: list[_Item], wanted: Mapping[_Item, float]) -> None:
        """Place the items as near to where they are wanted as their order and the gaps allow."""
        offsets = [0.0]
        for before, item in pairwise(row):
            offsets.append(offsets[-1] + (self._width(before) + self._width(item)) / 2 + _BOX_GAP)
        groups: list[list[float]] = []  # sum and number of items that lie as close as they may
        for item, offset in zip(row, offsets, strict=True):
            groups.append([wanted[item] - offset, 1])
            while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
                total, number = groups.pop()
                groups[-1][0] += total
                groups[-1][1] += number
        shifts = [total / number for total, number in groups for _ in range(int(number))]
        for item, offset, shift in zip(row, offsets, shifts, strict=True):
            self.x[item] = offset + shift

    def _neighbours(self, row: int, *, above: bool) -> dict[_Item, list[_Item]]:
        found: dict[_Item, list[_Item]] = {item: [] for item in self.rows[row]}
        for upper, lower in self.links:
            item, other = (lower, upper) if above else (upper, lower)
            if item in found:
                found[item].append(other)
        return found

    def _tops(self) -> list[int]:
        tops = [_MARGIN]
        for row in range(len(self.rows) - 1):
            tops.append(tops[-1] + self.height_of(row) + _ROW_GAP)
        return tops


def levels(arrows: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """How many arrows lie between each and the end of its longest way. Raises for a circle."""
    found: dict[str, int] = {}

    def level(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError(f"a circle: {' -> '.join([*above, name])}")
        if name not in found:
            below = [level(other, (*above, name)) for other in sorted(arrows.get(name, ()))]
            found[name] = 1 + max(below, default=-1)
        return found[name]

    for name in sorted(arrows):
        level(name, ())
    return found


def draw(
    boxes: Iterable[Box],
    rows: Mapping[str, int],
    arrows: Iterable[tuple[str, str]],
    *,
    title: str,
    both_ways: Sequence[tuple[str, str]] = (),
) -> str:
    """The SVG's text. An arrow in ``both_ways`` has a head at both ends."""
    layout = Layout({box.name: box for box in boxes}, rows, arrows)
    width, height = layout.size
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_style()}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse"><path class="head" d="M0 0L8 4L0 8z"/>'
        "</marker></defs>",
        '<rect class="paper" width="100%" height="100%"/>',
        *(_arrow(layout, path, arrow in both_ways) for arrow, path in layout.paths.items()),
        *(_box(layout, item, row) for row, items in enumerate(layout.rows) for item in items),
        "</svg>",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _box(layout: Layout, item: _Item, row: int) -> str:
    if isinstance(item, tuple):
        return ""
    box, middle = layout.boxes[item], layout.x[item]
    top = layout.tops[row] + (layout.height_of(row) - box.height) / 2
    x = middle - box.width / 2
    first = top + _PADDING + 13
    texts = [f'<text class="name" x="{middle:.0f}" y="{first:.0f}">{escape(box.name)}</text>']
    texts += [
        f'<text x="{middle:.0f}" y="{first + _LINE * number:.0f}">{escape(line)}</text>'
        for number, line in enumerate(box.lines, 1)
    ]
    return (
        f'<rect class="box" x="{x:.0f}" y="{top:.0f}" width="{box.width:.0f}" '
        f'height="{box.height}" rx="6"/>\n' + "\n".join(texts)
    )


def _arrow(layout: Layout, path: Sequence[_Item], both: bool) -> str:
    """From the bottom of one box to the top of another, straight through the rows between."""
    steps = []
    for upper, lower in pairwise(path):
        row = _row_of(layout, upper)
        y = layout.tops[row] + layout.height_of(row)
        if isinstance(upper, str):
            y = layout.tops[row] + (layout.height_of(row) + layout.boxes[upper].height) // 2
            start = _end_at(layout, upper, lower)
            steps.append(f"M{start:.0f} {y}")
        else:
            start = layout.x[upper]
            steps.append(f"L{start:.0f} {y}")
        below = layout.tops[row + 1]
        if isinstance(lower, str):
            below += (layout.height_of(row + 1) - layout.boxes[lower].height) // 2
        end = _end_at(layout, lower, upper) if isinstance(lower, str) else layout.x[lower]
        middle = (y + below) / 2
        steps.append(f"C{start:.0f} {middle:.0f} {end:.0f} {middle:.0f} {end:.0f} {below}")
    head = ' marker-start="url(#head)"' if both else ""
    return f'<path class="edge" d="{"".join(steps)}"{head} marker-end="url(#head)"/>'


def _end_at(layout: Layout, box: str, other: _Item) -> float:
    """Where on its edge an arrow meets a box: those of one edge side by side, in order."""
    downwards = _row_of(layout, other) > _row_of(layout, box)
    others = sorted(
        (lower if downwards else upper for upper, lower in layout.links
         if (upper if downwards else lower) == box),
        key=lambda item: (layout.x[item], str(item)),
    )  # fmt: skip
    step = min(28.0, (layout.boxes[box].width - 2 * _PADDING) / len(others))
    return layout.x[box] + step * (others.index(other) - (len(others) - 1) / 2)


def _row_of(layout: Layout, item: _Item) -> int:
    return next(number for number, row in enumerate(layout.rows) if item in row)


def _path(arrow: tuple[str, str], rows: Mapping[str, int]) -> list[_Item]:
    upper, lower = arrow
    between = range(rows[upper] + 1, rows[lower])
    return [upper, *((upper, lower, row) for row in between), lower]


def _mean(items: Sequence[_Item], places: Mapping[_Item, float], alone: float) -> float:
    return sum(places[item] for item in items) / len(items) if items else alone


def _style() -> str:
    light, dark = (_rules(colours) for colours in _COLOURS.values())
    fixed = (
        "text { font: 12px sans-serif; text-anchor: middle; }\n"
        ".name { font: bold 14px monospace; }\n"
        ".edge { fill: none; stroke-width: 1.4; }\n"
    )
    return f"{fixed}{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"


def _rules(colours: Mapping[str, str]) -> str:
    return (
        f".paper {{ fill: {colours['paper']}; }}\n"
        f".box {{ fill: {colours['box']}; stroke: {colours['edge']}; }}\n"
        f".edge {{ stroke: {colours['edge']}; }}\n"
        f".head {{ fill: {colours['edge']}; }}\n"
        f"text {{ fill: {colours['ink']}; }}\n"
    )
