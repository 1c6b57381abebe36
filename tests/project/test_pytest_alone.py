"""In a FreeBSD guest (ci/freebsd-vm) the tests have Python and pytest, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.slowness import SLOWNESS

ROOT = Path(__file__).parents[2]

#: Each runs a pytest of its own.
pytestmark = pytest.mark.slow


def _pytest(*arguments: str) -> str:
    without = [f"-pno:{plugin}" for plugin in ("randomly", "timeout", "hypothesispytest", "anyio")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "support.only_pytest",
        *without,
        *arguments,
    ]
    run = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100 * SLOWNESS,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_every_test_can_be_collected() -> None:
    assert "error" not in _pytest("--collect-only").splitlines()[-1]


def test_what_needs_more_is_skipped_and_says_so() -> None:
    files = ("kernel/test_machine", "kernel/test_mutants", "core/test_backend", "vm/test_pieces")
    said = _pytest("-rs", *(f"tests/{name}.py" for name in files))
    for reason in ("the state machine is hypothesis's", "models the extension by cffi", "pycdlib"):
        assert reason in said
