"""The peers of a ``Splice`` reset, close, or read no more: in each phase, on every backend."""

from __future__ import annotations

import contextlib
import random
from typing import NamedTuple

import pytest

from conformance.harness import DEADLINE, Harness, Peer
from faults.bystanders import Bystander
from faults.cells import cell
from freebsd_splice import Reason, Splice
from support.slowness import SLOWNESS

pytestmark = pytest.mark.usefixtures("served")

#: More than any buffers take while nobody reads.
MUCH = random.Random(13).randbytes(1_000_000)
SOON = 1.0 * SLOWNESS  # seconds without a byte
NEVER = 60 * DEADLINE
UP = b"a request"
STILL = "nothing, and what is sent meanwhile waits and goes on with it; `Reason.IDLE` after "
STILL += "`idle_timeout`"
REMAINDER = "what the drain took; the remainder of `initial` is `Outcome.unsent`"


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("resets", marks=cell(
            "the peer resets", "Splice", "initial",
            sees="that of the drain: `Reason.DRAIN_ERROR` with a `ConnectionError`",
            counted=REMAINDER,
        )),
        pytest.param("closes", marks=cell(
            "the peer closes", "Splice", "initial",
            sees="that of the drain: `Reason.DRAIN_ERROR`, as soon as further bytes are refused",
            counted=REMAINDER,
        )),
    ],
)  # fmt: skip
def test_a_drain_that_goes_amid_initial(how: str, harness: Harness, bystander: Bystander) -> None:
    source, _sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    splice = Splice(source, drain, initial=MUCH)
    harness.until(lambda: splice.bytes > 0, "a first byte")
    bystander.served()
    receiver.reset() if how == "resets" else receiver.close()
    outcome = splice.wait(DEADLINE)
    assert outcome.reason is Reason.DRAIN_ERROR
    assert isinstance(outcome.error, ConnectionError)
    assert MUCH[outcome.bytes :] == outcome.unsent


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("resets", marks=cell(
            "the peer resets", "Splice", "initial",
            sees="that of the source: `initial` is delivered, then `Reason.SOURCE_ERROR`",
            counted="all of `initial`",
        )),
        pytest.param("closes", marks=cell(
            "the peer closes", "Splice", "initial",
            sees="that of the source: `initial` is delivered, then `Reason.EOF`",
            counted="all of `initial`",
        )),
    ],
)  # fmt: skip
def test_a_source_that_goes_amid_initial(how: str, harness: Harness, bystander: Bystander) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    splice = Splice(source, drain, initial=MUCH)
    harness.until(lambda: splice.bytes > 0, "a first byte")
    sender.reset() if how == "resets" else sender.close()
    bystander.served()
    assert receiver.read(len(MUCH)) == MUCH
    outcome = splice.wait(DEADLINE)
    assert outcome.reason is (Reason.SOURCE_ERROR if how == "resets" else Reason.EOF)
    assert (outcome.bytes, outcome.unsent) == (len(MUCH), b"")


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("initial", marks=cell(
            "the peer stops reading for ever", "Splice", "initial",
            sees="`Reason.IDLE` after `idle_timeout`", counted=REMAINDER,
        )),
        pytest.param("moving", marks=cell(
            "the peer stops reading for ever", "Splice", "moving",
            sees="`Reason.IDLE` after `idle_timeout`; both sockets can be used",
            counted="what the drain took, which its peer can still read; behind that come "
            "`Outcome.unsent`, and what is still at the source",
        )),
        pytest.param("half-closed", marks=cell(
            "the peer stops reading for ever", "Splice", "half-closed",
            sees="`Reason.IDLE` after `idle_timeout`; both sockets can be used",
            counted="what the drain took, which its peer can still read; behind that come "
            "`Outcome.unsent`, and what is still at the source",
        )),
    ],
)  # fmt: skip
def test_a_drain_full_for_ever_is_idle(phase: str, harness: Harness, bystander: Bystander) -> None:
    source, sender = harness.pair(small_buffers=True)
    drain, receiver = harness.pair(small_buffers=True)
    if phase == "half-closed":
        receiver.fin()
    ahead = MUCH if phase == "initial" else b""
    writer = None if ahead else harness.in_background(_write_until_reset, sender)
    harness.until(lambda: bool(ahead) or harness.readable(source), "bytes to move")
    splice = Splice(source, drain, initial=ahead, idle_timeout=SOON)
    harness.until(lambda: splice.bytes > 0, "bytes nobody reads")
    bystander.served()
    outcome = splice.wait(DEADLINE)
    assert outcome.reason is Reason.IDLE
    next_at_source = outcome.bytes + len(outcome.unsent)
    assert MUCH[outcome.bytes : next_at_source] == outcome.unsent
    assert receiver.read(outcome.bytes) == MUCH[: outcome.bytes]
    if ahead:
        assert next_at_source == len(MUCH)
    if writer is not None:
        assert harness.waiting(source, 1) == MUCH[next_at_source : next_at_source + 1]
        source.close()  # with bytes unread: its peer is reset
        writer.join()


class Scene(NamedTuple):
    splice: Splice
    sender: Peer
    receiver: Peer
    #: What was moved before, or is being sent ahead.
    said: bytes


def scene(harness: Harness, phase: str, idle: float) -> Scene:
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    if phase == "initial":
        splice = Splice(source, drain, idle_timeout=idle, initial=MUCH)
        harness.until(lambda: splice.bytes > 0, "a first byte")
        return Scene(splice, sender, receiver, MUCH)
    splice = Splice(source, drain, idle_timeout=idle)
    if phase == "half-closed":
        receiver.fin()
    sender.write(UP)
    assert receiver.read(len(UP)) == UP
    return Scene(splice, sender, receiver, b"")


PHASES = ("initial", "moving", "half-closed")


@cell("the peer stands still", "Splice", "initial", sees=STILL, counted=f"all; or {REMAINDER}")
@cell("the peer stands still", "Splice", "moving", sees=STILL, counted="all that was moved")
@cell("the peer stands still", "Splice", "half-closed", sees=STILL, counted="all that was moved")
def test_a_peer_that_stands_still_is_waited_for(harness: Harness, bystander: Bystander) -> None:
    patient = [scene(harness, phase, NEVER) for phase in PHASES]
    writers = [harness.in_background(made.sender.finish, MUCH) for made in patient]
    for made in [scene(harness, phase, SOON) for phase in PHASES]:
        outcome = made.splice.wait(DEADLINE)
        assert outcome.reason is Reason.IDLE
        if made.said:
            assert MUCH[outcome.bytes :] == outcome.unsent
        else:
            assert (outcome.bytes, outcome.unsent) == (len(UP), b"")
    bystander.served()
    for made, writer in zip(patient, writers, strict=True):
        assert not made.splice.done
        assert made.receiver.read(len(made.said) + len(MUCH)) == made.said + MUCH
        outcome = made.splice.wait(DEADLINE)
        writer.join()
        assert outcome.reason is Reason.EOF
        assert outcome.bytes == len(made.said or UP) + len(MUCH)


def _write_until_reset(sender: Peer) -> None:
    with contextlib.suppress(OSError):
        sender.write(MUCH)
