"""The manual pages: right mdoc, and about what there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import freebsd_splice
from freebsd_splice import aio

ROOT = Path(__file__).parents[2]
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


@cache
def _help(*command: str) -> str:
    run = [sys.executable, "-m", "freebsd_splice", *command, "--help"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def _described(text: str) -> list[str]:
    """The options that a part of the page describes."""
    return re.findall(r"^\.It Fl -([\w-]+)", text, re.M)


def test_the_program_is_described_whole() -> None:
    """What several commands have is described once, in a subsection that their synopses name."""
    page = PROGRAM.read_text().replace("\\&", "")
    sections = dict(re.findall(r"^\.S[sh] (.+)\n((?:(?!\.S[sh] ).*\n)*)", page, re.M))
    synopses = {
        words[0]: rest
        for _, *words, rest in re.findall(r"^(\.Nm)\n\.Cm (\w+)\n((?:(?!\.Nm).*\n)*)", page, re.M)
    }
    commands = re.findall(r"^    (\w+) ", _help(), re.M)
    assert len(commands) >= 7
    assert set(synopses) == set(commands)
    for command in commands:
        assert f".It Cm {command}\n" in page
        named = set(re.findall(r"^\.Op Fl -([\w-]+)", synopses[command], re.M))
        for shared in re.findall(r"^\.Op Ar (\w+)$", synopses[command], re.M):
            if shared != "listen":
                named |= set(_described(sections[shared.capitalize()]))
        assert named == set(re.findall(r"^  --([\w-]+)", _help(command), re.M)), command
    described = _described(page)
    assert len(described) == len(set(described))
    assert set(described) == {
        option
        for command in commands
        for option in re.findall(r"^  --([\w-]+)", _help(command), re.M)
    }


def test_the_defaults_are_those_of_the_help() -> None:
    page = PROGRAM.read_text()
    described = re.findall(r"^\.It Fl -([\w-]+)[^\n]*\n((?:(?!\.It|\.El).*\n)*)", page, re.M)
    helps = " ".join("".join(map(_help, re.findall(r"^    (\w+) ", _help(), re.M))).split())
    checked = 0
    for option, text in described:
        for default in re.findall(r"^The default is (\d+)\.$", text, re.M):
            assert re.search(rf" --{option} [A-Z]+ ((?! --).)*\(default: {default}\b", helps), (
                option
            )
            checked += 1
    assert checked >= 10


def test_the_librarys_names_are_all_there() -> None:
    page = LIBRARY.read_text()
    for name in freebsd_splice.__all__:
        if isinstance(getattr(freebsd_splice, name), type) and name not in ("Splice", "Relay"):
            continue  # what those two raise and give
        assert re.search(rf"^\.It .*\b{name}\b", page, re.M), name
    for name in aio.__all__:
        assert re.search(rf"\baio\.{name}\b", page), name
    for reason in freebsd_splice.Reason:
        assert re.search(rf"\b{reason.name}\b", page), reason
