"""The facts table: on each modelled kernel, and on the real one where there is one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from freebsd_splice._diagnostics.facts import (
    Fact,
    KernelRig,
    cannot_run,
    facts,
    run_fact,
    shown_by,
    table,
)
from freebsd_splice._diagnostics.selftest import EmulationRig

from .model_rig import ModelRig

each_fact = pytest.mark.parametrize(
    "fact", facts(), ids=lambda fact: f"{fact.numbers}: {fact.name}"
)


@pytest.mark.parametrize("version", ["14.3", "15.1", "openbsd"])
@each_fact
def test_on_the_model(fact: Fact, version: str) -> None:
    rig = ModelRig(version)
    if shown_by(fact, rig) is None:
        pytest.skip("says nothing about this kernel")
    assert run_fact(fact, rig).differs == []


@pytest.mark.skipif(cannot_run() is not None, reason=str(cannot_run()))
@each_fact
def test_on_this_kernel(fact: Fact) -> None:
    rig = KernelRig()
    try:
        if shown_by(fact, rig) is None:
            pytest.skip("says nothing about this kernel")
        if fact.model_only:
            pytest.skip(fact.model_only)
        assert run_fact(fact, rig).differs == []
    finally:
        rig.close()


def test_what_is_closed_stays_so() -> None:
    """A number that was just closed is that of the next thing that anybody opens."""
    if sys.platform == "win32":
        pytest.skip("descriptors of sockets are no numbers of files there")
    rig = EmulationRig()
    try:
        rig.do_use(drain="closed")
        rig.do_duplicates()
        rig.do_use(source="unconnected")
        with pytest.raises(OSError) as closed:
            os.fstat(rig._descriptor("drain"))
        assert closed.value.errno == errno.EBADF
    finally:
        rig.close()


WITHOUT_POLLRDHUP = """
import select, sys
sys.platform = "openbsd7"
vars(select).pop("POLLRDHUP", None)
from freebsd_splice._platform import end_events
from freebsd_splice._diagnostics.facts import kernel_rig
print(end_events._READ_HANGUP, kernel_rig.POLLRDHUP)
"""


def test_nobody_asks_for_pollrdhup_where_there_is_none() -> None:
    """F39: there, its number means something else, or nothing for ever."""
    if sys.platform == "win32":
        pytest.skip("it can't be taken for OpenBSD")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_POLLRDHUP], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["0", "0"]


def test_every_part_of_the_table_is_in_it() -> None:
    parts = [part for part in vars(table).values() if isinstance(part, list)]
    assert len(parts) > 3
    written = [fact for part in parts for fact in part]
    assert len(facts()) == len(written)
    assert all(fact in written for fact in facts())


def test_every_observable_fact_is_in_the_table() -> None:
    shown = {number for fact in facts() for number in fact.numbers.split(", ")}
    # F5 to F7: of other kernels, of all CPUs, of Capsicum.  F24 would stall other people's splices.
    wanted = {f"F{number}" for number in [3, 4, 8, *range(9, 24), 25, 26, 27, 28, 35, 38]}
    assert wanted <= shown, wanted - shown
