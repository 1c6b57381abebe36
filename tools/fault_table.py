"""Makes docs/reliability.md from runs of the tests that play a fault.

``python tools/fault_table.py --run [FILE …]`` plays all tests that declare a cell (tests/faults/
cells.py), or those of some files, notes what came of them in tests/faults/results.jsonl, and writes
the page. Without ``--run`` it writes the page from the notes; ``--check`` says whether it is up to
date and every cell was played.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from faults.cells import Cell
    from faults.gaps import Place

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "reliability.md"
NOTES = TESTS / "faults" / "results.jsonl"
BEGIN, END = "<!-- made by tools/fault_table.py -->\n", "<!-- end of what is made -->\n"


class Note(NamedTuple):
    """What came of one cell, played by one test on one backend: a line of the notes."""

    system: str
    test: str
    fault: str
    layer: str
    phase: str
    backend: str
    #: "passed", "failed", "skipped", or "xfailed": it doesn't hold, and the test says why.
    outcome: str


class Row(NamedTuple):
    """One test function's cell."""

    test: str
    cell: Cell


#: What stands in the place of a reason that tests/faults/gaps.py doesn't give.
NO_REASON = "**no reason is given**"

#: The worst of several tests of one name, such as those of several parameters, counts.
WORST = ("failed", "xfailed", "passed", "skipped")


