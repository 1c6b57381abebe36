"""How long the state machines run: by default the same steps each time, later others as well."""

from __future__ import annotations

from typing import Any

import pytest

STEPS_A_RUN = 50

#: The steps of the default tier. A change is refused there only for what it has changed.
REPEATABLE = 1_500

TIERS = [
    REPEATABLE,
    # By a thread: hypothesis takes the signal's failure for one of the example's, and goes on.
    pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(600, method="thread")]),
    pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
]


def play(machine: Any, steps: int) -> None:
    """Run a state machine."""
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=steps // STEPS_A_RUN,
            stateful_step_count=STEPS_A_RUN,
            deadline=None,
            derandomize=steps == REPEATABLE,
            suppress_health_check=list(HealthCheck),
            database=None,
            print_blob=True,
        ),
    )
