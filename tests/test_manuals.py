"""The manual pages: right mdoc, and about what there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import freebsd_splice

ROOT = Path(__file__).parents[1]
PROGRAM, LIBRARY = ROOT / "docs/man/freebsd-splice.1", ROOT / "docs/man/freebsd_splice.3"


@pytest.mark.parametrize("page", [PROGRAM, LIBRARY], ids=lambda page: page.name)
def test_mandoc_finds_nothing_to_say(page: Path) -> None:
    if shutil.which("mandoc") is None:
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail("mandoc is not installed")
        pytest.skip("mandoc is not installed")
    said = subprocess.run(["mandoc", "-T", "lint", page], capture_output=True, text=True).stdout
    # Whether another page is there depends on the machine.
    findings = [line for line in said.splitlines() if "referenced manual not found" not in line]
    assert findings == []


def _help(*command: str) -> str:
    run = [sys.executable, "-m", "freebsd_splice", *command, "--help"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_the_program_is_described_whole() -> None:
    page = PROGRAM.read_text().replace("\\&", "")
    commands = re.findall(r"^    (\w+) ", _help(), re.M)
    assert len(commands) >= 3
    for command in commands:
        assert f".It Cm {command}\n" in page
        for option in re.findall(r"^  --([\w-]+)", _help(command), re.M):
            assert f".It Fl -{option}" in page, f"{command} --{option}"
    options = set(re.findall(r"^\.It Fl -([\w-]+)", page, re.M))
    helps = "".join(map(_help, commands))
    assert all(f"--{option}" in helps for option in options)


def test_the_librarys_names_are_all_there() -> None:
    page = LIBRARY.read_text()
    for name in freebsd_splice.__all__:
        if isinstance(getattr(freebsd_splice, name), type) and name not in ("Splice", "Relay"):
            continue  # what those two raise and give
        assert re.search(rf"^\.It .*\b{name}\b", page, re.M), name
    for reason in freebsd_splice.Reason:
        assert re.search(rf"\b{reason.name}\b", page), reason
