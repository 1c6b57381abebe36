"""The thin functions beside signals and other programs."""

from __future__ import annotations

import signal
import sys

import pytest

import freebsd_splice
from conformance.harness import Harness
from faults.bystanders import PIECE
from faults.cells import cell
from support.leaks import descriptors_of_another_program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and exec are POSIX's")


@cell(
    "a signal",
    "thin",
    "moving",
    sees="nothing: no call is interrupted, and the handler is run",
    counted="all",
)
def test_signals_interrupt_no_call(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        freebsd_splice.splice(source, drain)
        for count in range(1, 101):
            sender.write(PIECE)
            assert receiver.read(len(PIECE)) == PIECE
            moved = count * len(PIECE)
            harness.until(lambda: freebsd_splice.spliced_bytes(source) == moved, "it counted")  # noqa: B023
        freebsd_splice.unsplice(source)
        harness.until(lambda: seen, "a signal")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cell(
    "exec",
    "thin",
    "moving",
    sees="nothing; the other program is given none of the package's descriptors",
)
def test_another_program_is_given_no_descriptor(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    before = descriptors_of_another_program()
    freebsd_splice.splice(source, drain)
    sender.write(PIECE)
    assert receiver.read(len(PIECE)) == PIECE
    assert descriptors_of_another_program() == before
    freebsd_splice.unsplice(source)