class _Tests:
    """A plugin that knows the cells of the tests that were collected, and what came of them."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str, str], Row] = {}
        self.notes: dict[tuple[str, ...], Note] = {}
        self._playing: dict[str, list[tuple[str, ...]]] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Function]
    ) -> None:
        from faults.cells import backend_of, cells_of

        mine = []
        for item in items:
            test = f"{item.path.relative_to(ROOT).as_posix()}::{item.originalname}"
            for cell in cells_of(item):
                key = (test, cell.fault, cell.layer, cell.phase)
                known = self.rows.setdefault(key, Row(test, cell))
                assert known.cell == cell, f"{test} says two things of {cell}"
                place = (platform.system(), *key, backend_of(item, cell.layer))
                self._playing.setdefault(item.nodeid, []).append(place)
            if item.nodeid in self._playing:
                mine.append(item)
        items[:] = mine

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = report.outcome
        if report.when != "call" and outcome == "passed":
            return
        said = "xfailed" if outcome == "skipped" and hasattr(report, "wasxfail") else outcome
        for place in self._playing.get(report.nodeid, []):
            before = self.notes.get(place)
            if before is None or WORST.index(said) < WORST.index(before.outcome):
                self.notes[place] = Note(*place, said)  # type: ignore[call-arg]


def files() -> list[Path]:
    """Those that could declare a cell."""
    found = TESTS.rglob("test_*.py")
    return sorted(path for path in found if "from faults.cells import" in path.read_text())


def collect() -> _Tests:
    """All tests that declare a cell, unplayed."""
    tests = _Tests()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = _pytest(tests, ["--collect-only", "-q", *map(str, files())])
    if status != 0:
        raise SystemExit(said.getvalue())
    return tests


def play(chosen: list[str]) -> _Tests:
    """Play them, one after the other; of a run that was interrupted nothing is noted."""
    tests = _Tests()
    status = _pytest(tests, ["-q", "-rfEx", *(chosen or map(str, files()))])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(status)
    return tests


def _pytest(tests: _Tests, arguments: Iterable[str]) -> int:
    options = ["-p", "no:randomly", "-m", "not soak", f"--rootdir={ROOT}"]
    return int(pytest.main([*options, *arguments], plugins=[tests]))


def read_notes() -> list[Note]:
    lines = NOTES.read_text().splitlines() if NOTES.exists() else []
    return [Note(*json.loads(line)) for line in lines]


def write_notes(old: list[Note], new: list[Note], rows: Iterable[Row]) -> None:
    """Keep what other runs have found of the tests that there still are.

    A test that is skipped here (who isn't root has no network of his own) was played elsewhere.
    """
    there = {(row.test, row.cell.fault, row.cell.layer, row.cell.phase) for row in rows}
    replayed = {(note.system, note.test) for note in new}
    skipped = {note[:-1] for note in new if note.outcome == "skipped"}
    kept = {
        note[:-1]: note
        for note in old
        if note[1:5] in there and ((note.system, note.test) not in replayed or note[:-1] in skipped)
    }
    notes = {note[:-1]: note for note in new} | kept
    NOTES.write_text("".join(f"{line}\n" for line in sorted(map(json.dumps, notes.values()))))


def tables(rows: list[Row], notes: list[Note]) -> str:
    """A table for each layer."""
    from faults.cells import LAYERS

    parts = [f"{len(rows)} cells.\n"]
    for layer, title in LAYERS.items():
        chosen = [row for row in rows if row.cell.layer == layer]
        if chosen:
            parts.append(f"\n## {title}\n\n| the fault, when | what is seen | others | held on |\n")
            parts.append("|---|---|---|---|\n" + "".join(_lines(chosen, notes)))
        parts.append(_left_empty(layer, notes))
    return "".join(parts)


def _left_empty(layer: str, notes: list[Note]) -> str:
    """Which cells of the layer no test plays, and why."""
    from faults.gaps import BACKENDS_AT, gap_of

    backends: dict[tuple[str, str, str], set[str]] = {}
    for place in _empty(notes):
        if place.layer == layer:
            gap = gap_of(place)
            because = gap.because if gap else NO_REASON
            backends.setdefault((because, place.fault, place.phase), set()).add(place.backend)
    phases: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (because, fault, phase), found in backends.items():
        where = _names(found) if len(BACKENDS_AT.get(layer, ())) > 1 else ""
        phases.setdefault((because, where), {}).setdefault(fault, []).append(phase)
    reasons = []
    for (because, where), faults in phases.items():
        what = [
            fault if found == ["any"] else f"{fault} ({', '.join(found)})"
            for fault, found in faults.items()
        ]
        on = f", on {where}" if where else ""
        reasons.append(f"- {', '.join(what)}{on}: {because}.\n")
    if not reasons:
        return ""
    return "\nLeft empty:\n\n" + "".join(reasons)


def _unfounded(notes: list[Note]) -> list[str]:
    """The reasons that no empty cell has."""
    from faults.gaps import GAPS, gap_of

    used = {gap_of(place) for place in _empty(notes)}
    return [gap.because for gap in GAPS if gap not in used]


def _empty(notes: list[Note]) -> list[Place]:
    from faults.gaps import Place, empty

    return empty(
        Place(note.layer, note.fault, note.phase, note.backend)
        for note in notes
        if note.outcome != "skipped"
    )


def _lines(rows: list[Row], notes: list[Note]) -> list[str]:
    """One for all phases in which a test sees the same."""
    phases: dict[tuple[str, ...], list[str]] = {}
    for row in sorted(rows, key=lambda row: (row.cell.place, row.test)):
        cell = row.cell
        counted = f" *Bytes:* {cell.counted}." if cell.counted else ""
        key = (row.test, cell.fault, cell.layer, cell.phase)
        held = _held([note for note in notes if note[1:5] == key])
        columns = (f"{cell.sees}.{counted}", "unharmed" if cell.others else "", held)
        phases.setdefault((cell.fault, row.test, *columns), []).append(cell.phase)
    lines = []
    for (fault, test, *rest), found in phases.items():
        file, _, name = test.partition("::")
        when = "" if found == ["any"] else f": {', '.join(found)}"
        lines.append(f'| [{fault}](../{file} "{name}"){when} | {" | ".join(rest)} |\n')
    return lines


def _held(notes: list[Note]) -> str:
    """Where a cell's test has passed: "userspace", "models", "kernel", or by name."""
    said: dict[str, set[str]] = {}
    for note in notes:
        if note.outcome != "skipped":
            kernel = note.backend == "kernel"
            name = f"{note.system}'s kernel" if kernel else note.backend
            said.setdefault(note.outcome, set()).add(name)
    if not said:
        return f"not played: {notes[0].system}" if notes else "**not played**"
    parts = []
    for outcome, backends in sorted(said.items(), key=lambda each: WORST.index(each[0])):
        text = _names(backends)
        parts.append(text if outcome == "passed" else f"**not on {text}**")
    return "; ".join(reversed(parts))


def _names(backends: set[str]) -> str:
    """The backends, in as few words as there are."""
    from conformance.backends import MODELS

    names = []
    groups = {"userspace": {"os.splice", "copy"}, "the models": set(MODELS)}
    for group, members in groups.items():
        if members <= backends:
            names.append(group)
            backends = backends - members
    return ", ".join(names + sorted(backends))


def main() -> int:
    sys.path[:0] = [str(ROOT), str(TESTS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", action="store_true", help="play the tests, all or those of FILEs")
    parser.add_argument(
        "--check", action="store_true", help="status 1 if the page isn't up to date"
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    options = parser.parse_args()
    rows = list(collect().rows.values())
    notes = read_notes()
    if options.run:
        write_notes(notes, list(play(options.files).notes.values()), rows)
        notes = read_notes()
    before = PAGE.read_text()
    head, _, remainder = before.partition(BEGIN)
    text = head + BEGIN + "\n" + tables(rows, notes) + "\n" + END + remainder.partition(END)[2]
    wrong = [note for note in notes if note.outcome == "failed"]
    missing = text.count("**not played**") + text.count(NO_REASON)
    unfounded = _unfounded(notes)
    for because in unfounded:
        print(f"tests/faults/gaps.py: no empty cell has this reason: {because}")
    if not options.check:
        PAGE.write_text(text)
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} cells, {missing} not played, {len(wrong)} failed")
    stale = options.check and text != before
    return 1 if wrong or missing or unfounded or stale else 0


if __name__ == "__main__":
    sys.exit(main())
