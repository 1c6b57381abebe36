"""UserspaceFlow, Splice and Relay on modelled sockets, whatever happens in whatever order.

The world has its own clock, network and scheduler, so a failing run is the same each time.
"""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="the state machine is hypothesis's")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from stateful.engine_rules import EngineRules
from stateful.machine import REPEATABLE, TIERS, play


@pytest.mark.parametrize("steps", TIERS)
def test_whatever_happens(steps: int) -> None:
    play(EngineRules, steps)


def test_the_default_tier_is_the_same_each_time() -> None:
    drawn: list[int] = []

    class Drawing(RuleBasedStateMachine):
        @rule(number=st.integers())
        def draws(self, number: int) -> None:
            drawn.append(number)

    play(Drawing, REPEATABLE)
    first = drawn.copy()
    drawn.clear()
    play(Drawing, REPEATABLE)
    assert drawn == first
    assert settings.default is not None
    assert settings.default.derandomize  # for the examples of all others
