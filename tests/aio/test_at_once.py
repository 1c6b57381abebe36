"""Bytes that the reader has buffered already: written at once, and nobody is woken for them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Coroutine
from contextlib import nullcontext
from types import FrameType
from typing import Any

import pytest

from freebsd_splice import BackendUnavailable, Outcome, Reason, Relay, Splice, aio
from freebsd_splice._platform.interface import Endpoint, SocketLike
from support.platforms import UserspacePlatform, runtime

from .nets import LOOPS, MODELS, ModelNet, Net, RealNet, Stream, buffered, play
from .test_seams import PATTERN

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="streams are copied there")

every_loop = pytest.mark.parametrize("name", LOOPS)

#: More than a connection of small buffers takes, and a reader has at most.
MUCH = 120_000


class NothingElsePlatform(UserspacePlatform):
    """A system on which nothing can be spliced, nor a thread started."""

    def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def run(self, *given: Any) -> Any:
        raise AssertionError("a thread was started")


class NoDescriptorsPlatform(UserspacePlatform):
    """A system on which a socket can't be duplicated."""

    def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class NoThreadsPlatform(UserspacePlatform):
    """A system that has no thread to give."""

    def run(self, *given: Any) -> Any:
        raise RuntimeError("can't start new thread")


class NothingWrittenPlatform(UserspacePlatform):
    """A system on which nothing may be written at once."""

    def write_through(self, original: SocketLike, data: bytes | bytearray) -> int:
        raise AssertionError(f"{bytes(data)!r} was written")


class UntilFullPlatform(UserspacePlatform):
    """This machine; ``is_full`` from the first write on that did not take all."""

    is_full = False

    def write_through(self, original: SocketLike, data: bytes | bytearray) -> int:
        sent = super().write_through(original, data)
        self.is_full = self.is_full or sent < len(data)
        return sent


def at_once(call: Coroutine[Any, Any, Outcome]) -> Outcome:
    """What it gives without waiting for anything."""
    with pytest.raises(StopIteration) as done:
        call.send(None)
    outcome = done.value.value
    assert isinstance(outcome, Outcome)
    return outcome


@pytest.mark.parametrize("name", LOOPS + MODELS)
@pytest.mark.parametrize("initial", [b"", b"first "])
def test_a_buffered_body_needs_no_splice(name: str, initial: bytes) -> None:
    async def case(net: Net) -> None:
        if isinstance(net, ModelNet):
            net.world.platform.demanded = False
        source, client = await net.stream()
        drain, server = await net.stream()
        await client.write(PATTERN[:10_000] + b"next head")
        await buffered(net, source, 10_009)
        outcome = at_once(aio.transfer(source, drain, len(initial) + 10_000, initial=initial))
        assert (outcome.reason, outcome.bytes) == (Reason.LIMIT, len(initial) + 10_000)
        assert (outcome.unsent, outcome.error, outcome.undelivered) == (b"", None, 0)
        assert (outcome.backend, outcome.mover, outcome.fallback) == ("userspace", "streams", None)
        assert await server.read(len(initial) + 10_000) == initial + PATTERN[:10_000]
        assert await source[0].readexactly(9) == b"next head"

    with runtime(NothingElsePlatform()):  # which the model puts its own before
        play(name, case)


