"""docs/architecture.md: its pictures, its names and its stories are those of the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import pytest

from freebsd_splice import Reason
from freebsd_splice._backend import KernelChoice
from freebsd_splice._kernel.phases import TRANSITIONS
from model.platform import ModelPlatform
from stateful.rig import Rig, rig
from support.slowness import SLOWNESS

from .imports import PACKAGE

ROOT = PACKAGE.parent
PAGE = ROOT / "docs" / "architecture.md"

#: [`KernelFlow._settle`](../freebsd_splice/_kernel/flow.py): a name, and the file it is defined in.
LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./freebsd_splice/([\w/]+\.py)\)")

#: A function by where it begins: the file, and the line.
Place = tuple[str, int]


def test_the_pictures_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "pictures.py", "--check"],
        capture_output=True,
        text=True,
        timeout=100 * SLOWNESS,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"run tools/pictures.py\n{done.stdout}{done.stderr}"


def _definitions(path: Path) -> dict[str, int]:
    """What a file defines, with the first line of each: "Class.method", "function", "NAME"."""
    found: dict[str, int] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                found[prefix + node.name] = first
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            found.update({prefix + t.id: node.lineno for t in targets if isinstance(t, ast.Name)})

    add(ast.parse(path.read_text("utf-8")).body, "")
    return found


def test_each_name_is_defined_in_the_file_it_links_to() -> None:
    links = LINK.findall(PAGE.read_text("utf-8"))
    assert len(links) > 60
    missing = [(name, file) for name, file in links if name not in _definitions(PACKAGE / file)]
    assert missing == []


def test_the_threads_have_the_names_that_the_page_says() -> None:
    section = PAGE.read_text("utf-8").split("\n## Which thread", 1)[1].split("\n## ", 1)[0]
    cells = "".join(re.findall(r"^\| (\*\*.*?) \|", section, re.M))
    written = [name.removesuffix("-0") for name in re.findall(r"`([a-z_ -]+(?:-0)?)`", cells)]
    source = "".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    assert len(written) == 12
    for name in written:
        # The two pools make theirs of a prefix and their own name.
        own = name.removeprefix("freebsd-splice-")
        assert re.search(rf'"(freebsd-splice-)?{own}(-{{[^"]*)?"', source), name


def _story(heading: str) -> list[str]:
    """The numbered steps below it."""
    text = PAGE.read_text("utf-8").split(f"\n### {heading}\n", 1)[1]
    return re.findall(r"^\d+\. (?:.*\n)(?: {3,}.*\n)*", re.split(r"\n#+ ", text)[0], re.M)


def _called(steps: list[str]) -> list[tuple[str, Place]]:
    """The functions that the steps name, in that order; classes and constants are none."""
    return [
        (name, (file, _definitions(PACKAGE / file)[name]))
        for name, file in LINK.findall("".join(steps))
        if re.fullmatch(r"(\w+\.)?_*[a-z]\w*", name)
    ]


def _calls_of(act: Callable[[], None]) -> list[Place]:
    """Every call of a function of the package meanwhile, in order: the model has no threads."""
    calls: list[CodeType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls.append(frame.f_code)

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return [
        (Path(code.co_filename).relative_to(PACKAGE).as_posix(), code.co_firstlineno)
        for code in calls
        if Path(code.co_filename).is_relative_to(PACKAGE)
    ]


def _fin_behind_a_slow_reader(on: Rig, backend: str) -> None:
    splice = on.splice()
    data = on.fill_the_drain(36_000)
    on.sender.fin()
    on.now()
    assert not splice.done
    assert on.read() == data
    on.now()
    outcome = splice.wait()
    assert (outcome.reason, outcome.bytes) == (Reason.EOF, len(data))
    assert outcome.backend == backend


@pytest.mark.parametrize(("backend", "steps"), [("kernel", 14), ("userspace", 5)])
def test_the_story_happens_in_its_order(
    backend: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F13 on the model: what is told is a part of what happens, in the same order."""
    if backend == "userspace":
        monkeypatch.setattr(ModelPlatform, "choose", lambda self: KernelChoice(None, False))
    told = _story("In the kernel" if backend == "kernel" else "In userspace")
    assert len(told) == steps
    with rig("15.1") as on:
        happens = _calls_of(lambda: _fin_behind_a_slow_reader(on, backend))
    at = 0
    for name, place in _called(told):
        assert place in happens[at:], f"{name} isn't called after what the page tells before it"
        at = happens.index(place, at) + 1


def test_the_table_of_phases_has_every_transition() -> None:
    section = PAGE.read_text("utf-8").split("\n## The phases", 1)[1]
    rows = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \|", section, re.M)
    wanted = [(phase.name, other.name) for phase, others in TRANSITIONS.items() for other in others]
    assert sorted(rows) == sorted(wanted)
