"""A peer of a ``Relay`` resets, closes, or reads no more: in each phase, on every backend."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from conformance.harness import DEADLINE, Background, Harness, Peer
from faults.bystanders import Bystander
from faults.cells import cell
from freebsd_splice import Reason, Relay, RelayOutcome
from support.slowness import SLOWNESS

pytestmark = pytest.mark.usefixtures("served")

#: More than any buffers take while nobody reads.
MUCH = random.Random(12).randbytes(1_000_000)
UP, DOWN = b"a request", b"an answer to it"
BROKEN = (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR)
NEVER = 60 * DEADLINE  # of a time limit that is not the subject
SOON = 1.5 * SLOWNESS  # seconds without a byte; the set-up has to be faster

REMAINDER = "what the drain took; the remainder of `initial` is `Outcome.unsent`"

#: Where there are bytes unread, closing is a reset (F27), or becomes one with the next byte.
RESETS = "`ConnectionResetError` in the outcome, and the other side is reset"


class Scene(NamedTuple):
    relay: Relay
    client: Peer
    server: Peer
    #: What has been moved each way before the fault.
    moved: tuple[int, int]


def initial(harness: Harness, idle: float = NEVER, linger: float = 0) -> Scene:
    """More is being sent ahead than the server's side takes."""
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = Relay(left, right, close=True, linger=linger, idle_timeout=idle, initial=(MUCH, b""))
    harness.until(lambda: relay.bytes[0] > 0, "a first byte")
    return Scene(relay, client, server, (0, 0))


def moving(harness: Harness, idle: float = NEVER) -> Scene:
    """Each side has said something, and both may go on."""
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = Relay(left, right, close=True, linger=0, idle_timeout=idle)
    client.write(UP)
    assert server.read(len(UP)) == UP
    server.write(DOWN)
    assert client.read(len(DOWN)) == DOWN
    return Scene(relay, client, server, (len(UP), len(DOWN)))


def half_closed(harness: Harness, idle: float = NEVER) -> Scene:
    """The server has said all, which the client knows."""
    scene = moving(harness, idle)
    scene.server.fin()
    assert scene.client.read_to_end() == b""
    return scene


def closing(harness: Harness) -> Scene:
    """Both have ended, and the client has not taken all of the answer yet."""
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    relay = Relay(left, right, close=True, linger=NEVER)
    answer = MUCH[:16_000]
    server.write(answer)
    harness.until(lambda: relay.bytes[1] == len(answer), "all of it taken")
    server.reset()
    harness.until(lambda: relay._closing_has_begun, "the end of both directions")
    return Scene(relay, client, server, (0, len(answer)))


PHASES: dict[str, Callable[[Harness], Scene]] = {
    "initial": initial,
    "moving": moving,
    "half-closed": half_closed,
    "closing": closing,
}


def accounted(outcome: RelayOutcome, scene: Scene) -> None:
    """Every byte is counted, or comes back; of ``initial`` as well."""
    assert outcome.right_to_left.bytes == scene.moved[1]
    up = outcome.left_to_right
    if scene.moved == (0, 0):
        assert MUCH[up.bytes :] == up.unsent
    else:
        assert (up.bytes, up.unsent) == (scene.moved[0], b"")


