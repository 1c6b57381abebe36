"""What can be spliced on a loop: a socket, or a pair of streams whose socket is taken over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from asyncio.trsock import TransportSocket
from typing import Any, cast

from .._port import Source
from .._reset import reset_on_close

#: A non-blocking socket, or both halves of a stream.
Side = socket.socket | tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: What a connection dies of, in both directions.
_DEATHS = (
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH),
)

#: The most that is asked of a reader at once.
_PIECE = 1 << 16


def side(given: Side) -> SocketSide | StreamSide:
    """See ``Side``.  Raises TypeError and ValueError, which say what to hand in instead."""
    reader_and_writer: Any = given
    if isinstance(given, tuple):
        if (
            len(reader_and_writer) == 2
            and isinstance(reader_and_writer[0], asyncio.StreamReader)
            and isinstance(reader_and_writer[1], asyncio.StreamWriter)
        ):
            return StreamSide(*reader_and_writer)
        raise TypeError(f"a stream is a pair of a StreamReader and a StreamWriter, not {given!r}")
    if isinstance(given, (asyncio.StreamReader, asyncio.StreamWriter)):
        raise TypeError(f"both halves of the stream are needed: (reader, writer), not {given!r}")
    if isinstance(given, asyncio.BaseTransport) or _belongs_to_transport(given):
        raise TypeError(
            f"{given!r} hides what its protocol has buffered already, which would be lost: hand in "
            "the pair (reader, writer), or a socket that no transport has"
        )
    if isinstance(given, int) or not hasattr(given, "fileno"):
        raise TypeError(f"a socket or a pair (reader, writer) is needed, not {given!r}")
    timeout = getattr(given, "gettimeout", None)
    if timeout is not None and timeout() != 0:
        raise ValueError(f"the socket must be non-blocking: {given!r}")
    return SocketSide(given)


class SocketSide:
    """A socket of the caller's: nothing has been taken from it, and nothing waits for it."""

    why_copied: str | None = None

    def __init__(self, sock: socket.socket) -> None:
        self.original: Source = sock
        self.socket = sock

    @property
    def pending(self) -> int:
        """Bytes that wait to be written to the socket."""
        return 0

    def check_open(self) -> None: ...

    def take_over(self, limit: int | None) -> bytes:
        return b""

    def put_back(self, data: bytes) -> None: ...

    def resume(self) -> None: ...

    def failed(self, error: OSError) -> None: ...

    def reset(self) -> None:
        """Close it so that its peer is told that something is missing."""
        with contextlib.suppress(OSError):  # it is gone already
            reset_on_close(self.socket)
        self.socket.close()


