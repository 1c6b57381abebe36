"""UserspaceFlow, Splice and Relay on modelled sockets, whatever happens in whatever order.

The world has its own clock, network and scheduler, so a failing run is the same each time.
"""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="the state machine is hypothesis's")

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from stateful.engine_rules import EngineRules

STEPS = 50


@pytest.mark.parametrize(
    "steps",
    [
        1_500,
        # By a thread: hypothesis takes the signal's failure for one of the example's, and goes on.
        pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(600, method="thread")]),
        pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
    ],
)
def test_whatever_happens(steps: int) -> None:
    run_state_machine_as_test(
        EngineRules,
        settings=settings(
            max_examples=steps // STEPS,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            print_blob=True,
        ),
    )