@pytest.mark.parametrize(
    ("phase", "who"),
    [
        pytest.param("initial", "server", marks=cell(
            "the peer resets", "Relay", "initial", sees=f"that of the drain: {RESETS}",
            counted="what the drain took; the remainder of `initial` is `Outcome.unsent`",
        )),
        pytest.param("moving", "server", marks=cell(
            "the peer resets", "Relay", "moving", sees=RESETS, counted="all that was moved",
        )),
        pytest.param("moving", "client"),
        pytest.param("half-closed", "server", marks=cell(
            "the peer resets", "Relay", "half-closed", sees=RESETS, counted="all that was moved",
        )),
        pytest.param("half-closed", "client"),
    ],
)  # fmt: skip
def test_a_reset_ends_both_directions(
    phase: str, who: str, harness: Harness, bystander: Bystander
) -> None:
    scene = PHASES[phase](harness)
    breaker, other = (scene.client, scene.server)[:: 1 if who == "client" else -1]
    breaker.reset()
    outcome = scene.relay.wait(DEADLINE)
    assert outcome.reason in BROKEN
    assert isinstance(outcome.error, ConnectionError)
    accounted(outcome, scene)
    if (phase, who) == ("half-closed", "server"):
        return  # the client has had its EOF: reading tells it nothing more
    with pytest.raises(ConnectionResetError):
        other.read_to_end()


@cell(
    "the peer resets",
    "Relay",
    "initial",
    sees="that of the source: what it has said is delivered first, within the time limits",
    counted="all of `initial`",
)
def test_what_was_said_before_a_reset_is_delivered(harness: Harness, bystander: Bystander) -> None:
    scene = initial(harness, linger=NEVER)
    scene.client.reset()
    assert scene.server.read(len(MUCH)) == MUCH
    with pytest.raises(ConnectionResetError):
        scene.server.read(1)
    outcome = scene.relay.wait(DEADLINE)
    assert outcome.reason in BROKEN
    assert outcome.left_to_right.bytes == len(MUCH)


@cell(
    "the peer resets",
    "Relay",
    "closing",
    sees="the outcome of what ended it, without waiting for `linger`",
    counted="all that the drain took; what may not have arrived is `Outcome.undelivered`",
)
def test_a_reset_while_closing_is_not_waited_for(harness: Harness, bystander: Bystander) -> None:
    scene = closing(harness)
    assert not scene.relay.done
    scene.client.reset()
    way = scene.relay.wait(DEADLINE).right_to_left
    assert way.bytes == scene.moved[1]
    assert way.undelivered is None or 0 < way.undelivered <= way.bytes


@cell(
    "the peer stops reading for ever",
    "Relay",
    "closing",
    sees="the outcome of what ended it, `linger` seconds later, and the reader is reset",
    counted="all that the drain took; what may not have arrived is `Outcome.undelivered`",
)
@cell(
    "the peer stands still",
    "Relay",
    "closing",
    sees="as of one that stops reading: to the network it is the same",
)
def test_a_still_reader_is_given_up_while_closing(harness: Harness, bystander: Bystander) -> None:
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    relay = Relay(left, right, close=True, linger=SOON)
    server.write(MUCH[:16_000])
    harness.until(lambda: relay.bytes[1] == 16_000, "all of it taken")
    server.reset()
    harness.until(lambda: relay._closing_has_begun, "the end of both directions")
    bystander.served()
    way = relay.wait(DEADLINE).right_to_left
    assert way.bytes == 16_000
    assert way.undelivered
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("moving", marks=cell(
            "the peer closes", "Relay", "moving",
            sees="`Reason.EOF`, passed on; the other direction goes on until its own end",
            counted="all that was moved",
        )),
        pytest.param("half-closed", marks=cell(
            "the peer closes", "Relay", "half-closed",
            sees="`Reason.EOF` of both directions",
            counted="all that was moved",
        )),
    ],
)  # fmt: skip
def test_a_peer_that_closes_is_an_eof(phase: str, harness: Harness, bystander: Bystander) -> None:
    scene = PHASES[phase](harness)
    scene.client.close()
    assert scene.server.read_to_end() == b""
    if phase == "moving":
        assert not scene.relay.done
        scene.server.fin()
    outcome = scene.relay.wait(DEADLINE)
    assert outcome.reason is Reason.EOF
    accounted(outcome, scene)


