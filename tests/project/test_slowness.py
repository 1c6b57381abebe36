"""What the factor for slow machines is a factor of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.slowness import SLOWNESS

ROOT = Path(__file__).parents[2]

#: Each runs a pytest of its own.
pytestmark = pytest.mark.slow

#: On a machine that is four times as slow as this one pretends to be.
TESTS = """
import time
import pytest

def test_with_the_time_that_all_have():
    time.sleep(0.7)

@pytest.mark.timeout(0.5, method="thread")
def test_with_a_time_of_its_own():
    time.sleep(0.7)
"""

EXAMPLES = """
import time
from hypothesis import given, settings, strategies

@settings(max_examples=8)
@given(strategies.integers().map(lambda number: time.sleep(0.3) or number))
def test_examples_that_come_slowly(number):
    time.sleep(0.01 * (number % 2))
"""


def _pytest(directory: Path, tests: str, *options: str, slowness: float) -> tuple[int, str]:
    """Run these tests as if they were among those here."""
    (directory / "test_there.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "conftest"]
    run = subprocess.run(
        [*command, "-p", "no:randomly", "-p", "no:cacheprovider", *options, str(directory)],
        cwd=directory,
        env=os.environ
        | {"FREEBSD_SPLICE_SLOWNESS": str(slowness)}
        | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100 * SLOWNESS,
    )
    return run.returncode, run.stdout


def test_a_slow_machine_has_more_time_for_each_test(tmp_path: Path) -> None:
    pytest.importorskip("pytest_timeout", reason="it is what ends tests that hang")
    status, said = _pytest(tmp_path, TESTS, "-o", "timeout=0.5", slowness=100 * SLOWNESS)
    assert status == 0, said


def test_what_the_command_line_says_is_meant_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("pytest_timeout", reason="it is what ends tests that hang")
    options = ("--timeout", "0.5", "-k", "all_have")
    status, said = _pytest(tmp_path, TESTS, *options, slowness=100)
    assert status == 1
    assert "Timeout" in said


def test_examples_may_come_slowly(tmp_path: Path) -> None:
    pytest.importorskip("hypothesis", reason="the examples are hypothesis's")
    status, said = _pytest(tmp_path, EXAMPLES, slowness=SLOWNESS)
    assert status == 0, said
