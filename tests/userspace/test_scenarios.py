"""The engine on modelled sockets: what it must get right, and each counter-measure taken out."""

from __future__ import annotations

import pytest

from model.world import USERSPACE
from stateful import engine_mutants
from stateful.mutants import Mutant, met_by_chance_of, mutants_of
from stateful.registry import ENGINE
from stateful.rig import rig
from stateful.scenarios import Scenario, scenarios_of
from stateful.trying import noticing, the_machine_notices, written_in


@pytest.mark.parametrize("scenario", scenarios_of(ENGINE), ids=lambda made: made.__name__)
def test_in_userspace(scenario: Scenario) -> None:
    with rig(USERSPACE) as made:
        scenario(made)


@pytest.mark.parametrize("mutant", mutants_of(ENGINE), ids=lambda made: made.__name__)
def test_a_scenario_notices(mutant: Mutant) -> None:
    assert noticing(mutant, USERSPACE, scenarios_of(ENGINE)), "no scenario fails without it"


def test_every_mutant_that_is_written_is_tried() -> None:
    """One that doesn't register itself would be noticed by nobody."""
    assert written_in(engine_mutants) == set(mutants_of(ENGINE))


# By a thread: hypothesis takes the signal's failure for one of the example's, and goes on.
@pytest.mark.timeout(600, method="thread")
@pytest.mark.slow
@pytest.mark.parametrize("mutant", met_by_chance_of(ENGINE), ids=lambda made: made.__name__)
def test_the_stateful_test_notices(mutant: Mutant) -> None:
    pytest.importorskip("hypothesis", reason="the state machine is hypothesis's")
    from stateful.engine_rules import EngineRules

    the_machine_notices(mutant, EngineRules, max_examples=10_000)
