"""Where a stream ends and a splice begins, and back: not a byte lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import cast

import pytest

from faults.cells import cell
from freebsd_splice import Reason, aio

from .nets import LOOPS, MODELS, Net, Stream, buffered, play

#: Bytes of which no two short pieces are alike.
PATTERN = b"".join(number.to_bytes(3, "big") for number in range(100_000))

every_net = pytest.mark.parametrize("name", LOOPS + MODELS)


@every_net
def test_what_the_reader_has_buffered_goes_first(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.socket()
        await client.write(PATTERN[:1_000])
        await buffered(net, source, 1_000)
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        assert await server.read(1_000) == PATTERN[:1_000]
        await client.write(PATTERN[1_000:50_000])
        client.fin()
        assert await server.read(49_000) == PATTERN[1_000:50_000]
        outcome = await splicing
        assert (outcome.reason, outcome.bytes, outcome.unsent) == (Reason.EOF, 50_000, b"")

    play(name, case)


@every_net
def test_what_the_caller_has_read_goes_before_that(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        await client.write(b"read\nbuffered")
        line = await source[0].readline()
        await buffered(net, source, 8)
        client.fin()
        outcome = await aio.splice(source, drain, initial=line)
        assert outcome.bytes == 13
        assert await server.read(13) == b"read\nbuffered"

    play(name, case)


@every_net
def test_what_the_writer_holds_goes_before_all(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream(small=True)
        limits = drain[1].transport.get_write_buffer_limits()
        drain[1].write(PATTERN[:200_000])  # more than the socket takes
        assert drain[1].transport.get_write_buffer_size()
        await client.write(PATTERN[200_000:230_000])
        client.fin()
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        assert await server.read(230_000) == PATTERN[:230_000]
        assert (await splicing).bytes == 30_000
        assert drain[1].transport.get_write_buffer_limits() == limits

    play(name, case)


@every_net
def test_while_one_direction_is_moved_the_other_is_free(name: str) -> None:
    """An answer is read, written and moved while the request's body still goes up."""

    async def case(net: Net) -> None:
        left, client = await net.stream()
        right, server = await net.stream()
        going_up = asyncio.ensure_future(aio.transfer(left, right, 30_000))
        await client.write(PATTERN[:10_000])
        assert await server.read(10_000) == PATTERN[:10_000]
        await server.write(b"100 Continue\n200 OK\nbody\nnext\n")
        for _ in range(2):
            left[1].write(await right[0].readuntil(b"\n"))
        assert (await aio.transfer(right, left, 5)).bytes == 5
        assert (await aio.transfer(right, left, 0)).bytes == 0
        assert await right[0].readuntil(b"\n") == b"next\n"
        assert await client.read(25) == b"100 Continue\n200 OK\nbody\n"
        assert not going_up.done()
        await client.write(PATTERN[10_000:30_000])
        assert await server.read(20_000) == PATTERN[10_000:30_000]
        assert (await going_up).bytes == 30_000
        await client.write(b"and on\n")
        assert await left[0].readuntil(b"\n") == b"and on\n"

    play(name, case)


@every_net
def test_a_buffer_over_the_readers_limit(name: str) -> None:
    """The reader has paused its transport by itself."""

    async def case(net: Net) -> None:
        source, client = await net.stream(limit=100)
        drain, server = await net.socket()
        writing = asyncio.ensure_future(client.write(PATTERN[:90_000]))
        await buffered(net, source, 201)
        assert not cast(asyncio.Transport, source[1].transport).is_reading()
        splicing = asyncio.ensure_future(aio.splice(source, drain, max_bytes=89_000))
        assert await server.read(89_000) == PATTERN[:89_000]
        assert (await splicing).reason is Reason.LIMIT
        await writing
        assert await source[0].readexactly(1_000) == PATTERN[89_000:90_000]

    play(name, case)


@every_net
@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 30_000])
def test_after_a_transfer_both_are_the_callers(name: str, count: int) -> None:
    """1,000 bytes are buffered: fewer, as many, or more than are transferred."""

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        await client.write(PATTERN[:1_000])
        await buffered(net, source, 1_000)
        transferring = asyncio.ensure_future(aio.transfer(source, drain, count))
        reading = asyncio.ensure_future(server.read(count + 6))
        writing = asyncio.ensure_future(client.write(PATTERN[1_000:31_000]))
        outcome = await transferring
        assert (outcome.bytes, outcome.reason) == (count, Reason.LIMIT)
        drain[1].write(b"behind")
        assert await reading == PATTERN[:count] + b"behind"
        rest = await source[0].readexactly(31_000 - count)
        assert rest == PATTERN[count:31_000]
        await writing
        source[1].write(b"answer")
        assert await client.read(6) == b"answer"

    play(name, case)


