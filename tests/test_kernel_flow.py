"""Flows in the modelled kernels: what each must get right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stateful.rig import Rig, rig
from stateful.scenarios import FREEBSD, OPENBSD


@pytest.mark.parametrize("version", ["14.3", "15.1"])
@pytest.mark.parametrize("scenario", FREEBSD, ids=lambda scenario: scenario.__name__)
def test_on_freebsd(scenario: Callable[[Rig], None], version: str) -> None:
    with rig(version) as made:
        scenario(made)


@pytest.mark.parametrize("scenario", OPENBSD, ids=lambda scenario: scenario.__name__)
def test_on_openbsd(scenario: Callable[[Rig], None]) -> None:
    with rig("openbsd") as made:
        scenario(made)
