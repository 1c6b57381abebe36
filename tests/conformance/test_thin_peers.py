"""Thin calls: a peer that stands still, or vanishes. The functions themselves limit no time."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from conformance.harness import Harness
from faults.bystanders import PIECE, Bystander
from faults.cables import Cable, cable_of
from faults.cells import cell

from .thin import Thin


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(phase, marks=cell(
            "the peer stands still", "thin", phase,
            sees="nothing, however long: what is sent meanwhile waits, and goes on with it",
            counted="all",
        ))
        for phase in ("initial", "moving", "half-closed")
    ],
)  # fmt: skip
def test_a_drains_peer_that_stands_still_holds_it_up(
    thin: Thin, harness: Harness, bystander: Bystander, phase: str
) -> None:
    """Then it reads on, and gets every byte."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    if phase == "half-closed":
        server.fin()
        thin.hangup(drain)
    ahead = 0
    if phase == "initial":  # the drain is full before it is one
        ahead = _fill(harness, drain)
    thin.splice(source, drain)
    sent = thin.fill(client)
    bystander.served()
    moved = thin.spliced_bytes(source)
    assert moved < sent
    assert server.read(ahead + sent) == b"a" * ahead + b"f" * sent
    thin.moved(source, sent)
    thin.is_live(source)


def _fill(harness: Harness, drain: socket.socket) -> int:
    """Send until everything on the way is full; the number of bytes sent."""
    sent, quiet = 0, 0

    def stalled() -> bool:
        nonlocal sent, quiet
        try:
            while True:
                sent += drain.send(b"a" * 4096)
                quiet = 0
        except BlockingIOError:
            quiet += 1
        return quiet == 15

    harness.until(stalled, "everything on the way full")
    return sent


@pytest.fixture
def cable(harness: Harness) -> Iterator[Cable]:
    with cable_of(harness) as made:
        yield made


@cell(
    "the peer vanishes",
    "thin",
    "moving",
    sees="of the source's: SO_KEEPALIVE, which the caller sets, finds it: the splice is over, and "
    "reading the source says ETIMEDOUT",
    counted="`spliced_bytes` has all that was moved",
)
@pytest.mark.slow
@pytest.mark.root
def test_a_source_whose_peer_vanishes_ends(
    thin: Thin, harness: Harness, bystander: Bystander, cable: Cable
) -> None:
    source, client = cable.pair()
    drain, server = harness.pair()
    thin.splice(source, drain)
    client.write(PIECE)
    assert server.read(len(PIECE)) == PIECE
    thin.moved(source, len(PIECE))
    cable.cut()
    bystander.served()
    cable.found_out()
    thin.hangup(source)
    thin.is_over(source, drain)
    assert thin.spliced_bytes(source) == len(PIECE)
    assert server.has_nothing_to_read()
    assert (harness.error(source), harness.error(drain)) == (errno.ETIMEDOUT, 0)


@cell(
    "the peer vanishes",
    "thin",
    "half-closed",
    sees="of the drain's: with bytes on the way, TCP_USER_TIMEOUT, which the caller sets, finds "
    "it: the splice is over, and the drain has ETIMEDOUT",
    counted="what the drain took, which may not have arrived; what came later is still at the "
    "source",
)
@pytest.mark.slow
@pytest.mark.root
def test_a_drain_whose_peer_vanishes_ends(
    thin: Thin, harness: Harness, bystander: Bystander, cable: Cable
) -> None:
    source, client = harness.pair()
    drain, server = cable.pair()
    thin.splice(source, drain)
    server.fin()
    thin.hangup(drain)
    cable.cut()
    client.write(PIECE)
    thin.moved(source, len(PIECE))
    bystander.served()
    cable.found_out()
    harness.until(lambda: _is_dead(drain), "its system gives the peer up")
    thin.cause_is(source, errno.EPIPE)
    client.write(b"later")
    assert harness.waiting(source, 5) == b"later"
    thin.is_over(source, drain)
    assert thin.spliced_bytes(source) == len(PIECE)
    assert (harness.error(source), harness.error(drain)) == (0, errno.ETIMEDOUT)


def _is_dead(drain: socket.socket) -> bool:
    try:
        drain.getpeername()
    except OSError:
        return True
    return False
