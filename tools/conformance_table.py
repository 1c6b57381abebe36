"""Makes docs/conformance.md from the conformance suite: which case runs on which backend.

``python tools/conformance_table.py`` writes the file; ``--check`` says whether it is up to date.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.md"
SUITE = ROOT / "tests" / "conformance"

#: Columns: their heading, and what a case's marks call it, for ``Splice``/``Relay`` and for the
#: thin functions.
COLUMNS = {
    "os.splice": ("os.splice", ""),
    "copy": ("copy", "userspace"),
    "model 14.3": ("model 14.3", "model 14.3"),
    "model 15.1": ("model 15.1", "model 15.1"),
    "model OpenBSD": ("model openbsd", "model openbsd"),
    "kernel": ("kernel", "kernel"),
}

HEAD = """\
# The conformance suite, case by case

One suite states what a splice does. Each case runs on every backend that a machine has: userspace
with each of its movers, three modelled kernels (FreeBSD 14.3 to 15.0, 15.1, OpenBSD), and the real
kernel where there is one. This page is made from the suite by `python tools/conformance_table.py`.

On your own FreeBSD or OpenBSD, with the kernel demanded, so that nothing falls back to userspace:

```sh
python tests/facts                                             # is the kernel as the facts say?
FREEBSD_SPLICE_BACKEND=kernel sh tools/test tests/conformance  # and the package on it
```

The thin functions have one backend in userspace, an emulation; it stands in the column "copy".
A number says why a case isn't for a backend. *Counterpart* names the cases of the kernels' own test
suites that ask for the same: `FreeBSD` is FreeBSD's splice test, `OpenBSD` its sosplice regression.

"""


class Case:
    """One test function, whatever its parameters."""

    def __init__(self, item: pytest.Function) -> None:
        self.file = item.path.name
        self.name = item.originalname.removeprefix("test_").replace("_", " ")
        doc = (item.function.__doc__ or "").strip().split("\n")[0]
        self.facts = doc.split(":")[0] if doc.startswith("F") and doc[1:2].isdigit() else ""
        self.thin = "thin" in item.fixturenames
        self.marks = list(item.iter_markers("not_on"))
        self.counterparts = [
            reference for mark in item.iter_markers("counterpart") for reference in mark.args[0]
        ]


class _Collected:
    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        for item in items:
            name = f"{item.path.name}::{item.originalname}"
            if name not in self.cases and {"thin", "served"} & set(item.fixturenames):
                self.cases[name] = Case(item)


def collect() -> list[Case]:
    """The cases, in the order of the files."""
    found = _Collected()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        options = ["--collect-only", "-q", "-p", "no:randomly", "-m", "", str(SUITE)]
        status = pytest.main([*options, f"--rootdir={ROOT}"], plugins=[found])
    if status != 0:
        raise SystemExit(said.getvalue())
    return list(found.cases.values())


def page(cases: list[Case]) -> str:
    """The file's text."""
    from conformance.backends import reason_against

    reasons: list[str] = []
    rows = []
    for case in cases:
        cells = []
        for splice_name, thin_name in COLUMNS.values():
            backend = thin_name if case.thin else splice_name
            because = reason_against(case.marks, backend) if backend else None
            if because is not None and because not in reasons:
                reasons.append(because)
            cells.append(
                "" if not backend else "yes" if because is None else f"{reasons.index(because) + 1}"
            )
        counterparts = ", ".join(case.counterparts)
        rows.append(f"| {case.name} | {case.facts} | {' | '.join(cells)} | {counterparts} |")
    heading = f"| case | facts | {' | '.join(COLUMNS)} | counterpart |"
    line = "|---" * (len(COLUMNS) + 3) + "|"
    notes = [
        f"{number}. {reason[0].upper()}{reason[1:]}." for number, reason in enumerate(reasons, 1)
    ]
    parts = [HEAD, f"{len(cases)} cases.\n"]
    files = dict.fromkeys(case.file for case in cases)
    for file in files:
        chosen = [row for row, case in zip(rows, cases, strict=True) if case.file == file]
        parts.append(f"\n## {TITLES[file]}\n\n" + "\n".join([heading, line, *chosen]) + "\n")
    parts.append("\n## Why not\n\n" + "\n".join(notes) + "\n")
    return "".join(parts)


TITLES = {
    "test_splice.py": "`Splice`",
    "test_relay.py": "`Relay`",
    "test_thin_ends.py": "The thin functions: ends",
    "test_thin_errors.py": "The thin functions: errors",
    "test_thin_many.py": "The thin functions: many splices, threads, processes",
    "test_thin_moving.py": "The thin functions: moving bytes",
    "test_thin_peers.py": "The thin functions: peers that stand still or vanish",
    "test_counterparts.py": "Counterparts of the kernels' own cases",
}


def main() -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    text = page(collect())
    if "--check" in sys.argv:
        return 0 if PAGE.read_text() == text else 1
    PAGE.write_text(text)
    print(f"{PAGE.relative_to(ROOT)}: {text.count('| yes |')} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
