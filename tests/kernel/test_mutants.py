"""Each counter-measure of KernelFlow's taken out: something must fail then."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from machine.mutants import MET_BY_CHANCE, MUTANTS, OPENBSD_MUTANTS, Patches, applied
from machine.scenarios import FREEBSD, OPENBSD, Stage, stage


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_scenario_notices(mutant: Callable[[], Patches]) -> None:
    assert _noticing(mutant, "14.3", FREEBSD), "no scenario fails without it"


@pytest.mark.parametrize("mutant", OPENBSD_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_scenario_notices_on_openbsd(mutant: Callable[[], Patches]) -> None:
    assert _noticing(mutant, "openbsd", OPENBSD), "no scenario fails without it"


def _noticing(
    mutant: Callable[[], Patches], version: str, scenarios: list[Callable[[Stage], None]]
) -> list[str]:
    noticed = []
    logging.disable(logging.CRITICAL)
    with applied(mutant):
        for scenario in scenarios:
            try:
                with stage(version) as made:
                    scenario(made)
            except Exception:
                noticed.append(scenario.__name__)
    logging.disable(logging.NOTSET)
    return noticed


# By a thread: hypothesis takes the signal's failure for one of the example's, and goes on.
@pytest.mark.timeout(600, method="thread")
@pytest.mark.slow
@pytest.mark.parametrize("mutant", MET_BY_CHANCE, ids=lambda mutant: mutant.__name__)
def test_the_machine_notices(mutant: Callable[[], Patches]) -> None:
    pytest.importorskip("hypothesis", reason="the state machine is hypothesis's")
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    from machine.machine import KernelMachine

    with applied(mutant), pytest.raises(BaseException):  # noqa: B017 - whichever assertion it is
        run_state_machine_as_test(
            KernelMachine,
            settings=settings(
                # Ten times what the slowest of them mostly takes: it ends with the first failure.
                max_examples=40_000,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=[Phase.generate],
            ),
        )
