"""--check: whether a proxy would start, without a start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from programs.processes import MAIN, Program

StartProgram = Callable[..., Program]

#: Nobody may listen there, and the name can't be looked up: neither is tried.
LISTEN = "nowhere.invalid:1"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_right_is_not_started(workers: str, program: StartProgram) -> None:
    arguments = ("forward", "--check", "--workers", workers, LISTEN, "nowhere.invalid:80")
    checked = program(*MAIN, *arguments)
    assert checked.end() == 0
    assert checked.lines == []


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("forward", LISTEN, "http://a"), 2, "write host:port"),
        (("forward", "--user", "nobody-at-all", LISTEN, "a:80"), 2, "there is no user"),
        (("socks5", "--passwords", "{}", LISTEN), 1, "line 1"),
        (("sni", "{}", LISTEN), 1, "routes"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[str, ...], status: int, complaint: str, program: StartProgram, tmp_path: Path
) -> None:
    file = tmp_path / "routes"
    file.write_text("nonsense")
    checked = program(*MAIN, *(each.format(file) for each in arguments), "--check")
    assert checked.end() == status
    assert complaint in checked.text
    assert "Traceback" not in checked.text
