"""Draws the pictures of the how-to pages: what sits where, the ends of a relay, the seams of aio.

``python tools/diagrams.py`` writes the files; ``--check`` says whether they are up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from drawing import Sheet

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"


def where() -> str:
    """Client, process, kernel, target, and the two ways of the bytes."""
    sheet = Sheet(
        460, 430, "The two ways of the bytes: through the kernel alone, or by worker threads"
    )
    sheet.frame(16, 14, 428, 142, "your process")
    sheet.box(
        32, 44, 168, 94, "your code", "accepts, reads the head,", "connects, then calls", "Relay"
    )
    sheet.box(
        236,
        44,
        192,
        94,
        "userspace engine",
        "one worker thread a CPU:",
        "os.splice (Linux)",
        "or a copy",
        kind="ours",
    )
    sheet.frame(16, 196, 428, 132, "kernel")
    sheet.box(32, 236, 104, 56, "socket", "of the client")
    sheet.box(324, 236, 104, 56, "socket", "of the target")
    sheet.arrow((138, 278), (322, 278), kind="mark", both=True)
    sheet.words(230, 270, "SO_SPLICE", kind="bold told")
    sheet.words(230, 298, "FreeBSD, OpenBSD", kind="small")
    sheet.line((84, 234), (84, 177), (290, 177), kind="thin")
    sheet.arrow((290, 177), (290, 140))
    sheet.arrow((376, 140), (376, 234))
    sheet.words(186, 171, "on other systems", kind="small")
    sheet.arrow((84, 294), (84, 362), both=True)
    sheet.arrow((376, 294), (376, 362), both=True)
    sheet.box(32, 364, 104, 48, "client")
    sheet.box(324, 364, 104, 48, "target")
    sheet.words(230, 392, "TCP on both sides", kind="small")
    return sheet.text()


def ends() -> str:
    """A relay that ends well, and one that is reset."""
    sheet = Sheet(460, 640, "How the ends of a relay follow each other")
    columns = {"client": 56, "Relay": 230, "target": 404}

    def heads(top: int, bottom: int) -> None:
        for name, x in columns.items():
            sheet.box(x - 44, top, 88, 28, name, kind="ours" if name == "Relay" else "box")
            sheet.line((x, top + 28), (x, bottom), kind="thin")

    def step(y: int, name: str, towards: str, *, kind: str = "edge") -> None:
        """From the one side to the other, through the relay."""
        left, middle, right = columns.values()
        points = [left, middle, right] if towards == "target" else [right, middle, left]
        for start, end in ((points[0], points[1]), (points[1], points[2])):
            sign = 1 if end > start else -1
            sheet.arrow((start + 4 * sign, y), (end - 4 * sign, y), kind=kind)
        sheet.words(
            (points[0] + points[1]) // 2, y - 7, name, kind="told" if kind == "mark" else ""
        )

    heads(36, 330)
    sheet.words(16, 24, "Half-closes: each EOF is passed on", kind="bold start")
    step(100, "request", "target")
    step(144, "FIN", "target")
    sheet.words(317, 137, "shutdown(SHUT_WR)", kind="small")
    sheet.words(222, 166, "left to right has ended: EOF", kind="small end")
    step(206, "answer", "client")
    sheet.words(143, 199, "goes on", kind="small")
    step(250, "FIN", "client")
    sheet.words(143, 243, "shutdown(SHUT_WR)", kind="small")
    sheet.words(238, 272, "right to left has ended: EOF", kind="small start")
    sheet.box(116, 292, 228, 28, "over: Reason.EOF", kind="ours")

    heads(386, 596)
    sheet.words(16, 374, "A reset stays a reset (close=True)", kind="bold start")
    step(450, "half an answer", "client")
    step(494, "reset", "client", kind="mark")
    sheet.words(143, 487, "delivered, then reset", kind="small")
    sheet.words(222, 516, "never an EOF: the client", kind="small end")
    sheet.words(222, 532, "knows that bytes lack", kind="small end")
    sheet.words(238, 516, "right to left:", kind="small start")
    sheet.words(238, 532, "SOURCE_ERROR", kind="small start")
    sheet.box(96, 558, 268, 28, "over: Reason.SOURCE_ERROR", kind="ours")
    sheet.words(230, 622, "str(outcome) says it in one line.", kind="small")
    return sheet.text()


def seams() -> str:
    """What a transfer takes of a stream, and in which order the drain gets it."""
    sheet = Sheet(460, 368, "Where a stream becomes a splice, and a stream again")
    sheet.words(16, 26, "source: the bytes as they arrive", kind="bold start")
    source = [
        ("head", 92, "box"),
        ("body, in the", 108, "ours"),
        ("body, still", 124, "ours"),
        ("next head", 104, "box"),
    ]
    second = {"body, in the": "reader's buffer", "body, still": "to come"}
    x, middles = 16, []
    for name, width, kind in source:
        lines = [name, second[name]] if name in second else [name]
        sheet.box(x, 40, width, 50, *lines, kind=kind, bold=0)
        middles.append(x + width // 2)
        x += width
    for middle, call in zip(
        middles, ("readuntil", "transfer", "transfer", "readuntil"), strict=True
    ):
        sheet.words(middle, 110, call, kind="code small")
    sheet.line((16, 128), (224, 128))
    sheet.words(120, 146, "the transport reads", kind="small")
    sheet.line((228, 128), (336, 128), kind="mark")
    sheet.words(282, 146, "it doesn't read:", kind="small")
    sheet.words(282, 161, "spliced", kind="small")
    sheet.line((340, 128), (444, 128))
    sheet.words(392, 146, "it reads again", kind="small")

    sheet.words(16, 234, "drain: the bytes as they leave", kind="bold start")
    drain = [
        (("what the writer", "held already"), 116, "box"),
        (("initial=",), 64, "ours"),
        (("body from", "the buffer"), 84, "ours"),
        (("body,", "spliced"), 76, "ours"),
        (("what is", "written later"), 88, "box"),
    ]
    x, tops = 16, []
    for words, width, kind in drain:
        sheet.box(x, 248, width, 50, *words, kind=kind, bold=0)
        tops.append(x + width // 2)
        x += width
    sheet.arrow((middles[1], 170), (tops[2], 246), kind="mark")
    sheet.arrow((middles[2], 170), (tops[3], 246), kind="mark")
    sheet.words(230, 328, "Nothing is lost and nothing overtakes.", kind="")
    sheet.words(230, 348, "The other direction of both streams stays free.", kind="")
    return sheet.text()


def main() -> int:
    pictures = {"where.svg": where(), "ends.svg": ends(), "seams.svg": seams()}
    if "--check" in sys.argv:
        old = [name for name, text in pictures.items() if _read(PICTURES / name) != text]
        print("".join(f"docs/pictures/{name} is not what is drawn\n" for name in old), end="")
        return 1 if old else 0
    PICTURES.mkdir(exist_ok=True)
    for name, text in pictures.items():
        (PICTURES / name).write_bytes(text.encode())
    return 0


def _read(picture: Path) -> str | None:
    return picture.read_bytes().decode() if picture.exists() else None


if __name__ == "__main__":
    sys.exit(main())
