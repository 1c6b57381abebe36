"""What serves ``Splice`` and ``Relay`` here: each mover of userspace, the modelled kernels, and the
kernel of this machine where it has SO_SPLICE."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from freebsd_splice import Outcome
from freebsd_splice._backend import COPY, OS_SPLICE
from freebsd_splice._platform import raw_splice
from freebsd_splice._platform.system import SystemPlatform
from model.harness import ModelHarness
from support.platforms import RecordingPlatform, runtime

from .harness import Harness

T = TypeVar("T")

MOVERS = [OS_SPLICE, COPY] if RecordingPlatform().can_splice() else [COPY]
MODELS = ["model 14.3", "model 15.1", "model openbsd"]
KERNEL = [] if raw_splice.missing() else ["kernel"]
BACKENDS = MOVERS + MODELS + KERNEL


def not_on(*backends: str, because: str) -> pytest.MarkDecorator:
    """The case isn't for these ("model" means all models); it shows in docs/conformance.md."""
    assert because
    return pytest.mark.not_on(backends, because)


def counterpart(*references: str) -> pytest.MarkDecorator:
    """Which cases of the kernels' own test suites this one is the counterpart of."""
    return pytest.mark.counterpart(references)


def reason_against(marks: Any, backend: str) -> str | None:
    """Why a case with these marks isn't for that backend."""
    names = {backend, backend.split()[0]}
    if backend == "kernel" and sys.platform.startswith("openbsd"):
        names.add("model openbsd")  # what isn't for the model of this kernel isn't for the kernel
    for mark in marks:
        backends, because = mark.args
        if names & set(backends):
            return str(because)
    return None


class Served:
    """Which backend serves the case, and the means to check that it did."""

    def __init__(
        self, name: str, harness: Harness, platform: RecordingPlatform | None = None
    ) -> None:
        self.name = name
        self.harness = harness
        self.backend = "userspace" if name in MOVERS else "kernel"
        self.mover = name if name in MOVERS else "SO_SPLICE"
        self.platform = platform

    def check(self, outcome: Outcome) -> None:
        assert (outcome.backend, outcome.mover) == (self.backend, self.mover)
        assert outcome.fallback is None
        if self.mover == OS_SPLICE and self.platform is not None:
            assert self.platform.copied == 0  # no payload has passed through Python

    def differs(self, *, kernel: T, userspace: T, because: str) -> T:
        """What to expect where the backends aren't alike, and why they aren't."""
        assert because
        return kernel if self.backend == "kernel" else userspace


@contextmanager
def serving(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Have splices made by that backend, and by no other, inside the block."""
    if name in MODELS:
        harness = ModelHarness(name.split()[1])
        harness.world.platform.demanded = True
        # The model's threads take turns: none is interrupted in the middle of a call.
        before = sys.getswitchinterval()
        sys.setswitchinterval(60)
        try:
            with runtime(harness.world.platform):
                yield Served(name, harness)  # type: ignore[arg-type]
            harness.world.check_quiet()
        finally:
            sys.setswitchinterval(before)
        return
    recording = RecordingPlatform() if name in MOVERS else None
    real = Harness()
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace" if name in MOVERS else "kernel")
    try:
        with runtime(recording or SystemPlatform(), name if name in MOVERS else None):
            yield Served(name, real, recording)
    finally:
        real.close()