@cell(
    "the peer closes",
    "Relay",
    "initial",
    sees="`Reason.DRAIN_ERROR`, as soon as its system answers further bytes with a reset",
    counted="what the drain took; the remainder of `initial` is `Outcome.unsent`",
)
def test_a_drain_that_closes_takes_no_more(harness: Harness, bystander: Bystander) -> None:
    scene = initial(harness)
    scene.server.close()
    outcome = scene.relay.wait(DEADLINE)
    assert outcome.left_to_right.reason is Reason.DRAIN_ERROR
    accounted(outcome, scene)


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("initial", marks=cell(
            "the peer stops reading for ever", "Relay", "initial",
            sees="`Reason.IDLE` after `idle_timeout`, and the reader is reset",
            counted="what the drain took; the remainder of `initial` is `Outcome.unsent`",
        )),
        pytest.param("moving", marks=cell(
            "the peer stops reading for ever", "Relay", "moving",
            sees="`Reason.IDLE` after `idle_timeout`, and both sides are reset",
            counted="what the drain took; what is in hand comes back as `Outcome.unsent`",
        )),
        pytest.param("half-closed", marks=cell(
            "the peer stops reading for ever", "Relay", "half-closed",
            sees="`Reason.IDLE` after `idle_timeout`, and both sides are reset",
            counted="what the drain took; what is in hand comes back as `Outcome.unsent`",
        )),
    ],
)  # fmt: skip
def test_a_drain_full_for_ever_is_idle(phase: str, harness: Harness, bystander: Bystander) -> None:
    scene = {"initial": initial, "moving": moving, "half-closed": half_closed}[phase](harness, SOON)
    writer: Background | None = None
    if phase != "initial":
        writer = harness.in_background(_write_until_reset, scene.client)
    harness.until(lambda: scene.relay.bytes[0] > scene.moved[0], "bytes nobody reads")
    bystander.served()
    outcome = scene.relay.wait(DEADLINE)
    assert outcome.reason is Reason.IDLE
    up = outcome.left_to_right
    assert 0 < up.bytes < len(MUCH)
    if phase == "initial":
        accounted(outcome, scene)
    if writer is not None:
        writer.join()
    with pytest.raises(ConnectionResetError):
        scene.server.read_to_end()


STILL = "nothing, and what is sent meanwhile waits and goes on with it; `Reason.IDLE` after "
STILL += "`idle_timeout`, and a side that lacks bytes is reset"


@cell("the peer stands still", "Relay", "initial", sees=STILL, counted=f"all; or {REMAINDER}")
@cell("the peer stands still", "Relay", "moving", sees=STILL, counted="all that was moved")
@cell("the peer stands still", "Relay", "half-closed", sees=STILL, counted="all that was moved")
def test_a_peer_that_stands_still_is_waited_for(harness: Harness, bystander: Bystander) -> None:
    phases = (initial, moving, half_closed)
    patient = [phase(harness) for phase in phases]
    writers = [harness.in_background(scene.client.finish, MUCH) for scene in patient]
    for scene in [phase(harness, SOON) for phase in phases]:
        outcome = scene.relay.wait(DEADLINE)
        assert outcome.reason is Reason.IDLE
        accounted(outcome, scene)
        lacks_bytes = bool(outcome.left_to_right.unsent)
        with pytest.raises(ConnectionResetError) if lacks_bytes else contextlib.nullcontext():
            assert scene.server.read_to_end() == b""
    bystander.served()
    for phase, scene, writer in zip(phases, patient, writers, strict=True):
        assert not scene.relay.done
        whole = MUCH + MUCH if phase is initial else MUCH
        assert scene.server.read_to_end() == whole
        if phase is not half_closed:
            scene.server.fin()
        outcome = scene.relay.wait(DEADLINE)
        writer.join()
        assert outcome.reason is Reason.EOF
        assert outcome.left_to_right.bytes == scene.moved[0] + len(whole)


def _write_until_reset(client: Peer) -> None:
    with contextlib.suppress(OSError):
        client.write(bytes(20_000_000))
