"""KernelFlow, Splice and Relay on the modelled kernels, whatever happens in whatever order."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="the state machine is hypothesis's")

from stateful.machine import TIERS, play
from stateful.rules import KernelRules


@pytest.mark.parametrize("version", ["14.3", "15.1", "openbsd"])
@pytest.mark.parametrize("steps", TIERS)
def test_whatever_happens(version: str, steps: int) -> None:
    play(type("Rules", (KernelRules,), {"version": version}), steps)
