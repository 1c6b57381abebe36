"""``freebsd-splice selftest``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from freebsd_splice import _selftest
from freebsd_splice._facts import Row
from freebsd_splice._selftest_transfers import TransferError
from programs.processes import MAIN, Program

StartProgram = Callable[..., Program]


def test_its_verdict_is_in_plain_words(program: StartProgram) -> None:
    run = program(*MAIN, "selftest", "--transfers", "12", "--seed", "1")
    assert run.end() == 0, run.text
    assert "Backend: " in run.text
    assert "hold, 0 differ." in run.text
    assert "Hostile transfers: 12 in" in run.text
    assert run.text.splitlines()[-1].startswith("All is well on ")


@pytest.fixture
def no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freebsd_splice._facts.rows", list)


@pytest.mark.usefixtures("no_facts")
def test_a_transfer_that_goes_wrong_is_named_with_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(plan: object) -> None:
        raise TransferError("a byte is missing")

    said: list[str] = []
    monkeypatch.setattr(_selftest, "play", wrong)
    assert not _selftest.selftest(2, 77, said.append)
    assert "a byte is missing" in said[2]
    assert "77" in said[2]
    assert said[-1].startswith("DON'T TRUST IT HERE: 2 transfers went wrong")


def test_a_fact_that_differs_is_told_apart_from_a_lost_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = Row("ten bytes are eleven", "F4", "splice; send 10; end", count=11)
    monkeypatch.setattr("freebsd_splice._facts.rows", lambda: [row])
    said: list[str] = []
    assert not _selftest.selftest(1, 1, said.append)
    assert any("11 expected, 10 seen" in line for line in said)
    assert said[-1].startswith("No transfer lost a byte, but 1 facts differ")


def test_a_backend_that_is_not_there_is_said_and_nothing_tried(program: StartProgram) -> None:
    run = program(*MAIN, "selftest", environment={"FREEBSD_SPLICE_BACKEND": "mach"})
    assert run.end() == 1
    assert "FREEBSD_SPLICE_BACKEND" in run.text
