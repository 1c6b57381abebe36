"""docs/conformance.md and docs/reliability.md are what the tests say."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.slowness import SLOWNESS

ROOT = Path(__file__).resolve().parents[2]

#: Characters of a test's name, which is a line of that page and of pytest's report.
LONGEST_NAME = 60


@pytest.mark.parametrize("tool", ["conformance_table", "fault_table"])
def test_the_page_is_up_to_date(tool: str) -> None:
    """Made in a process of its own: collecting would disturb the run under way."""
    if tool == "fault_table":
        if sys.platform == "win32":
            pytest.skip("the programs' tests, which play most faults, are POSIX's")
        for needed in ("h11", "dns"):
            pytest.importorskip(needed, reason="a module that plays faults isn't there without")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / f"{tool}.py", "--check"],
        capture_output=True,
        text=True,
        timeout=100 * SLOWNESS,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"run tools/{tool}.py\n{done.stdout}{done.stderr}"


def test_names_of_tests_are_short_enough_for_a_line() -> None:
    names = [
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    assert [name for name in names if len(name) > LONGEST_NAME] == []
