"""A sheet to draw boxes, lines and words on, as SVG. It can be read on a light and a dark page.

The same strokes give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

#: Colours of a light page and of a dark one. The sheet has a background of its own: it can be read
#: as well where the page's colours aren't those that the reader's system asks for.
_COLOURS = {
    "light": {
        "paper": "#ffffff",
        "box": "#eef3f9",
        "ours": "#fbeceb",
        "edge": "#57606a",
        "mark": "#b5322b",
        "ink": "#1f2328",
    },
    "dark": {
        "paper": "#0d1117",
        "box": "#1b2430",
        "ours": "#3a1d1e",
        "edge": "#9aa5b1",
        "mark": "#ff8f85",
        "ink": "#e6edf3",
    },
}
_LINE = 17


class Sheet:
    """Sizes and places are in pixels, from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img">\n<title>{escape(title)}</title>'
        )
        self._strokes: list[str] = []

    def box(
        self, x: int, y: int, width: int, height: int, *lines: str, kind: str = "box", bold: int = 1
    ) -> None:
        """A box with lines in its middle, the first ``bold`` of them in bold."""
        self._strokes.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        )
        first = y + (height - _LINE * len(lines)) // 2 + 13
        for number, line in enumerate(lines):
            self.words(
                x + width // 2, first + number * _LINE, line, kind="bold" if number < bold else ""
            )

    def frame(self, x: int, y: int, width: int, height: int, name: str) -> None:
        """A dashed box around others, with its name in the upper left corner."""
        self._strokes.append(
            f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        )
        self.words(x + 10, y + 18, name, kind="bold start")

    def words(self, x: int, y: int, text: str, *, kind: str = "") -> None:
        """A line of text: in the middle of ``x`` unless ``kind`` has ``start`` or ``end``."""
        of_kind = f' class="{kind}"' if kind else ""
        self._strokes.append(f'<text{of_kind} x="{x}" y="{y}">{escape(text)}</text>')

    def arrow(self, *points: tuple[int, int], kind: str = "edge", both: bool = False) -> None:
        """A line from point to point, with a head at its end, or at both ends."""
        path = "L".join(f"{x} {y}" for x, y in points)
        start = f' marker-start="url(#{kind}-head)"' if both else ""
        self._strokes.append(
            f'<path class="{kind}" d="M{path}"{start} marker-end="url(#{kind}-head)"/>'
        )

    def line(self, *points: tuple[int, int], kind: str = "edge") -> None:
        path = "L".join(f"{x} {y}" for x, y in points)
        self._strokes.append(f'<path class="{kind}" d="M{path}"/>')

    def text(self) -> str:
        """The file's text."""
        heads = "".join(
            f'<marker id="{kind}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto-start-reverse">'
            f'<path class="{kind}-head" d="M0 0L8 4L0 8z"/></marker>'
            for kind in ("edge", "mark")
        )
        parts = [
            self._head,
            f"<style>\n{_style()}</style>",
            f"<defs>{heads}</defs>",
            '<rect class="paper" width="100%" height="100%" rx="8"/>',
            *self._strokes,
            "</svg>",
        ]
        return "\n".join(parts) + "\n"


def _style() -> str:
    light, dark = (_rules(colours) for colours in _COLOURS.values())
    fixed = (
        "text { font: 13px sans-serif; text-anchor: middle; }\n"
        ".bold { font-weight: bold; }\n"
        ".code { font-family: monospace; }\n"
        ".small { font-size: 12px; }\n"
        ".start { text-anchor: start; }\n"
        ".end { text-anchor: end; }\n"
        ".edge, .mark, .thin, .frame { fill: none; stroke-width: 1.4; }\n"
        ".mark { stroke-width: 2.4; }\n"
        ".frame, .thin { stroke-dasharray: 5 4; }\n"
    )
    return f"{fixed}{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"


def _rules(colours: Mapping[str, str]) -> str:
    return (
        f".paper {{ fill: {colours['paper']}; }}\n"
        f".box {{ fill: {colours['box']}; stroke: {colours['edge']}; }}\n"
        f".ours {{ fill: {colours['ours']}; stroke: {colours['mark']}; }}\n"
        f".edge, .thin, .frame {{ stroke: {colours['edge']}; }}\n"
        f".mark {{ stroke: {colours['mark']}; }}\n"
        f".edge-head {{ fill: {colours['edge']}; }}\n"
        f".mark-head {{ fill: {colours['mark']}; }}\n"
        f"text {{ fill: {colours['ink']}; }}\n"
        f".told {{ fill: {colours['mark']}; }}\n"
    )
