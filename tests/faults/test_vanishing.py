"""A peer vanishes: nothing of it arrives any more, and nobody says so (Linux, root)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from conformance.backends import Served, not_on
from conformance.harness import DEADLINE, Harness
from faults.bystanders import PIECE, Bystander
from faults.cells import cell
from freebsd_splice import Reason, Relay, Splice
from support.namespaces import Network, two_networks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    not_on("model", because="A model's network isn't this machine's"),
    pytest.mark.skipif(sys.platform != "linux", reason="networks of one's own are Linux's"),
]

KEEPALIVE = "SO_KEEPALIVE, which the caller sets, finds it: ETIMEDOUT"
UNANSWERED = "with bytes on the way, TCP_USER_TIMEOUT, which the caller sets, finds it: ETIMEDOUT"


@pytest.fixture
def networks() -> Iterator[tuple[Network, Network]]:
    with two_networks() as made:
        yield made


def pair(
    harness: Harness, networks: tuple[Network, Network]
) -> tuple[socket.socket, socket.socket]:
    """A connection between the two: our end, which looks after its peer, and the peer's."""
    ours, theirs = networks
    listener = harness.keep(theirs.run(lambda: socket.create_server((theirs.address, 0))))
    near = harness.keep(ours.run(lambda: socket.create_connection(listener.getsockname())))
    far = harness.keep(listener.accept()[0])
    near.setblocking(False)
    if sys.platform == "linux":
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2_000),
        ):
            near.setsockopt(level, option, value)
    return near, far


@cell("the peer vanishes", "Splice", "moving", sees=f"`SOURCE_ERROR`: {KEEPALIVE}")
@cell("the peer vanishes", "Relay", "half-closed", sees=f"`SOURCE_ERROR`: {KEEPALIVE}")
@cell(
    "the peer vanishes",
    "Relay",
    "moving",
    sees=f"`DRAIN_ERROR`: {UNANSWERED}",
    counted="what the drain took; it may not have arrived",
)
@cell(
    "the peer vanishes",
    "Relay",
    "initial",
    sees=f"`DRAIN_ERROR`: {UNANSWERED}",
    counted="what the drain took; the remainder of `initial` is `Outcome.unsent`",
)
def test_what_the_sockets_options_find_is_an_end(
    served: Served,
    harness: Harness,
    bystander: Bystander,
    networks: tuple[Network, Network],
) -> None:
    much = bytes(5_000_000)
    source, _far_source = pair(harness, networks)
    splice = Splice(source, harness.pair()[0])
    left, client = harness.pair()
    right, _far_right = pair(harness, networks)
    moving = Relay(left, right)
    ahead = Relay(harness.pair()[0], pair(harness, networks)[0], initial=(much, b""))
    half_left, far_half_left = pair(harness, networks)
    half_right, half_server = harness.pair()
    half = Relay(half_left, half_right)
    half_server.fin()
    assert far_half_left.recv(1) == b""
    client.write(PIECE)
    harness.until(lambda: moving.bytes[0] == len(PIECE), "the bytes moved")
    harness.until(lambda: ahead.bytes[0] > 0, "a first byte")
    networks[0].lose(networks[1])
    client.write(PIECE)
    bystander.served()

    outcome = splice.wait(DEADLINE)
    assert (outcome.reason, type(outcome.error)) == (Reason.SOURCE_ERROR, TimeoutError)
    end = half.wait(DEADLINE)
    assert (end.reason, type(end.error)) == (Reason.SOURCE_ERROR, TimeoutError)
    for relay in (moving, ahead):
        end = relay.wait(DEADLINE)
        assert isinstance(end.error, TimeoutError)
        assert end.reason in (Reason.DRAIN_ERROR, Reason.SOURCE_ERROR)
    assert moving.wait(0).left_to_right.bytes == 2 * len(PIECE)
    up = ahead.wait(0).left_to_right
    assert 0 < up.bytes == len(much) - len(up.unsent)
    bystander.served()
