"""A peer vanishes: nothing of it arrives any more, and nobody says so (on the network: as root)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.harness import DEADLINE, Harness
from faults.bystanders import PIECE, Bystander
from faults.cables import Cable, cable_of
from faults.cells import cell
from freebsd_splice import Reason, Relay, Splice

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.usefixtures("served")]

KEEPALIVE = "SO_KEEPALIVE, which the caller sets, finds it: ETIMEDOUT"
UNANSWERED = "with bytes on the way, TCP_USER_TIMEOUT, which the caller sets, finds it: ETIMEDOUT"
TAKEN = "what the drain took; it may not have arrived"
REMAINDER = "what the drain took; the remainder of `initial` is `Outcome.unsent`"
MUCH = bytes(5_000_000)  # more than any buffers take
NEVER = 60 * DEADLINE
BROKEN = (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR)


@pytest.fixture
def cable(harness: Harness) -> Iterator[Cable]:
    with cable_of(harness) as made:
        yield made


@cell("the peer vanishes", "Splice", "moving", sees=f"`SOURCE_ERROR`: {KEEPALIVE}")
@cell(
    "the peer vanishes",
    "Splice",
    "half-closed",
    sees=f"`DRAIN_ERROR`: {UNANSWERED}",
    counted=TAKEN,
)
@cell(
    "the peer vanishes", "Splice", "initial", sees=f"`DRAIN_ERROR`: {UNANSWERED}", counted=REMAINDER
)
def test_a_splice_ends_as_the_sockets_options_say(
    harness: Harness, bystander: Bystander, cable: Cable
) -> None:
    moving = Splice(cable.pair()[0], harness.pair()[0])
    half_source, sender = harness.pair()
    half_drain, far = cable.pair()
    half = Splice(half_source, half_drain)
    far.fin()
    ahead = Splice(harness.pair()[0], cable.pair()[0], initial=MUCH)
    sender.write(PIECE)
    assert far.read(len(PIECE)) == PIECE
    harness.until(lambda: half.bytes == len(PIECE), "the bytes counted")
    harness.until(lambda: ahead.bytes > 0, "a first byte")
    cable.cut()
    sender.write(PIECE)
    harness.until(lambda: half.bytes == 2 * len(PIECE), "further bytes moved")
    bystander.served()
    cable.found_out()

    outcome = moving.wait(DEADLINE)
    assert (outcome.reason, type(outcome.error)) == (Reason.SOURCE_ERROR, TimeoutError)
    for splice in (half, ahead):
        outcome = splice.wait(DEADLINE)
        assert (outcome.reason, type(outcome.error)) == (Reason.DRAIN_ERROR, TimeoutError)
    assert half.wait(0).bytes == 2 * len(PIECE)
    assert 0 < outcome.bytes == len(MUCH) - len(outcome.unsent)


@cell("the peer vanishes", "Relay", "half-closed", sees=f"`SOURCE_ERROR`: {KEEPALIVE}")
@cell("the peer vanishes", "Relay", "moving", sees=f"`DRAIN_ERROR`: {UNANSWERED}", counted=TAKEN)
@cell(
    "the peer vanishes", "Relay", "initial", sees=f"`DRAIN_ERROR`: {UNANSWERED}", counted=REMAINDER
)
def test_a_relay_ends_as_the_sockets_options_say(
    harness: Harness, bystander: Bystander, cable: Cable
) -> None:
    left, client = harness.pair()
    moving = Relay(left, cable.pair()[0])
    ahead = Relay(harness.pair()[0], cable.pair()[0], initial=(MUCH, b""))
    half_left, far = cable.pair()
    half_right, half_server = harness.pair()
    half = Relay(half_left, half_right)
    half_server.fin()
    assert far.read(1) == b""
    client.write(PIECE)
    harness.until(lambda: moving.bytes[0] == len(PIECE), "the bytes moved")
    harness.until(lambda: ahead.bytes[0] > 0, "a first byte")
    cable.cut()
    client.write(PIECE)
    harness.until(lambda: moving.bytes[0] == 2 * len(PIECE), "further bytes moved")
    bystander.served()
    cable.found_out()

    end = half.wait(DEADLINE)
    assert (end.reason, type(end.error)) == (Reason.SOURCE_ERROR, TimeoutError)
    for relay in (moving, ahead):
        end = relay.wait(DEADLINE)
        assert end.reason in BROKEN
        assert isinstance(end.error, TimeoutError)
    assert moving.wait(0).left_to_right.bytes == 2 * len(PIECE)
    up = ahead.wait(0).left_to_right
    assert 0 < up.bytes == len(MUCH) - len(up.unsent)


@cell(
    "the peer vanishes",
    "Relay",
    "closing",
    sees="the outcome of what ended it, `linger` seconds later, or when TCP_USER_TIMEOUT finds it",
    counted="what the drain took; what may not have arrived is `Outcome.undelivered`",
)
def test_who_vanishes_while_closing_is_not_waited_for(
    harness: Harness, bystander: Bystander, cable: Cable
) -> None:
    left, _client = cable.pair()
    right, server = harness.pair()
    relay = Relay(left, right, close=True, linger=NEVER)
    cable.cut()
    server.write(PIECE)
    harness.until(lambda: relay.bytes[1] == len(PIECE), "all of it taken")
    server.reset()
    harness.until(lambda: relay._closing_has_begun, "the end of both directions")
    bystander.served()
    assert not relay.done
    cable.found_out()
    outcome = relay.wait(DEADLINE)
    assert outcome.reason in BROKEN
    way = outcome.right_to_left
    assert way.bytes == len(PIECE)
    assert way.undelivered is None or 0 < way.undelivered <= way.bytes
