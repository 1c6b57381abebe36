"""Fixtures of the conformance suite."""

from __future__ import annotations

import pytest

from conformance.harness import Harness
from freebsd_splice import _thin
from freebsd_splice._thin.kernel import ThinKernel
from model.harness import ModelHarness

from .backends import KERNEL, MODELS, reason_against
from .thin import Thin

THIN_BACKENDS = ["userspace", *MODELS, *KERNEL]


@pytest.fixture(params=THIN_BACKENDS)
def thin(request: pytest.FixtureRequest, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Thin:
    """The thin calls, on each backend that there is."""
    reason = reason_against(request.node.iter_markers("not_on"), request.param)
    if reason is not None:
        pytest.skip(reason)
    if isinstance(harness, ModelHarness):
        kernel = ThinKernel(harness.world.calls)
        monkeypatch.setattr(_thin, "_calls", lambda: kernel)
        monkeypatch.setattr(_thin, "_check_open", lambda *descriptors: None)
    else:
        monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", request.param)
    return Thin(request.param, harness)
