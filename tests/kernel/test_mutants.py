"""Each counter-measure of KernelFlow's taken out: something must fail then."""

from __future__ import annotations

import logging

import pytest

from stateful import mutants
from stateful.mutants import Mutant, Patches, met_by_chance_of, mutants_of
from stateful.registry import FREEBSD, OPENBSD
from stateful.scenarios import scenarios_of
from stateful.trying import noticing, the_machine_notices, written_in


@pytest.mark.parametrize("mutant", mutants_of(FREEBSD), ids=lambda mutant: mutant.__name__)
def test_a_scenario_notices(mutant: Mutant) -> None:
    assert noticing(mutant, "14.3", scenarios_of(FREEBSD)), "no scenario fails without it"


@pytest.mark.parametrize("mutant", mutants_of(OPENBSD), ids=lambda mutant: mutant.__name__)
def test_a_scenario_notices_on_openbsd(mutant: Mutant) -> None:
    assert noticing(mutant, "openbsd", scenarios_of(OPENBSD)), "no scenario fails without it"


def test_every_mutant_that_is_written_is_tried() -> None:
    """One that doesn't register itself would be noticed by nobody."""
    assert written_in(mutants) == {*mutants_of(FREEBSD), *mutants_of(OPENBSD)}


def test_a_trial_that_fails_leaves_the_log_as_it_was() -> None:
    def broken() -> Patches:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        noticing(broken, "14.3", [])
    assert logging.root.manager.disable == logging.NOTSET


# By a thread: hypothesis takes the signal's failure for one of the example's, and goes on.
@pytest.mark.timeout(600, method="thread")
@pytest.mark.slow
@pytest.mark.parametrize("mutant", met_by_chance_of(FREEBSD), ids=lambda mutant: mutant.__name__)
def test_the_stateful_test_notices(mutant: Mutant) -> None:
    pytest.importorskip("hypothesis", reason="the state machine is hypothesis's")
    from stateful.rules import KernelRules

    # Ten times what the slowest of them mostly takes: it ends with the first failure.
    the_machine_notices(mutant, KernelRules, max_examples=40_000)
