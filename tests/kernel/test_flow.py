"""Flows in the modelled kernels: what each must get right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from machine.scenarios import FREEBSD, OPENBSD, Stage, stage


@pytest.mark.parametrize("version", ["14.3", "15.1"])
@pytest.mark.parametrize("scenario", FREEBSD, ids=lambda scenario: scenario.__name__)
def test_on_freebsd(scenario: Callable[[Stage], None], version: str) -> None:
    with stage(version) as made:
        scenario(made)


@pytest.mark.parametrize("scenario", OPENBSD, ids=lambda scenario: scenario.__name__)
def test_on_openbsd(scenario: Callable[[Stage], None]) -> None:
    with stage("openbsd") as made:
        scenario(made)
