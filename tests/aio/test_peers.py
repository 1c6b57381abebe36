"""A peer of ``aio.relay`` resets, closes, or reads no more, while another relay goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from faults.bystanders import PIECE
from faults.cells import cell
from freebsd_splice import Reason, RelayOutcome, aio
from support.slowness import SLOWNESS

from .nets import LOOPS, MODELS, Net, Peer, play

every_net = pytest.mark.parametrize("name", LOOPS + MODELS)

#: More than any buffers take while nobody reads.
MUCH = random.Random(16).randbytes(400_000)
UP, DOWN = b"a request", b"an answer to it"
BROKEN = (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR)
NEVER, SOON = 1_000.0, 1.5 * SLOWNESS
RESETS = "an outcome with a `ConnectionError`, no exception; the other side is reset"
REMAINDER = "what the drain took; the remainder of `initial` is `Outcome.unsent`"


@contextlib.asynccontextmanager
async def bystander(net: Net) -> AsyncIterator[None]:
    """A relay of the same loop, which is served before, after, and ends in the ordinary way."""
    left, client = await net.stream()
    right, server = await net.stream()
    relaying = asyncio.ensure_future(aio.relay(left, right))

    async def served() -> None:
        for writer, reader in ((client, server), (server, client)):
            await writer.write(PIECE)
            assert await reader.read(len(PIECE)) == PIECE

    await served()
    yield
    await served()
    assert not relaying.done()
    for peer, other in ((client, server), (server, client)):
        peer.fin()
        assert await other.read(1) == b""
    outcome = await relaying
    for way in (outcome.left_to_right, outcome.right_to_left):
        assert (way.reason, way.bytes) == (Reason.EOF, 2 * len(PIECE))


class Scene(NamedTuple):
    relaying: asyncio.Future[RelayOutcome]
    client: Peer
    server: Peer
    moved: tuple[int, int]


async def scene(net: Net, phase: str, idle: float = NEVER) -> Scene:
    left, client = await net.stream()
    right, server = await net.stream(small=True)
    ahead = MUCH if phase == "initial" else b""
    relay = aio.relay(left, right, initial=(ahead, b""), close=True, linger=0, idle_timeout=idle)
    relaying = asyncio.ensure_future(relay)
    if phase == "initial":
        assert await server.read(1) == MUCH[:1]
        return Scene(relaying, client, server, (0, 0))
    await client.write(UP)
    assert await server.read(len(UP)) == UP
    await server.write(DOWN)
    assert await client.read(len(DOWN)) == DOWN
    if phase == "half-closed":  # the server has said all, which the client knows
        server.fin()
        assert await client.read(1) == b""
    return Scene(relaying, client, server, (len(UP), len(DOWN)))


def accounted(outcome: RelayOutcome, moved: tuple[int, int]) -> None:
    up = outcome.left_to_right
    if moved == (0, 0):
        assert MUCH[up.bytes :] == up.unsent
    else:
        assert (up.bytes, outcome.right_to_left.bytes) == moved


@pytest.mark.parametrize(
    ("phase", "who"),
    [
        pytest.param("initial", "server", marks=cell(
            "the peer resets", "aio", "initial", others=True,
            sees=f"that of the drain: {RESETS}", counted=REMAINDER,
        )),
        pytest.param("moving", "server", marks=cell(
            "the peer resets", "aio", "moving", others=True, sees=RESETS,
            counted="all that was moved",
        )),
        pytest.param("moving", "client"),
        pytest.param("half-closed", "client", marks=cell(
            "the peer resets", "aio", "half-closed", others=True, sees=RESETS,
            counted="all that was moved",
        )),
    ],
)  # fmt: skip
@every_net
def test_a_reset_ends_both_directions(name: str, phase: str, who: str) -> None:
    async def case(net: Net) -> None:
        async with bystander(net):
            made = await scene(net, phase)
            breaker, other = (made.client, made.server)[:: 1 if who == "client" else -1]
            breaker.reset()
            outcome = await made.relaying
            assert outcome.reason in BROKEN
            assert isinstance(outcome.error, ConnectionError)
            accounted(outcome, made.moved)
            if name in LOOPS:
                with pytest.raises(ConnectionResetError):
                    await other.read(1)

    play(name, case)


@cell(
    "the peer closes",
    "aio",
    "moving",
    sees="EOF is passed on, the other direction goes on; `Reason.EOF`, no exception",
    counted="all that was moved",
    others=True,
)
@every_net
def test_an_eof_is_passed_on(name: str) -> None:
    async def case(net: Net) -> None:
        async with bystander(net):
            made = await scene(net, "moving")
            made.client.fin()
            assert await made.server.read(1) == b""
            await made.server.write(DOWN)
            assert await made.client.read(len(DOWN)) == DOWN
            assert not made.relaying.done()
            made.server.fin()
            outcome = await made.relaying
            assert outcome.reason is Reason.EOF
            accounted(outcome, (len(UP), 2 * len(DOWN)))

    play(name, case)


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("initial", marks=cell(
            "the peer stops reading for ever", "aio", "initial", others=True,
            sees="`Reason.IDLE` after `idle_timeout`, no exception; the reader is reset",
            counted=REMAINDER,
        )),
        pytest.param("moving", marks=cell(
            "the peer stops reading for ever", "aio", "moving", others=True,
            sees="`Reason.IDLE` after `idle_timeout`, no exception; both are reset",
            counted="what the drain took; what is in hand comes back as `Outcome.unsent`",
        )),
        pytest.param("half-closed", marks=cell(
            "the peer stops reading for ever", "aio", "half-closed", others=True,
            sees="`Reason.IDLE` after `idle_timeout`, no exception; both are reset",
            counted="what the drain took; what is in hand comes back as `Outcome.unsent`",
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", LOOPS)
def test_a_drain_full_for_ever_is_idle(name: str, phase: str) -> None:
    async def case(net: Net) -> None:
        async with bystander(net):
            made = await scene(net, phase, SOON)
            writing = asyncio.ensure_future(_write_until_reset(made.client))
            outcome = await made.relaying
            assert outcome.reason is Reason.IDLE
            assert outcome.left_to_right.bytes > made.moved[0]
            if phase == "initial":
                accounted(outcome, made.moved)
            await writing
            with pytest.raises(ConnectionResetError):
                await made.server.read(20_000_000)

    play(name, case)


STILL = "nothing, and what is sent meanwhile waits and goes on with it; `Reason.IDLE` after "
STILL += "`idle_timeout`, no exception"


@cell(
    "the peer stands still",
    "aio",
    "initial",
    sees=STILL,
    counted=f"all; or {REMAINDER}",
    others=True,
)
@cell(
    "the peer stands still",
    "aio",
    "half-closed",
    sees=STILL,
    counted="all that was moved",
    others=True,
)
@every_net
def test_a_peer_that_stands_still_is_waited_for(name: str) -> None:
    phases = ("initial", "half-closed")

    async def case(net: Net) -> None:
        async with bystander(net):
            patient = [await scene(net, phase) for phase in phases]
            for made in patient:
                await made.client.write(UP)
            for made in [await scene(net, phase, SOON) for phase in phases]:
                outcome = await made.relaying
                assert outcome.reason is Reason.IDLE
                accounted(outcome, made.moved)
            for phase, made in zip(phases, patient, strict=True):
                assert not made.relaying.done()
                ahead, before = (MUCH, b"") if phase == "initial" else (b"", UP)
                assert await made.server.read(len(ahead[1:] + UP)) == ahead[1:] + UP
                for peer, other in ((made.client, made.server), (made.server, made.client)):
                    if phase == "initial" or peer is made.client:
                        peer.fin()
                        assert await other.read(1) == b""
                outcome = await made.relaying
                assert outcome.reason is Reason.EOF
                assert outcome.left_to_right.bytes == len(before + ahead + UP)

    play(name, case)


async def _write_until_reset(client: Peer) -> None:
    with contextlib.suppress(ConnectionError):
        await client.write(bytes(20_000_000))