@every_loop
def test_what_the_drains_writer_holds_goes_first(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream(small=True)
        await client.write(PATTERN[200_000:205_000])
        await buffered(net, source, 5_000)
        drain[1].write(PATTERN[:200_000])  # more than the socket takes
        assert drain[1].transport.get_write_buffer_size()
        transferring = asyncio.ensure_future(aio.transfer(source, drain, 5_000))
        assert await server.read(205_000) == PATTERN[:205_000]
        assert (await transferring).bytes == 5_000

    play(name, case)


@every_loop
@pytest.mark.parametrize("which", ["source", "drain"])
def test_a_stream_that_the_program_has_closed(name: str, which: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        await client.write(b"12345")
        await buffered(net, source, 5)
        (source if which == "source" else drain)[1].close()
        with pytest.raises(OSError, match="closed") as caught:
            await aio.transfer(source, drain, 5)
        assert caught.value.errno == errno.EBADF
        assert await source[0].readexactly(5) == b"12345"
        drain[1].close()
        assert await server.read(1) == b""

    play(name, case)


@every_loop
@pytest.mark.parametrize("which", ["source", "drain"])
def test_a_failure_that_the_reader_has_to_report(name: str, which: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        await client.write(b"12345")
        await buffered(net, source, 5)
        failure = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        (source if which == "source" else drain)[0].set_exception(failure)
        with pytest.raises(ConnectionResetError) as caught:
            await aio.transfer(source, drain, 5)
        assert caught.value is failure
        assert bytes(source[0]._buffer) == b"12345"  # type: ignore[attr-defined]

    play(name, case)


@every_loop
def test_no_bytes_are_not_written(name: str) -> None:
    """What an empty write does differs between systems and kinds of sockets."""

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        await client.write(b"12345")
        await buffered(net, source, 5)
        outcome = await aio.transfer(source, drain, 0)
        assert (outcome.reason, outcome.bytes) == (Reason.LIMIT, 0)

    with runtime(NothingWrittenPlatform()):
        play(name, case)


@pytest.mark.usefixtures("userspace")
def test_it_makes_hardly_more_calls_than_read_and_write() -> None:
    """31 calls of the package's and asyncio's functions took twice the time of the write."""

    async def read_and_write(source: Stream, drain: Stream) -> None:
        drain[1].write(await source[0].readexactly(5))
        await drain[1].drain()

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        called = []
        for way in (aio.transfer(source, drain, 5), read_and_write(source, drain)):
            await client.write(b"12345")
            await buffered(net, source, 5)
            called.append(_functions_called(way))
            assert await server.read(5) == b"12345"
        assert len(called[0]) <= len(called[1]) + 3, called

    with runtime(NothingElsePlatform()):
        play("asyncio", case)


def _functions_called(call: Coroutine[Any, Any, object]) -> list[str]:
    """Return the names of the Python functions that the call runs, where it waits for nothing."""
    names = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call.send(None)
    except StopIteration:
        return names
    finally:
        sys.setprofile(before)
    raise AssertionError("it waits for something")


@every_loop
def test_to_a_socket(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.socket()
        await client.write(b"12345")
        await buffered(net, source, 5)
        assert at_once(aio.splice(source, drain, max_bytes=5)).bytes == 5
        assert await server.read(5) == b"12345"

    with runtime(NothingElsePlatform()):
        play(name, case)


@every_loop
def test_what_the_drain_has_no_room_for_follows(name: str) -> None:
    port = UntilFullPlatform()

    async def case(net: Net) -> None:
        source, drain, server = await _more_than_fits(net)
        transferring = asyncio.ensure_future(
            aio.transfer(source, drain, 7 + MUCH, initial=b"initial")
        )
        assert await server.read(7 + MUCH) == b"initial" + _pattern(MUCH)
        outcome = await transferring
        assert (outcome.reason, outcome.bytes, outcome.unsent) == (Reason.LIMIT, 7 + MUCH, b"")
        assert port.is_full

    with runtime(port):
        play(name, case)


@every_loop
def test_cancelled_behind_a_part_of_it(name: str) -> None:
    async def case(net: Net) -> None:
        source, drain, server = await _more_than_fits(net)
        with pytest.raises(asyncio.TimeoutError) as caught:
            await asyncio.wait_for(aio.transfer(source, drain, MUCH), 0.1)
        outcome = aio.outcome_of(caught.value)
        assert isinstance(outcome, Outcome)
        assert 0 < outcome.bytes < MUCH
        assert await server.read(outcome.bytes) == _pattern(MUCH)[: outcome.bytes]
        rest = outcome.unsent + await source[0].readexactly(
            MUCH - outcome.bytes - len(outcome.unsent)
        )
        assert rest == _pattern(MUCH)[outcome.bytes :]

    with runtime(UntilFullPlatform()):
        play(name, case)


@every_loop
@pytest.mark.parametrize(
    ("port", "number"), [(NoDescriptorsPlatform, errno.EMFILE), (NoThreadsPlatform, errno.EAGAIN)]
)
def test_a_part_was_written_and_the_rest_cannot_be_spliced(
    name: str, port: type[UserspacePlatform], number: int
) -> None:
    async def case(net: Net) -> None:
        source, drain, server = await _more_than_fits(net)
        with pytest.raises(aio.IncompleteTransferError) as caught:
            await aio.transfer(source, drain, MUCH)
        outcome = caught.value.outcome
        assert outcome.reason is Reason.SOURCE_ERROR
        assert outcome.error is not None
        assert outcome.error.errno == number
        assert await server.read(outcome.bytes) == _pattern(MUCH)[: outcome.bytes]
        rest = await source[0].readexactly(MUCH - outcome.bytes)
        assert rest == _pattern(MUCH)[outcome.bytes :]

    with runtime(port()):
        play(name, case)


@every_loop
@pytest.mark.parametrize("how", ["reset", "shut down"])
def test_a_drain_that_takes_nothing(name: str, how: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        await client.write(b"67890")
        await buffered(net, source, 5)
        if how == "reset":
            drain[1].transport.pause_reading()  # type: ignore[attr-defined]
            server.reset()
        else:
            drain[1].write_eof()
            assert await server.read(1) == b""
        with pytest.raises(aio.IncompleteTransferError) as caught:
            await aio.transfer(source, drain, 10, initial=b"12345")
        outcome = caught.value.outcome
        assert (outcome.reason, outcome.bytes) == (Reason.DRAIN_ERROR, 0)
        assert outcome.unsent == b"1234567890"
        assert outcome.error is not None
        if how == "reset":
            assert outcome.error.errno == errno.ECONNRESET
            assert drain[0].exception() is outcome.error  # the system says so only once
        else:
            assert outcome.error.errno == errno.EPIPE
            assert drain[0].exception() is None  # it can still be read

    play(name, case)


@every_loop
@pytest.mark.parametrize("which", ["source", "drain"])
@pytest.mark.parametrize("by", ["the stream", "a duplicate"])
def test_a_side_that_a_splice_has_is_busy(name: str, which: str, by: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        other, _ = await net.socket()
        await client.write(b"12345")
        await buffered(net, source, 5)
        busy = (source if which == "source" else drain)[1].get_extra_info("socket")
        duplicate = busy.dup() if by == "a duplicate" else busy
        duplicate.setblocking(False)
        pair = (duplicate, other) if which == "source" else (other, duplicate)
        with Splice(*pair), pytest.raises(OSError, match="splice") as caught:
            await aio.transfer(source, drain, 5)
        assert caught.value.errno == errno.EBUSY
        if by == "a duplicate":
            duplicate.close()
        assert (await aio.transfer(source, drain, 5)).bytes == 5

    play(name, case)


@every_loop
def test_sides_that_others_use_otherwise_are_free(name: str) -> None:
    """The one is a drain, the other a source: a relay's both directions, by hand."""

    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, server = await net.stream()
        left, right = (await net.socket())[0], (await net.socket())[0]
        await client.write(b"12345")
        await buffered(net, source, 5)
        with (
            Relay(left, right),
            Splice(drain[1].get_extra_info("socket"), source[1].get_extra_info("socket")),
        ):
            assert at_once(aio.transfer(source, drain, 5)).bytes == 5
        assert await server.read(5) == b"12345"

    play(name, case)


@every_loop
def test_a_transport_that_was_full_reads_on(name: str) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream(limit=1_000)
        drain, server = await net.stream()
        writing = asyncio.ensure_future(client.write(PATTERN[:50_000]))
        await net.until(lambda: not source[1].transport.is_reading())  # type: ignore[attr-defined]
        count = len(source[0]._buffer)  # type: ignore[attr-defined]
        assert at_once(aio.transfer(source, drain, count)).bytes == count
        rest = await source[0].readexactly(50_000 - count)
        await writing
        assert await server.read(count) + rest == PATTERN[:50_000]

    play(name, case)


@every_loop
def test_what_is_wrong_is_said_though_nothing_has_to_be_spliced(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream()
        drain, _ = await net.stream()
        await client.write(b"12345")
        await buffered(net, source, 5)
        for wrong in ({"timeout": 0}, {"idle_timeout": -1}):
            with pytest.raises(ValueError, match="timeout"):
                await aio.transfer(source, drain, 5, **wrong)  # type: ignore[arg-type]
        for count in (True, 5.0, "5"):
            with pytest.raises(TypeError, match="count must be an int"):
                await aio.transfer(source, drain, count)  # type: ignore[arg-type]
        if sys.platform == "linux":
            monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "kernel")
            with pytest.raises(BackendUnavailable):
                await aio.transfer(source, drain, 5)
            monkeypatch.delenv("FREEBSD_SPLICE_BACKEND")
            with pytest.raises(BackendUnavailable):
                await aio.transfer(source, drain, 5, fallback=False)
        drain[1].close()
        with pytest.raises(OSError, match="closed"):
            await aio.transfer(source, drain, 5)
        assert await source[0].readexactly(5) == b"12345"

    play(name, case)


def _pattern(count: int) -> bytes:
    return (PATTERN * (1 + count // len(PATTERN)))[:count]


async def _more_than_fits(net: Net) -> tuple[Stream, Stream, Any]:
    """A source with MUCH in its reader, and a drain whose peer has not read anything yet."""
    assert isinstance(net, RealNet)
    source, client = await net.stream(limit=MUCH)
    drain, server = await net.stream(small=True)
    await client.write(_pattern(MUCH))
    await buffered(net, source, MUCH)
    return source, drain, server


@every_loop
@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("closed", errno.EBADF),
        ("listening", errno.EINVAL),
        ("of datagrams", errno.EPROTONOSUPPORT),
    ],
)
def test_of_what_is_no_drain_nothing_is_taken(name: str, what: str, number: int) -> None:
    """To a socket of datagrams it would even be sent."""
    drain, far = socket.socketpair(
        type=socket.SOCK_DGRAM if what == "of datagrams" else socket.SOCK_STREAM
    )
    if what == "listening":
        drain.close()
        drain = socket.create_server(("127.0.0.1", 0))
    drain.setblocking(False)
    if what == "closed":
        drain.close()

    async def case(net: Net) -> None:
        source, client = await net.stream()
        await client.write(b"12345")
        await buffered(net, source, 5)
        with pytest.raises(OSError) as refused:
            await aio.transfer(source, drain, 5)
        assert refused.value.errno == number
        assert await source[0].readexactly(5) == b"12345"

    with drain, far:
        play(name, case)
        far.setblocking(False)
        with pytest.raises(BlockingIOError) if what == "of datagrams" else nullcontext():
            far.recv(5)
