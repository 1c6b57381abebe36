"""CONTRIBUTING.md: its examples are run, and what it names is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from conformance import test_splice
from conformance.backends import Served
from conformance.harness import Harness
from stateful.rig import rig
from stateful.scenarios import ends

from .imports import PACKAGE

ROOT = PACKAGE.parent
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]


def _example(section: str, around: object) -> Callable[..., object]:
    """The first function of the section's example, as it would be in that module."""
    text = PAGES[0].read_text("utf-8").split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    block = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)[0]
    without_registering = block[block.index("def ") :]
    names: dict[str, Any] = dict(vars(around))
    exec(without_registering, names)
    found = re.findall(r"^def (\w+)", block, re.M)[0]
    return cast(Callable[..., object], names[found])


def test_the_example_of_a_case_holds(harness: Harness, served: Served) -> None:
    _example("A conformance case", test_splice)(harness, served)


@pytest.mark.parametrize("version", ["14.3", "15.1"])
def test_the_example_of_a_scenario_holds(version: str) -> None:
    with rig(version) as made:
        _example("A scenario", ends)(made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_are_named_are_there(page: Path) -> None:
    names = re.findall(r"`([\w./-]+/[\w.-]*)", page.read_text("utf-8"))
    tops = {path.name for path in ROOT.iterdir()}
    named = [name for name in names if "name." not in name and "*" not in name]
    for name in named:
        first = name.split("/")[0]
        folder = ROOT if first in tops else PACKAGE
        assert (folder / name).exists(), name
    assert len(named) > 8
