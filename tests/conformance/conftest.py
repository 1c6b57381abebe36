"""Fixtures of the conformance suite."""

from __future__ import annotations

import pytest

from conformance.harness import Harness
from freebsd_splice import _abi

from .thin import Thin

BACKENDS = ["userspace"] if _abi.missing() else ["userspace", "kernel"]


@pytest.fixture(params=BACKENDS)
def thin(request: pytest.FixtureRequest, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Thin:
    """The thin calls, on each backend that there is."""
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", request.param)
    return Thin(request.param, harness)