@every_net
def test_a_transport_that_the_caller_has_paused_stays_so(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        transport = cast(asyncio.Transport, source[1].transport)
        transport.pause_reading()
        await client.write(b"hello")
        await aio.transfer(source, drain, 5)
        assert not transport.is_reading()
        transport.resume_reading()

    play(name, case)


@every_net
def test_transfers_between_sockets(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.socket()
        drain, server = await net.socket()
        await client.write(PATTERN[:3_000])
        await aio.transfer(source, drain, 1_000, initial=b"0123")
        await net.until(lambda: _peek(source))
        assert source.recv(100) == PATTERN[996:1_096]
        assert await server.read(1_000) == b"0123" + PATTERN[:996]

    play(name, case)


@every_net
def test_a_transfer_that_comes_to_an_end_too_soon_says_so(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        await client.write(b"12345")
        client.fin()
        with pytest.raises(aio.IncompleteTransferError, match=r"5 of 10 bytes.*eof") as raised:
            await aio.transfer(source, drain, 10)
        assert raised.value.outcome.bytes == 5
        assert await server.read(5) == b"12345"
        assert await source[0].read() == b""  # the reader learns of it as well

    play(name, case)


@every_net
@cell(
    "the peer closes",
    "aio",
    "half-closed",
    sees="EOF is passed on, the other direction goes on; `Reason.EOF`",
    counted="all, either way",
)
def test_a_relay_of_streams(name: str) -> None:
    async def case(net: Net) -> None:
        left, client = await net.stream()
        right, server = await net.stream()
        await client.write(b"question")
        await server.write(b"greeting")
        await buffered(net, left, 8)
        await buffered(net, right, 8)
        relaying = asyncio.ensure_future(aio.relay(left, right))
        assert await client.read(8) == b"greeting"
        client.fin()
        assert await server.read(100) == b"question"  # and EOF
        answering = asyncio.ensure_future(server.write(PATTERN))
        assert await client.read(len(PATTERN)) == PATTERN
        await answering
        server.fin()
        assert await client.read(1) == b""
        outcome = await relaying
        assert outcome.reason is Reason.EOF
        assert outcome.left_to_right.bytes == 8
        assert outcome.right_to_left.bytes == 8 + len(PATTERN)
        assert outcome.left_to_right.fallback is None

    play(name, case)


@every_net
def test_a_relay_that_closes(name: str) -> None:
    async def case(net: Net) -> None:
        left, client = await net.stream()
        right, server = await net.socket()
        relaying = asyncio.ensure_future(aio.relay(left, right, close=True))
        client.fin()
        server.fin()
        await relaying
        await net.until(lambda: left[1].is_closing())
        assert right.fileno() == -1

    play(name, case)


@every_net
@cell(
    "the peer closes",
    "aio",
    "initial",
    sees="`Reason.EOF`, after what the reader had buffered",
    counted="all of it",
)
def test_eof_that_the_reader_has_seen_already(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.socket()
        await client.write(b"all of it")
        client.fin()
        await net.until(lambda: source[0]._eof)  # type: ignore[attr-defined]
        outcome = await aio.splice(source, drain)
        assert (outcome.reason, outcome.bytes) == (Reason.EOF, 9)
        assert await server.read(9) == b"all of it"

    play(name, case)


@every_net
@pytest.mark.parametrize("at_eof", [False, True])
def test_a_splice_that_is_refused_has_taken_nothing(name: str, at_eof: bool) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.socket()
        other, other_client = await net.socket()
        busy = asyncio.ensure_future(aio.splice(other, drain))
        await client.write(b"first, second")
        await buffered(net, source, 13)
        if at_eof:
            client.fin()
            await net.until(lambda: source[0]._eof)  # type: ignore[attr-defined]
        with pytest.raises(OSError) as raised:
            await aio.splice(source, drain)
        assert raised.value.errno == errno.EBUSY
        if not at_eof:
            await client.write(b", third")
            assert await source[0].readexactly(20) == b"first, second, third"
        else:
            assert await source[0].read() == b"first, second"
        other_client.fin()
        await busy

    play(name, case)


@every_net
@pytest.mark.parametrize("at_eof", [False, True])
def test_a_refused_transfer_has_taken_nothing(name: str, at_eof: bool) -> None:
    """Less than is buffered: what was taken goes before the rest again."""

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.socket()
        other, other_client = await net.socket()
        busy = asyncio.ensure_future(aio.splice(other, drain))
        await client.write(b"first, second")
        await buffered(net, source, 13)
        if at_eof:
            client.fin()
            await net.until(lambda: source[0]._eof)  # type: ignore[attr-defined]
        with pytest.raises(OSError) as raised:
            await aio.transfer(source, drain, 5)
        assert raised.value.errno == errno.EBUSY
        assert await source[0].readexactly(13) == b"first, second"
        other_client.fin()
        await busy

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
def test_who_waits_for_the_reader_loses_nothing(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.socket()
        await client.write(b"12345")
        await buffered(net, source, 5)
        reading = asyncio.ensure_future(source[0].readexactly(10))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another coroutine"):
            await aio.splice(source, drain)
        with pytest.raises(RuntimeError, match="another coroutine"):
            await aio.relay(drain, source)
        await client.write(b"67890")
        assert await reading == b"1234567890"

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
def test_who_reads_the_drain_learns_of_its_reset(name: str) -> None:
    """The system tells each error once: to the splice, and the drain's reader would see an EOF."""

    async def case(net: Net) -> None:
        source, _ = await net.socket()
        drain, server = await net.stream()
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        await server.write(b"half an answ")
        assert await drain[0].readexactly(12) == b"half an answ"
        server.reset()
        assert (await splicing).reason is Reason.DRAIN_ERROR
        assert drain[0].exception() is not None

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
def test_a_drain_shut_down_for_writing_can_still_be_read(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.socket()
        drain, server = await net.stream()
        drain[1].write_eof()
        assert await server.read(1) == b""
        await client.write(b"too late")
        assert (await aio.splice(source, drain)).reason is Reason.DRAIN_ERROR
        await server.write(b"answer")
        server.fin()
        assert await drain[0].read() == b"answer"

    play(name, case)


def test_a_count_is_a_number() -> None:
    async def case(net: Net) -> None:
        source, _ = await net.socket()
        with pytest.raises(TypeError, match="count"):
            await aio.transfer(source, source, None)  # type: ignore[arg-type]

    play("asyncio", case)


@pytest.mark.parametrize("name", LOOPS)
def test_initial_can_be_any_bytes(name: str) -> None:
    async def case(net: Net) -> None:
        left, client = await net.stream()
        right, server = await net.stream()
        client.fin()
        await aio.splice(left, right, initial=memoryview(b"12"))
        server.fin()
        await aio.relay(left, right, initial=(bytearray(b"34"), memoryview(b"5")))
        assert await server.read(5) == b"1234"
        assert await client.read(2) == b"5"

    play(name, case)


@every_net
def test_closing_the_writer_ends_it(name: str) -> None:
    async def case(net: Net) -> None:
        source, _ = await net.stream()
        drain, _ = await net.socket()
        splicing = asyncio.ensure_future(aio.splice(source, drain))
        await asyncio.sleep(0)
        source[1].close()
        assert (await splicing).reason is Reason.CLOSED

    play(name, case)


@pytest.mark.parametrize("name", LOOPS)
def test_no_thread_for_a_call(name: str) -> None:
    async def case(net: Net) -> None:
        pairs = [(await net.stream(), await net.stream()) for _ in range(20)]
        first = asyncio.ensure_future(aio.relay(pairs[0][0][0], pairs[0][1][0]))
        second = asyncio.ensure_future(aio.relay(pairs[1][0][0], pairs[1][1][0]))
        await asyncio.sleep(0.01)
        threads = threading.active_count()
        relays = [first, second]
        relays += [asyncio.ensure_future(aio.relay(a[0], b[0])) for a, b in pairs[2:]]
        await asyncio.sleep(0.01)
        # Where the kernel serves, two threads make the calls that wait, for all of them.
        assert threading.active_count() <= threads + 2
        for (_, client), (_, server) in pairs:
            client.fin()
            server.fin()
        await asyncio.gather(*relays)

    play(name, case)


class Misuse:
    """What isn't a side."""

    @staticmethod
    def transport(stream: Stream) -> object:
        return stream[1].transport

    @staticmethod
    def socket_of_a_transport(stream: Stream) -> object:
        return stream[1].get_extra_info("socket")

    @staticmethod
    def reader(stream: Stream) -> object:
        return stream[0]

    @staticmethod
    def writer(stream: Stream) -> object:
        return stream[1]

    @staticmethod
    def wrong_order(stream: Stream) -> object:
        return stream[::-1]

    @staticmethod
    def descriptor(stream: Stream) -> object:
        return stream[1].get_extra_info("socket").fileno()


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Misuse.transport, "hides what its protocol has buffered"),
        (Misuse.socket_of_a_transport, "hides what its protocol has buffered"),
        (Misuse.reader, "both halves"),
        (Misuse.writer, "both halves"),
        (Misuse.wrong_order, "a pair of a StreamReader and a StreamWriter"),
        (Misuse.descriptor, "a socket or a pair"),
    ],
)
def test_what_is_no_side_is_refused(
    name: str, wrong: Callable[[Stream], object], says: str
) -> None:
    async def case(net: Net) -> None:
        stream, _ = await net.stream()
        other, _ = await net.socket()
        side = wrong(stream)
        with pytest.raises(TypeError, match=says):
            await aio.splice(side, other)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=says):
            await aio.relay(other, side)  # type: ignore[arg-type]

    play(name, case)


def test_a_socket_that_blocks_is_refused() -> None:
    async def case(net: Net) -> None:
        sock, _ = await net.socket()
        other, _ = await net.socket()
        sock.setblocking(True)
        with pytest.raises(ValueError, match="non-blocking"):
            await aio.splice(sock, other)

    play("asyncio", case)


@pytest.mark.parametrize("name", LOOPS)
def test_a_stream_that_is_lost_already_says_so(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.socket()
        client.reset()
        await net.until(lambda: source[0].exception())
        with pytest.raises(ConnectionResetError):
            await aio.splice(source, drain)

    play(name, case)


def _peek(sock: object) -> bool:
    try:
        return bool(sock.recv(1, 2))  # type: ignore[attr-defined] # MSG_PEEK
    except BlockingIOError:
        return False
