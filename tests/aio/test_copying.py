"""TLS streams, which can't be handed over: copied, and with the same promises."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, cast

import pytest

pytest.importorskip("trustme", reason="the certificates are trustme's")

import trustme

from faults.cells import cell
from freebsd_splice import BackendUnavailable, Outcome, Reason, aio
from freebsd_splice.aio import _sockets
from freebsd_splice.aio._sides import SocketSide, StreamSide
from freebsd_splice.aio._sockets import CopiedSocket

from .nets import LOOPS, Net, RealNet, Stream, buffered, play
from .test_at_once import at_once
from .test_seams import PATTERN

every_loop = pytest.mark.parametrize("name", LOOPS)

#: Seconds, by the loop's clock.
SHORT = 0.2


class Contexts(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("splice.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Contexts(server, client)


@contextlib.asynccontextmanager
async def tls(contexts: Contexts) -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a TLS connection: the near one, which is the server's, and the far one."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Stream] = loop.create_future()
    server = await asyncio.start_server(
        lambda reader, writer: accepted.set_result((reader, writer)),
        "127.0.0.1",
        0,
        ssl=contexts.server,
    )
    port = server.sockets[0].getsockname()[1]
    far = await asyncio.open_connection(
        "127.0.0.1", port, ssl=contexts.client, server_hostname="splice.test"
    )
    near = await accepted
    server.close()
    try:
        yield near, far
    finally:
        for stream in (far, near):
            # Python 3.11.2 has forgotten whom to abort of one that was closed twice.
            with contextlib.suppress(AttributeError):
                stream[1].transport.abort()
        await asyncio.sleep(0.01)
        await server.wait_closed()


Case = Callable[[RealNet, Stream, Stream], Awaitable[None]]


def play_tls(name: str, contexts: Contexts, case: Case) -> None:
    async def whole(net: Net) -> None:
        assert isinstance(net, RealNet)
        async with tls(contexts) as (near, far):
            await case(net, near, far)

    play(name, whole)


def _copied(outcome: Outcome) -> bool:
    return outcome.mover == "streams" and "TLS" in (outcome.fallback or "")


@every_loop
def test_from_tls(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, server = await net.socket()
        far[1].write(PATTERN)
        splicing = asyncio.ensure_future(
            aio.splice(near, drain, max_bytes=250_000, initial=b"first")
        )
        assert await server.read(250_000) == b"first" + PATTERN[:249_995]
        outcome = await splicing
        assert _copied(outcome)
        assert (outcome.reason, outcome.bytes, outcome.unsent) == (Reason.LIMIT, 250_000, b"")
        # The rest is still the caller's to read.
        assert await near[0].readexactly(len(PATTERN) - 249_995) == PATTERN[249_995:]

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("way", ["from", "to"])
def test_a_buffered_body_is_copied_at_once(name: str, way: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        plain, peer = await net.stream()
        if way == "from":
            far[1].write(b"12345678next")
        else:
            await peer.write(b"12345678next")
        source, drain = (near, plain) if way == "from" else (plain, near)
        await buffered(net, source, 12)
        outcome = at_once(aio.transfer(source, drain, 10, initial=b"0."))
        assert (outcome.bytes, outcome.reason) == (10, Reason.LIMIT)
        assert _copied(outcome)
        assert await source[0].readexactly(4) == b"next"
        got = await (peer.read(10) if way == "from" else far[0].readexactly(10))
        assert got == b"0.12345678"

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("kind", ["socket", "stream"])
def test_to_tls(name: str, kind: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        source, client = await getattr(net, kind)()
        writing = asyncio.ensure_future(client.write(PATTERN))
        outcome = await _while_reading(far, aio.transfer(source, near, 100_000), PATTERN[:100_000])
        assert _copied(outcome)
        assert (outcome.reason, outcome.bytes) == (Reason.LIMIT, 100_000)
        # Not a byte more was taken from the source.
        rest = aio.splice(source, near, max_bytes=200_000)
        await _while_reading(far, rest, PATTERN[100_000:])
        await writing

    play_tls(name, contexts, case)


async def _while_reading(far: Stream, call: Awaitable[Outcome], expected: bytes) -> Outcome:
    copying = asyncio.ensure_future(call)
    assert await far[0].readexactly(len(expected)) == expected
    return await copying


@every_loop
@cell(
    "the peer stops reading for ever",
    "aio",
    "moving",
    sees="of a TLS stream: the source is read no more; cancelling ends it",
)
def test_a_peer_that_does_not_read_holds_the_copying_up(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        source, client = await net.socket()
        writing = asyncio.ensure_future(client.write(bytes(30_000_000)))
        splicing = asyncio.ensure_future(aio.splice(source, near))
        await net.until(near[1].transport.get_write_buffer_size)
        for _ in range(200):  # rounds of the loop, in each of which it could copy a piece
            assert near[1].transport.get_write_buffer_size() < 1_000_000
            await asyncio.sleep(0.001)
        for task in (splicing, writing):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    play_tls(name, contexts, case)


@every_loop
def test_an_eof_that_tls_sends_ends_the_pair(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.stream()
        far[1].write(b"question")
        far[1].close()
        outcome = await aio.relay(near, right)
        assert outcome.reason is Reason.EOF
        assert outcome.left_to_right.bytes == 8
        assert await server.read(9) == b"question"  # and the EOF
        assert cast(asyncio.Transport, right[1].transport).is_reading()

    play_tls(name, contexts, case)


@every_loop
def test_an_eof_that_tls_has_sent_already(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.stream()
        far[1].write(b"question")
        far[1].close()
        await net.until(lambda: near[0]._eof)  # type: ignore[attr-defined]
        outcome = await aio.relay(near, right)
        assert outcome.reason is Reason.EOF
        assert outcome.left_to_right.bytes == 8
        assert await server.read(9) == b"question"

    play_tls(name, contexts, case)


@every_loop
def test_an_eof_that_tls_should_be_sent_ends_the_pair(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.socket()
        await server.write(b"answer")
        server.fin()
        outcome = await aio.relay(near, right, close=True)
        assert outcome.reason is Reason.EOF
        assert outcome.right_to_left.bytes == 6
        assert outcome.left_to_right.reason is Reason.CANCELLED
        assert await far[0].read() == b"answer"
        assert right.fileno() == -1
        assert await server.read(1) == b""  # and no reset: nothing is missing

    play_tls(name, contexts, case)


@every_loop
def test_a_plain_side_can_half_close(name: str, contexts: Contexts) -> None:
    """Between TLS and plain text only the TLS side's EOF ends the pair, if it comes last."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.socket()
        relaying = asyncio.ensure_future(aio.relay(near, right))
        far[1].write(PATTERN)
        assert await server.read(len(PATTERN)) == PATTERN
        await server.write(b"answer")
        assert await far[0].readexactly(6) == b"answer"
        far[1].close()
        assert (await relaying).reason is Reason.EOF
        assert await server.read(1) == b""

    play_tls(name, contexts, case)


