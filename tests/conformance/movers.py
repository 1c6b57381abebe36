"""The backends and movers under ``Splice`` and ``Relay`` that this machine has."""

from __future__ import annotations

from freebsd_splice import Outcome
from freebsd_splice._movers import COPY, OS_SPLICE
from ports import RecordingPort


class Served:
    """Which backend and mover serves the case, and the means to check that it did."""

    def __init__(self, mover: str, port: RecordingPort) -> None:
        self.backend = "userspace"
        self.mover = mover
        self.port = port

    def check(self, outcome: Outcome) -> None:
        assert (outcome.backend, outcome.mover) == (self.backend, self.mover)
        if self.mover == OS_SPLICE:
            assert self.port.copied == 0  # no payload has passed through Python


MOVERS = [OS_SPLICE, COPY] if RecordingPort().can_splice() else [COPY]
