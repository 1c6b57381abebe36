"""What a mutant is tried on: scenarios, and the state machine."""

from __future__ import annotations

import inspect
import logging
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from model import world

from .mutants import Mutant, applied
from .rig import rig
from .scenarios import Scenario


def noticing(mutant: Mutant, version: str, scenarios: list[Scenario]) -> list[str]:
    """Return the names of the scenarios that fail with that mutant."""
    noticed = []
    logging.disable(logging.CRITICAL)
    try:
        # A busy loop is noticed sooner.
        with applied(mutant), mock.patch.object(world, "ROUNDS", 500):
            for scenario in scenarios:
                try:
                    with rig(version) as made:
                        scenario(made)
                except Exception:
                    noticed.append(scenario.__name__)
    finally:
        logging.disable(logging.NOTSET)
    return noticed


def the_machine_notices(mutant: Mutant, machine: Any, *, max_examples: int) -> None:
    """Check that a run of the state machine, the same one each time, fails with that mutant."""
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    with applied(mutant), pytest.raises(BaseException):  # noqa: B017 - whichever assertion it is
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max_examples,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                database=None,
                phases=[Phase.generate],
            ),
        )


def written_in(module: ModuleType) -> set[Mutant]:
    """Return the mutants that a module defines, registered or not."""
    return {
        function
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and function.__annotations__ == {"return": "Patches"}
        and function.__name__[0] != "_"
    }
