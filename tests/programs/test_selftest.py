"""``freebsd-splice selftest``."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from freebsd_splice import _cli
from freebsd_splice._diagnostics import selftest
from freebsd_splice._diagnostics.facts import Fact
from freebsd_splice._diagnostics.transfers import TransferError
from programs.processes import MAIN, Program

StartProgram = Callable[..., Program]


@pytest.mark.slow
def test_its_verdict_is_in_plain_words(program: StartProgram) -> None:
    run = program(*MAIN, "selftest", "--transfers", "12", "--seed", "1")
    assert run.end() == 0, run.text
    assert "Backend: " in run.text
    assert "hold, 0 differ." in run.text
    assert "Hostile transfers: 12 in" in run.text
    assert run.text.splitlines()[-1].startswith("All is well on ")


@pytest.fixture
def no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freebsd_splice._diagnostics.facts.facts", list)


@pytest.mark.usefixtures("no_facts")
def test_a_transfer_that_goes_wrong_is_named_with_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(plan: object) -> None:
        raise TransferError("a byte is missing")

    said: list[str] = []
    monkeypatch.setattr(selftest, "play", wrong)
    assert not selftest.selftest(2, 77, said.append)
    assert "a byte is missing" in said[2]
    assert "77" in said[2]
    assert said[-1].startswith("DON'T TRUST IT HERE: 2 transfers went wrong")


def test_a_fact_that_differs_is_told_apart_from_a_lost_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fact = Fact("ten bytes are eleven", "F4", "splice; send 10; end", count=11)
    monkeypatch.setattr("freebsd_splice._diagnostics.facts.facts", lambda: [fact])
    said: list[str] = []
    assert not selftest.selftest(1, 1, said.append)
    assert any("11 expected, 10 seen" in line for line in said)
    assert said[-1].startswith("No transfer lost a byte, but 1 facts differ")


def test_it_ends_when_its_time_is_over_and_says_what_is_missing() -> None:
    said: list[str] = []
    assert selftest.selftest(300, 1, said.append, seconds=1e-9)
    assert said[1].startswith("Facts: 0 hold, 0 differ, 0 of ")
    assert "Hostile transfers: 1 of 300 in " in said[2]
    assert ", the time allowed (" in said[2]


@pytest.mark.parametrize(
    ("arguments", "transfers", "seconds"),
    [
        ([], 300, 30.0),
        (["--transfers", "7"], 7, None),
        (["--seconds", "2.5"], 300, 2.5),
        (["--transfers", "7", "--seconds", "2.5"], 7, 2.5),
    ],
)
def test_transfers_that_are_asked_for_are_played_however_long(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    transfers: int,
    seconds: float | None,
) -> None:
    asked: list[Any] = []

    def selftest(count: int, seed: int, say: object, **options: Any) -> bool:
        asked[:] = [count, seed, options["seconds"]]
        return True

    monkeypatch.setattr(_cli, "selftest", selftest)
    assert _cli.main(["selftest", "--seed", "3", *arguments]) == 0
    assert asked == [transfers, 3, seconds]


def test_a_slow_machine_is_given_longer_for_each_transfer() -> None:
    ask = "from freebsd_splice._diagnostics.transfers import PATIENCE; print(PATIENCE)"
    run = subprocess.run(
        [sys.executable, "-c", ask],
        env=os.environ | {"FREEBSD_SPLICE_SLOWNESS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) == 60


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_terminal_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    fact = Fact("nothing happens", "F4", "nothing", count=0)
    monkeypatch.setattr("freebsd_splice._diagnostics.facts.facts", lambda: [fact])
    shown = stream()
    assert selftest.selftest(2, 1, lambda line: None, terminal=shown)
    if stream is Terminal:
        lines = [line.rstrip() for line in shown.getvalue().split("\r")]
        assert lines == ["", "fact 1 of 1", "", "", "transfer 1 of 2", "transfer 2 of 2", "", ""]
    else:
        assert shown.getvalue() == ""


def test_a_backend_that_is_not_there_is_said_and_nothing_tried(program: StartProgram) -> None:
    run = program(*MAIN, "selftest", environment={"FREEBSD_SPLICE_BACKEND": "mach"})
    assert run.end() == 1
    assert "FREEBSD_SPLICE_BACKEND" in run.text


def test_a_failure_in_its_midst_is_not_told_as_one_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a traceback says where it is."""

    def fail(*_: object, **__: object) -> bool:
        raise OSError("in its midst")

    monkeypatch.setattr(_cli, "selftest", fail)
    with pytest.raises(OSError, match="in its midst"):
        _cli.main(["selftest"])
