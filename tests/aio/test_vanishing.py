"""A peer of ``aio.relay`` vanishes: nothing of it arrives any more (on the network: as root)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from faults.bystanders import PIECE
from faults.cables import connect
from faults.cells import cell
from freebsd_splice import Reason, aio
from freebsd_splice._platform.send_queue import unacknowledged
from support.namespaces import Network, two_networks

from .nets import LOOPS, MODELS, ModelNet, ModelNetPeer, Net, Peer, RealNet, RealPeer, Stream, play
from .test_peers import bystander

pytestmark = [pytest.mark.slow, pytest.mark.root]

MUCH = bytes(5_000_000)  # more than any buffers take
NEVER = 1_000.0
BROKEN = (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR)
KEEPALIVE = "SO_KEEPALIVE, which the caller sets, finds it"
UNANSWERED = "with bytes on the way, TCP_USER_TIMEOUT, which the caller sets, finds it"
OUTCOME = "an outcome with ETIMEDOUT, no exception"


class Cable:
    """Streams whose peers vanish together: between two networks, or of a modelled world."""

    def __init__(self, net: Net, networks: tuple[Network, Network] | None) -> None:
        self._net = net
        self._networks = networks
        self._nears: list[socket.socket] = []
        self._ends: list[Any] = []  # those of a model

    async def stream(self) -> tuple[Stream, Peer]:
        if self._networks is None:
            stream, peer = await self._net.stream()
            assert isinstance(peer, ModelNetPeer)
            self._ends.append(peer.peer.incoming.sender)
            return stream, peer
        assert isinstance(self._net, RealNet)
        near, far = connect(self._networks)
        far.setblocking(False)
        self._nears.append(near)
        stream = await asyncio.open_connection(sock=near)
        self._net.opened += [far, stream[1]]
        return stream, RealPeer(far)

    def holds_bytes(self) -> bool:
        """Whether something was sent to a peer and isn't acknowledged."""
        return any(map(unacknowledged, self._nears)) or any(
            end.outgoing.unsent or end.outgoing.unacked for end in self._ends
        )

    def cut(self) -> None:
        if self._networks is not None:
            self._networks[0].lose(self._networks[1])
        for end in self._ends:
            self._world.cut(end)

    async def found_out(self) -> None:
        """Let the time pass until our system gives the peers up; a real one does it by itself."""
        if self._ends:
            due = self._world.time + 2
            await self._net.until(lambda: self._world.time >= due)
        for end in self._ends:
            self._world.give_up(end)

    @property
    def _world(self) -> Any:
        assert isinstance(self._net, ModelNet)
        return self._net.world


@pytest.fixture(params=LOOPS + MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def networks(name: str) -> Iterator[tuple[Network, Network] | None]:
    with two_networks() if name in LOOPS else contextlib.nullcontext() as made:
        yield made


@cell(
    "the peer vanishes",
    "aio",
    "initial",
    sees=f"{UNANSWERED}: {OUTCOME}",
    counted="what the drain took; the remainder of `initial` is `Outcome.unsent`",
    others=True,
)
@cell(
    "the peer vanishes",
    "aio",
    "moving",
    sees=f"{UNANSWERED}: {OUTCOME}",
    counted="what the drain took; it may not have arrived",
    others=True,
)
@cell("the peer vanishes", "aio", "half-closed", sees=f"{KEEPALIVE}: {OUTCOME}", others=True)
def test_it_ends_as_the_sockets_options_say(
    name: str, networks: tuple[Network, Network] | None
) -> None:
    async def case(net: Net) -> None:
        cable = Cable(net, networks)
        async with bystander(net):
            left, client = await net.stream()
            right, far = await cable.stream()
            moving = asyncio.ensure_future(aio.relay(left, right, close=True, linger=0))
            await client.write(PIECE)
            assert await far.read(len(PIECE)) == PIECE
            left, _ = await net.stream()
            right, far = await cable.stream()
            relay = aio.relay(left, right, initial=(MUCH, b""), close=True, linger=0)
            ahead = asyncio.ensure_future(relay)
            assert await far.read(1) == MUCH[:1]
            left, far = await cable.stream()
            right, server = await net.stream()
            half = asyncio.ensure_future(aio.relay(left, right, close=True, linger=0))
            server.fin()
            assert await far.read(1) == b""
            cable.cut()
            await client.write(PIECE)
            await cable.found_out()
            outcome = await half
            assert outcome.reason is Reason.SOURCE_ERROR
            assert isinstance(outcome.error, TimeoutError)
            for relaying in (moving, ahead):
                outcome = await relaying
                assert outcome.reason in BROKEN
                assert isinstance(outcome.error, TimeoutError)
            assert (await moving).left_to_right.bytes == 2 * len(PIECE)
            up = outcome.left_to_right
            assert 0 < up.bytes == len(MUCH) - len(up.unsent)

    play(name, case)


@cell(
    "the peer vanishes",
    "aio",
    "closing",
    sees="the outcome of what ended it, `linger` seconds later, or when TCP_USER_TIMEOUT finds it",
    counted="what the drain took; what may not have arrived is `Outcome.undelivered`",
    others=True,
)
def test_who_vanishes_while_closing_is_not_waited_for(
    name: str, networks: tuple[Network, Network] | None
) -> None:
    async def case(net: Net) -> None:
        cable = Cable(net, networks)
        async with bystander(net):
            left, client = await cable.stream()
            right, server = await net.stream()
            relaying = asyncio.ensure_future(aio.relay(left, right, close=True, linger=NEVER))
            await client.write(PIECE)
            assert await server.read(len(PIECE)) == PIECE
            cable.cut()
            await server.write(PIECE)
            await net.until(cable.holds_bytes)
            server.reset()
            await cable.found_out()
            outcome = await relaying
            assert outcome.reason in BROKEN
            way = outcome.right_to_left
            assert way.bytes == len(PIECE)
            assert way.undelivered is None or 0 < way.undelivered <= way.bytes

    play(name, case)