class StreamSide:
    """A stream, whose socket can be taken over and given back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.transport = cast(asyncio.Transport, writer.transport)
        if not self.is_tls:  # which closes at its peer's EOF, and has all that came before
            self.check_open()
            if self.transport.get_extra_info("socket") is None:
                raise TypeError(f"{_name(self.transport)} has no socket")
        self.original: Source = _SocketOfTransport(self.transport)
        self._paused = False

    @property
    def why_copied(self) -> str | None:
        if self.is_tls:
            return f"{_name(self.transport)} speaks TLS in this process"
        if sys.platform == "win32":
            # The loop's receive that is under way there can't be taken back without losing bytes.
            return f"{_name(self.transport)} can't be taken over on Windows"
        return None

    @property
    def is_tls(self) -> bool:
        return self.transport.get_extra_info("ssl_object") is not None

    @property
    def pending(self) -> int:
        """Bytes that wait to be written to the socket."""
        return self.transport.get_write_buffer_size()

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be written any more, as far as the loop has noticed."""
        if self.reader.exception() is not None:
            return True
        if self.is_tls and self.reader.at_eof():  # TLS closes both ways at once
            return True
        try:
            return self.transport.is_closing()
        except AttributeError:  # Python 3.10's, of a TLS connection that is gone
            return True

    @property
    def was_closed(self) -> bool:
        """Whether the program has closed it.  TLS closes at its peer's EOF by itself as well."""
        return not self.is_tls and self.transport.is_closing()

    def check_open(self) -> None:
        """Raise what the connection was lost by, or EBADF."""
        if self.is_lost:
            raise self.reader.exception() or OSError(
                errno.EBADF, f"{os.strerror(errno.EBADF)}: {_name(self.transport)} is closed"
            )

    def take_over(self, limit: int | None) -> bytes:
        """What the reader has buffered, up to ``limit``; and where that is all, read no more.

        Without a moment in between: the loop would read what arrives in it.  Raises what the reader
        has to report.
        """
        taken = bytearray()
        try:
            while limit is None or len(taken) < limit:
                wanted = _PIECE if limit is None else min(_PIECE, limit - len(taken))
                data = read_now(self.reader, wanted)
                if data is None:
                    self._pause()
                    break
                if not data:  # EOF, which the socket goes on to report
                    break
                taken += data
        except BaseException:  # somebody else waits for more, for instance
            _unread(self.reader, taken)
            raise
        return bytes(taken)

    def put_back(self, data: bytes) -> None:
        """Undo ``take_over``."""
        self.resume()
        _unread(self.reader, data)

    def resume(self) -> None:
        if self._paused:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.transport.resume_reading()
        self._paused = False

    def failed(self, error: OSError) -> None:
        """Have whoever reads it learn what the splice was told, and the system tells only once.

        What comes next is an EOF to the transport, and a truncated answer would look like a whole.
        """
        # With others (EPIPE of a drain that was shut down for writing, EBUSY) it can still be read.
        if error.errno in _DEATHS and self.reader.exception() is None:
            self.reader.set_exception(error)

    async def receive(self, count: int) -> bytes:
        """Some bytes, b"" at EOF.  Cancelled, it has taken none."""
        return await self.reader.read(count)

    async def send(self, data: memoryview) -> int:
        """How many it has taken: the writer holds what the socket doesn't take yet."""
        if self.is_lost:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.writer.write(bytes(data))
        return len(data)

    async def sent(self) -> None:
        """Wait while the writer holds too much."""
        await self.writer.drain()

    def write_eof(self) -> bool:
        """False: it can't (TLS)."""
        if not self.writer.can_write_eof():
            return False
        self.writer.write_eof()
        return True

    def has_rest(self) -> bool:
        """Whether something has arrived that nobody has taken, or would have but for a failure."""
        try:
            return bool(read_now(self.reader, 1))
        except OSError:
            return True

    def close(self) -> None:
        self.transport.close()

    def reset(self) -> None:
        """Close it so that its peer is told that something is missing."""
        if not self.is_tls:  # which has an end of its own, that is missing then
            with contextlib.suppress(OSError):  # it is gone already
                reset_on_close(self.transport.get_extra_info("socket"))
        self.transport.abort()

    def _pause(self) -> None:
        if self.transport.is_reading():
            self.transport.pause_reading()
            self._paused = True


class _SocketOfTransport:
    """A transport's socket, as long as that isn't closed; what the loop gives is no socket."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._socket = transport.get_extra_info("socket")

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def close(self) -> None:
        """Of a relay that closes: from one of its threads."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._transport.close)

    def __repr__(self) -> str:
        return _name(self._transport)


def read_now(reader: asyncio.StreamReader, count: int) -> bytes | None:
    """``reader.read(count)`` if that need not wait; None: it would.

    A reader doesn't say what it has buffered.  Its own ``read`` is asked for that, one step of it:
    what it does before it waits is to give back what there is.
    """
    reading = reader.read(count)
    try:
        reading.send(None)
    except StopIteration as done:
        return bytes(done.value)
    reading.close()
    return None


def _unread(reader: asyncio.StreamReader, data: bytes | bytearray) -> None:
    """Put it before what else the reader has; ``feed_data`` puts it behind, and not after EOF."""
    reader._buffer[:0] = data  # type: ignore[attr-defined]


def _belongs_to_transport(given: object) -> bool:
    return isinstance(given, TransportSocket) or type(given).__module__.startswith("uvloop")


def _name(transport: asyncio.BaseTransport) -> str:
    return f"the stream of {transport!r}"