@every_loop
def test_no_half_close_where_none_is_wanted(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        far[1].close()
        outcome = await aio.relay(near, right, half_close=False)
        assert outcome.reason is Reason.EOF
        right.send(b"still open")

    play_tls(name, contexts, case)


@every_loop
def test_an_eof_in_the_same_moment_is_passed_on(name: str, contexts: Contexts) -> None:
    """The plain side's ends the pair, as TLS can't say it; the TLS side's is there already."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        left, client = await net.stream()
        relaying = asyncio.ensure_future(aio.relay(left, near))
        far[1].write(PATTERN)
        assert await client.read(len(PATTERN)) == PATTERN
        for reader in (left[0], near[0]):
            reader.feed_eof()
        outcome = await relaying
        assert outcome.right_to_left.reason is Reason.EOF
        assert await client.read(1) == b""

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("limit", ["timeout", "idle_timeout"])
def test_time_limits(name: str, limit: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        reason = Reason.TIMEOUT if limit == "timeout" else Reason.IDLE
        options = {limit: SHORT}
        outcome = await aio.splice(near, right, **options)  # type: ignore[arg-type]
        assert outcome.reason is reason
        pair = await aio.relay(near, right, **options)  # type: ignore[arg-type]
        assert pair.reason is pair.left_to_right.reason is pair.right_to_left.reason is reason

    play_tls(name, contexts, case)


@every_loop
def test_cancelling_tells_how_far_it_came(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, server = await net.socket(small=True)
        far[1].write(PATTERN)
        splicing = asyncio.ensure_future(aio.splice(near, drain))
        assert await server.read(10) == PATTERN[:10]
        await asyncio.sleep(0.01)
        splicing.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await splicing
        outcome = aio.outcome_of(raised.value)
        assert isinstance(outcome, Outcome)
        assert await server.read(outcome.bytes - 10) == PATTERN[10 : outcome.bytes]
        left = len(PATTERN) - outcome.bytes - len(outcome.unsent)
        rest = outcome.unsent + await near[0].readexactly(left)
        assert rest == PATTERN[outcome.bytes :]

    play_tls(name, contexts, case)


@every_loop
def test_cancelling_a_relay(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.socket()
        far[1].write(b"hello")
        relaying = asyncio.ensure_future(aio.relay(near, right, close=True))
        assert await server.read(5) == b"hello"
        relaying.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await relaying
        outcome = aio.outcome_of(raised.value)
        assert outcome is not None
        assert outcome.reason is Reason.CANCELLED
        assert right.fileno() == -1

    play_tls(name, contexts, case)


@every_loop
def test_the_drain_is_lost_while_nothing_comes(name: str, contexts: Contexts) -> None:
    """Nobody writes, so nobody is told: it is looked at."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        source, _ = await net.socket()
        splicing = asyncio.ensure_future(aio.splice(source, near))
        await asyncio.sleep(0)
        far[1].transport.abort()
        outcome = await splicing
        assert outcome.reason is Reason.DRAIN_ERROR
        assert outcome.error is not None
        assert outcome.error.errno == errno.EPIPE

    play_tls(name, contexts, case)


def test_what_nobody_has_taken_from_a_socket() -> None:
    """A TLS connection that was to get it ends without TLS's own end then."""

    async def case(net: Net) -> None:
        sock, peer = await net.socket()
        copied = CopiedSocket(SocketSide(sock), source=True, drain=True)
        assert not copied.has_rest()
        await peer.write(b"rest")
        await net.until(copied.has_rest)
        sock.recv(4)
        peer.reset()
        await net.until(copied.has_rest)  # more would have come but for that
        copied.release()

    play("asyncio", case)


@every_loop
def test_what_comes_for_a_drain_that_is_lost_already(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        source, client = await net.socket()
        far[1].transport.abort()
        lost = near[0]
        await net.until(lambda: lost.exception() or lost._eof)  # type: ignore[attr-defined]
        await client.write(b"hello")
        outcome = await aio.splice(source, near)
        assert outcome.reason is Reason.DRAIN_ERROR
        assert (outcome.bytes, outcome.unsent) == (0, b"hello")

    play_tls(name, contexts, case)


@every_loop
def test_the_reset_of_a_socket_is_noticed_while_nothing_comes(
    name: str, contexts: Contexts
) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, server = await net.socket()
        splicing = asyncio.ensure_future(aio.splice(near, drain))
        await asyncio.sleep(0)
        server.reset()
        assert (await splicing).reason is Reason.DRAIN_ERROR
        with pytest.raises(ConnectionResetError):  # left for whoever reads
            drain.recv(1)

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("closed", ["source", "drain", "stream"])
def test_closing_one_ends_it(name: str, closed: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        if closed == "stream":
            plain, _ = await net.stream()
            splicing = asyncio.ensure_future(aio.splice(plain, near))
            await asyncio.sleep(0)
            plain[1].close()
        else:
            sock, _ = await net.socket()
            pair = (sock, near) if closed == "source" else (near, sock)
            splicing = asyncio.ensure_future(aio.splice(*pair))
            await asyncio.sleep(0)
            sock.close()
        assert (await splicing).reason is Reason.CLOSED

    play_tls(name, contexts, case)


@every_loop
def test_closing_one_ends_a_relay(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        sock, _ = await net.socket()
        relaying = asyncio.ensure_future(aio.relay(near, sock))
        await asyncio.sleep(0)
        sock.close()
        outcome = await relaying
        assert outcome.reason is Reason.CLOSED
        assert outcome.right_to_left.reason is Reason.CLOSED

    play_tls(name, contexts, case)


@every_loop
def test_both_ways_of_a_pair_by_two_splices(name: str, contexts: Contexts) -> None:
    """And what waits for the socket elsewhere on the loop goes on waiting."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        sock, peer = await net.socket()
        one = asyncio.ensure_future(aio.splice(sock, near))
        await asyncio.sleep(0.01)
        other = asyncio.ensure_future(aio.splice(near, sock))
        far[1].write(b"question")
        assert await peer.read(8) == b"question"
        await peer.write(b"answer")
        assert await far[0].readexactly(6) == b"answer"
        peer.fin()
        assert (await one).reason is Reason.EOF
        far[1].close()
        assert (await other).reason is Reason.EOF

    play_tls(name, contexts, case)


@every_loop
def test_a_socket_that_a_splice_has_is_busy(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        sock, _ = await net.socket()
        other, other_client = await net.socket()
        splicing = asyncio.ensure_future(aio.splice(other, sock))
        await asyncio.sleep(0)
        with pytest.raises(OSError) as raised:
            await aio.splice(near, sock)
        assert raised.value.errno == errno.EBUSY
        other_client.fin()
        await splicing

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("rounds", range(8))
def test_a_cancelling_at_the_end_is_not_lost(name: str, rounds: int, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        relaying = asyncio.ensure_future(aio.relay(near, right))
        await asyncio.sleep(0.01)
        near[0].feed_eof()
        for _ in range(rounds):
            await asyncio.sleep(0)
        if relaying.cancel():  # it was not over
            with pytest.raises(asyncio.CancelledError) as raised:
                await relaying
            assert aio.outcome_of(raised.value) is not None
        else:
            assert (await relaying).reason is Reason.EOF

    play_tls(name, contexts, case)


@every_loop
def test_an_eof_that_cannot_be_passed_on(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        right.shutdown(socket.SHUT_RDWR)
        relaying = asyncio.ensure_future(aio.relay(near, right))
        near[0].feed_eof()
        outcome = await relaying
        assert outcome.reason in (Reason.DRAIN_ERROR, Reason.EOF)

    play_tls(name, contexts, case)


@every_loop
@pytest.mark.parametrize("socket_first", [False, True])
def test_nothing_is_missing_so_tls_is_told_its_end(
    name: str, socket_first: bool, contexts: Contexts
) -> None:
    """Without a close_notify it would look like a truncation."""
    ended: list[str] = []

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StreamSide, "reset", lambda side: ended.append("reset"))
            patch.setattr(StreamSide, "close", lambda side: ended.append("close"))
            pair = (right, near) if socket_first else (near, right)
            outcome = await aio.relay(*pair, idle_timeout=SHORT, close=True)
        assert outcome.reason is Reason.IDLE
        assert ended == ["close"]

    play_tls(name, contexts, case)


@every_loop
@cell(
    "the peer resets",
    "aio",
    "half-closed",
    sees="of a TLS stream, amid its answer: `Reason.SOURCE_ERROR`, and the other side is reset",
)
def test_a_reset_is_passed_on_as_a_reset(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, server = await net.socket()
        relaying = asyncio.ensure_future(aio.relay(near, right, close=True))
        far[1].write(b"hello")
        assert await server.read(5) == b"hello"
        far_socket = far[1].get_extra_info("socket")
        far_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far[1].transport.abort()
        outcome = await relaying
        assert outcome.reason is Reason.SOURCE_ERROR
        with pytest.raises(ConnectionResetError):
            await server.read(1)

    play_tls(name, contexts, case)


@every_loop
def test_what_a_dead_drain_was_not_sent_is_the_callers(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        drain, _ = await net.socket()
        drain.shutdown(socket.SHUT_WR)
        far[1].write(b"hello")
        outcome = await aio.splice(near, drain)
        assert (outcome.reason, outcome.unsent) == (Reason.DRAIN_ERROR, b"hello")

    play_tls(name, contexts, case)


@every_loop
def test_without_a_fallback(name: str, contexts: Contexts) -> None:
    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        for call in (
            aio.splice(near, right, fallback=False),
            aio.relay(right, near, fallback=False),
        ):
            with pytest.raises(BackendUnavailable, match="TLS") as raised:
                await call
            assert raised.value.errno == errno.EPROTONOSUPPORT

    play_tls(name, contexts, case)


@every_loop
def test_a_demanded_kernel(name: str, contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "kernel")

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        with pytest.raises(BackendUnavailable):
            await aio.splice(near, right)

    play_tls(name, contexts, case)


def test_a_loop_without_readiness(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' proactor loop."""
    monkeypatch.setattr(_sockets, "_PROACTOR", asyncio.SelectorEventLoop)

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        with pytest.raises(NotImplementedError, match="make it a stream"):
            await aio.splice(near, right)
        with pytest.raises(NotImplementedError, match="make it a stream"):
            await aio.relay(right, near)

    play_tls("asyncio", contexts, case)


def test_a_defect_is_no_outcome(contexts: Contexts) -> None:
    """Somebody else reads the stream: that is the program's fault, and no end."""

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        right, _ = await net.socket()
        reading = asyncio.ensure_future(near[0].read(1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another coroutine"):
            await aio.splice(near, right)
        with pytest.raises(RuntimeError, match="another coroutine"):
            await aio.relay(near, right)
        reading.cancel()

    play_tls("asyncio", contexts, case)


@every_loop
@pytest.mark.skipif(sys.platform != "linux", reason="error queues are Linux's")
@pytest.mark.parametrize("noticed", ["source", "drain"])
def test_a_message_in_the_error_queue_spins_no_copying(
    name: str, noticed: str, contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported as readiness for as long as its owner leaves it there."""
    told = 0
    ready = CopiedSocket._ready

    async def counting(self: CopiedSocket, *, to_read: bool) -> None:
        nonlocal told
        await ready(self, to_read=to_read)
        told += 1

    monkeypatch.setattr(CopiedSocket, "_ready", counting)

    async def case(net: RealNet, near: Stream, far: Stream) -> None:
        plain, peer = await net.socket(small=True)
        # SO_TIMESTAMPING: of what is sent, when it has left, without its bytes.
        plain.setsockopt(socket.SOL_SOCKET, 37, 2 | 16 | 2048)
        plain.send(b"notice")
        assert await peer.read(6) == b"notice"
        if noticed == "source":
            splicing = asyncio.ensure_future(aio.splice(plain, near))
        else:
            splicing = asyncio.ensure_future(aio.splice(near, plain))
            far[1].write(bytes(1_000_000))  # more than it takes
            await net.until(lambda: told)
        await asyncio.sleep(0.2)
        assert told < 100
        if noticed == "source":
            await peer.write(b"behind the notice")
            assert await far[0].readexactly(17) == b"behind the notice"
        else:
            assert len(await peer.read(1_000_000)) == 1_000_000
        splicing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await splicing

    play_tls(name, contexts, case)
