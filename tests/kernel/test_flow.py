"""Flows in the modelled kernels: what each must get right."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from stateful import scenarios
from stateful.registry import ENGINE, FREEBSD, OPENBSD
from stateful.rig import rig
from stateful.scenarios import Scenario, scenarios_of

ON_FREEBSD, ON_OPENBSD = scenarios_of(FREEBSD), scenarios_of(OPENBSD)


@pytest.mark.parametrize("version", ["14.3", "15.1"])
@pytest.mark.parametrize("scenario", ON_FREEBSD, ids=lambda scenario: scenario.__name__)
def test_on_freebsd(scenario: Scenario, version: str) -> None:
    with rig(version) as made:
        scenario(made)


@pytest.mark.parametrize("scenario", ON_OPENBSD, ids=lambda scenario: scenario.__name__)
def test_on_openbsd(scenario: Scenario) -> None:
    with rig("openbsd") as made:
        scenario(made)


def test_every_scenario_that_is_written_is_run() -> None:
    """One that doesn't register itself could fail unnoticed."""
    tried = (*ON_FREEBSD, *ON_OPENBSD, *scenarios_of(ENGINE))
    run = {f"{made.__module__}.{made.__name__}" for made in tried}
    assert run == set(_written())
    assert len({name.rpartition(".")[2] for name in run}) == len(run), "two have one name"


def _written() -> list[str]:
    """Every public function of the files that scenarios lie in."""
    return [
        f"{scenarios.__name__}.{path.stem}.{node.name}"
        for path in Path(scenarios.__path__[0]).glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
