"""The facts table: on each modelled kernel, and on the real one where there is one."""

from __future__ import annotations

import pytest

from freebsd_splice._facts import KernelStage, Row, cannot_play, play, rows
from freebsd_splice._facts._play import played_here

from .model_stage import ModelStage

table = pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.facts}: {row.name}")


@pytest.mark.parametrize("version", ["14.3", "15.1", "openbsd"])
@table
def test_on_the_model(row: Row, version: str) -> None:
    stage = ModelStage(version)
    if played_here(row, stage) is None:
        pytest.skip("says nothing about this kernel")
    assert play(row, stage).differs == []


@pytest.mark.skipif(cannot_play() is not None, reason=str(cannot_play()))
@table
def test_on_this_kernel(row: Row) -> None:
    stage = KernelStage()
    try:
        if played_here(row, stage) is None:
            pytest.skip("says nothing about this kernel")
        if row.model_only:
            pytest.skip(row.model_only)
        assert play(row, stage).differs == []
    finally:
        stage.close()


def test_every_observable_fact_has_a_row() -> None:
    shown = {fact for row in rows() for fact in row.facts.split(", ")}
    # F5 to F7: of other kernels, of all CPUs, of Capsicum.  F24 would stall other people's splices.
    wanted = {f"F{number}" for number in [3, 4, 8, *range(9, 24), 25, 26, 27, 28, 35, 38]}
    assert wanted <= shown, wanted - shown
