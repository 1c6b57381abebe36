"""The facts table: on each modelled kernel, and on the real one where there is one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from freebsd_splice._diagnostics.facts import KernelStage, Row, cannot_play, play, rows
from freebsd_splice._diagnostics.facts._play import played_here
from freebsd_splice._diagnostics.selftest import EmulationStage

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


def test_what_is_closed_stays_so() -> None:
    """A number that was just closed is that of the next thing that anybody opens."""
    if sys.platform == "win32":
        pytest.skip("descriptors of sockets are no numbers of files there")
    stage = EmulationStage()
    try:
        stage.do_use(drain="closed")
        stage.do_duplicates()
        stage.do_use(source="unconnected")
        with pytest.raises(OSError) as closed:
            os.fstat(stage._descriptor("drain"))
        assert closed.value.errno == errno.EBADF
    finally:
        stage.close()


WITHOUT_POLLRDHUP = """
import select, sys
sys.platform = "openbsd7"
vars(select).pop("POLLRDHUP", None)
from freebsd_splice._platform import end_events
from freebsd_splice._diagnostics.facts import _kernel_stage
print(end_events._READ_HANGUP, _kernel_stage.POLLRDHUP)
"""


def test_nobody_asks_for_pollrdhup_where_there_is_none() -> None:
    """F39: there, its number means something else, or nothing for ever."""
    if sys.platform == "win32":
        pytest.skip("it can't be taken for OpenBSD")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_POLLRDHUP], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["0", "0"]


def test_every_observable_fact_has_a_row() -> None:
    shown = {fact for row in rows() for fact in row.facts.split(", ")}
    # F5 to F7: of other kernels, of all CPUs, of Capsicum.  F24 would stall other people's splices.
    wanted = {f"F{number}" for number in [3, 4, 8, *range(9, 24), 25, 26, 27, 28, 35, 38]}
    assert wanted <= shown, wanted - shown
