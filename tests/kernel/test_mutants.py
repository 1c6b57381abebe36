"""Each counter-measure of KernelFlow's taken out: something must fail then."""

from __future__ import annotations

import inspect
import logging

import pytest

from stateful import mutants
from stateful.mutants import MET_BY_CHANCE, Mutant, applied, mutants_of
from stateful.registry import FREEBSD, OPENBSD
from stateful.rig import rig
from stateful.scenarios import Scenario, scenarios_of


@pytest.mark.parametrize("mutant", mutants_of(FREEBSD), ids=lambda mutant: mutant.__name__)
def test_a_scenario_notices(mutant: Mutant) -> None:
    assert _noticing(mutant, "14.3", scenarios_of(FREEBSD)), "no scenario fails without it"


@pytest.mark.parametrize("mutant", mutants_of(OPENBSD), ids=lambda mutant: mutant.__name__)
def test_a_scenario_notices_on_openbsd(mutant: Mutant) -> None:
    assert _noticing(mutant, "openbsd", scenarios_of(OPENBSD)), "no scenario fails without it"


def _noticing(mutant: Mutant, version: str, scenarios: list[Scenario]) -> list[str]:
    noticed = []
    logging.disable(logging.CRITICAL)
    with applied(mutant):
        for scenario in scenarios:
            try:
                with rig(version) as made:
                    scenario(made)
            except Exception:
                noticed.append(scenario.__name__)
    logging.disable(logging.NOTSET)
    return noticed


def test_every_mutant_that_is_written_is_tried() -> None:
    """One that doesn't register itself would be noticed by nobody."""
    written = {
        function
        for _, function in inspect.getmembers(mutants, inspect.isfunction)
        if function.__annotations__ == {"return": "Patches"} and function.__name__[0] != "_"
    }
    assert written == {*mutants_of(FREEBSD), *mutants_of(OPENBSD)}


# By a thread: hypothesis takes the signal's failure for one of the example's, and goes on.
@pytest.mark.timeout(600, method="thread")
@pytest.mark.slow
@pytest.mark.parametrize("mutant", MET_BY_CHANCE, ids=lambda mutant: mutant.__name__)
def test_the_stateful_test_notices(mutant: Mutant) -> None:
    pytest.importorskip("hypothesis", reason="the state machine is hypothesis's")
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    from stateful.rules import TransferRules

    with applied(mutant), pytest.raises(BaseException):  # noqa: B017 - whichever assertion it is
        run_state_machine_as_test(
            TransferRules,
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
