"""What can be spliced on a loop: a socket, or a pair of streams whose socket is taken over."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from .._platform.interface import SocketLike
from .._platform.reset import reset_on_close
from .._platform.send_queue import unacknowledged

T = TypeVar("T")

#: What a TLS transport that has let go of its connection would say.
_UNKNOWN: Any = object()

#: A non-blocking socket, or both halves of a stream.
Side = socket.socket | tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: What a connection dies of, in both directions.
_DEATHS = (
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH),
)

#: Windows has no poll(2).
_POLLOUT, _POLLHUP, _POLLNVAL = (
    getattr(select, name, 0) for name in ("POLLOUT", "POLLHUP", "POLLNVAL")
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
        self.original: SocketLike = sock
        self.socket = sock

    @property
    def pending(self) -> int:
        """Bytes that wait to be written to the socket."""
        return 0

    @property
    def is_lost(self) -> bool:
        return hangs_up(self.socket)

    def undelivered(self) -> int | None:
        return unacknowledged(self.socket)

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
        self.abandon()

    def abandon(self) -> None:
        """Close it, though somebody else may hold a duplicate."""
        self.socket.close()


class StreamSide:
    """A stream, whose socket can be taken over and given back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.transport = cast(asyncio.Transport, writer.transport)
        #: Asked once: it doesn't change, and a transport that has let go couldn't tell.
        tls = self._asked(lambda: self.transport.get_extra_info("ssl_object"), _UNKNOWN)
        self.is_tls = tls is not None
        self._peer_is_server = not getattr(tls, "server_side", True)
        if not self.is_tls:  # which closes at its peer's EOF, and has all that came before
            self.check_open()
            if self._socket() is None:
                raise TypeError(f"{_name(self.transport)} has no socket")
        self.original: SocketLike = _SocketOfTransport(self.transport, self._socket())
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
    def pending(self) -> int:
        """Bytes that wait to be written to the socket; about as many, with TLS."""
        held = self._asked(self.transport.get_write_buffer_size, 0)
        return held + self._pending_below() if self.is_tls else held

    @property
    def room(self) -> int:
        """Bytes that the writer takes before it asks to be waited for."""
        limits = self._asked(self.transport.get_write_buffer_limits, (0, 0))
        return max(0, limits[1] - self.pending)

    def undelivered(self) -> int | None:
        """Bytes that were written and that the peer has not acknowledged; None: can't be told."""
        sock = self._socket()
        sent = unacknowledged(sock) if sock is not None else 0
        return None if sent is None else self.pending + sent

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be written any more.  The error itself is left for who reads."""
        if self._is_closed():
            return True
        sock = self._socket()
        return sock is None or hangs_up(sock)

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing will come any more, and the reader has not been told so.

        A TLS transport that was closed gives its reader nothing more, and waits for its peer to
        close as well: up to 30 s, on Python 3.10 for ever. A reader that has been told its EOF
        ends by itself, once what it gave is written.
        """
        reader = _inside(self.reader)
        return self.is_tls and self._is_closed() and not (reader._buffer or reader._eof)

    @property
    def was_closed(self) -> bool:
        """Whether the program has closed it.  TLS closes at its peer's EOF by itself as well."""
        return not self.is_tls and self.transport.is_closing()

    def check_open(self) -> None:
        """Raise what the connection was lost by, or EBADF."""
        if self._is_closed():
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
        """Some bytes, b"" at EOF.  Cancelled, it has taken none.

        Not by the reader's own ``read``: that raises a failure before it gives back what came
        before the failure, and loses bytes where the transport can't be resumed any more.
        """
        inside = _inside(self.reader)
        if not (inside._buffer or self.reader.at_eof() or self.reader.exception()):
            try:
                await inside._wait_for_data("receive")
            except Exception:
                self._raise_failure()
                raise
        data = self.take_buffered(count)
        if not data:
            self._raise_failure()
        return data

    @property
    def buffered(self) -> int:
        """Bytes that ``take_buffered`` can take."""
        return len(_inside(self.reader)._buffer)

    def take_buffered(self, count: int) -> bytes:
        inside = _inside(self.reader)
        data = bytes(inside._buffer[:count])
        del inside._buffer[:count]
        self._asked(inside._maybe_resume_transport, None)
        return data

    async def send(self, data: memoryview) -> int:
        """How many it has taken: the writer holds what the socket doesn't take yet."""
        # Before the transport meets the failure: it would stop reading, with an answer unread.
        if self.is_lost:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.writer.write(bytes(data))
        return len(data)

    async def sent(self) -> None:
        """Wait while the writer holds too much."""
        try:
            await self.writer.drain()
        except Exception:
            self._raise_failure()
            raise

    def write_eof(self) -> bool:
        """Whether what it sends is worth waiting for.  TLS has no half-close.

        So a TLS server isn't told before it has answered; a TLS client has its answer, and has to
        be told by a close.
        """
        if not self.is_tls:
            self.writer.write_eof()
        return self._peer_is_server or not self.is_tls

    def has_rest(self) -> bool:
        """Whether something has arrived that nobody has taken, or would have but for a failure."""
        return bool(_inside(self.reader)._buffer) or self.reader.exception() is not None

    def close(self) -> None:
        # A TLS transport that is closed a second time lets go of everything (see ``_asked``).
        if not self._asked(self.transport.is_closing, True):
            self.transport.close()

    def reset(self) -> None:
        """Close it so that its peer is told that something is missing."""
        if not self.is_tls:  # which has an end of its own, that is missing then
            sock = self._socket()
            if sock is not None:
                with contextlib.suppress(OSError):  # it is gone already
                    reset_on_close(sock)
        self.abandon()

    def abandon(self) -> None:
        """Close it with whatever the writer holds, though somebody else may hold a duplicate."""
        self._asked(self.transport.abort, None)

    def _is_closed(self) -> bool:
        """As far as the loop has noticed."""
        if self.is_tls and _inside(self.reader)._eof:  # TLS closes both ways at once
            return True
        return self.reader.exception() is not None or self.transport.is_closing()

    def _raise_failure(self) -> None:
        """What the connection was lost by, as an OSError; asyncio has others too."""
        error = self.reader.exception()
        if isinstance(error, OSError):
            raise error
        if error is not None:
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error

    def _socket(self) -> Any:
        """None where the transport has closed it, or has let go of it."""
        sock = self._asked(lambda: self.transport.get_extra_info("socket"), None)
        return sock if sock is not None and sock.fileno() >= 0 else None

    def _pending_below(self) -> int:
        """What waits in the transport that TLS writes to; TLS's own doesn't count that."""
        below = getattr(getattr(self.transport, "_ssl_protocol", None), "_transport", None)
        if below is not None:
            return int(below.get_write_buffer_size())
        sock = self._socket()
        # uvloop doesn't tell; what it has it writes as soon as the socket takes it.
        return 0 if sock is None or _is_writable(sock) else 1

    def _asked(self, ask: Callable[[], T], gone: T) -> T:
        """What the transport says; ``gone`` where it has let go of its connection.

        asyncio's TLS raises AttributeError then: when it was closed twice, the first time perhaps
        by itself at its peer's EOF; on Python 3.10, when the connection is lost.
        """
        try:
            return ask()
        except AttributeError:
            return gone

    def _pause(self) -> None:
        if self.transport.is_reading():
            self.transport.pause_reading()
            self._paused = True


class _SocketOfTransport:
    """A transport's socket, as long as that isn't closed; what the loop gives is no socket."""

    def __init__(self, transport: asyncio.WriteTransport, sock: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._socket = sock

    def fileno(self) -> int:
        return -1 if self._socket is None else int(self._socket.fileno())

    def close(self) -> None:
        """Of a relay that closes: from one of its threads."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._transport.close)

    def __repr__(self) -> str:
        return _name(self._transport)


class _Inside(Protocol):
    """What a StreamReader has no public names for."""

    _buffer: bytearray
    _eof: bool

    async def _wait_for_data(self, func_name: str) -> None: ...

    def _maybe_resume_transport(self) -> None: ...


def _inside(reader: asyncio.StreamReader) -> _Inside:
    return cast(_Inside, reader)


def hangs_up(sock: Any) -> bool:
    """Whether a connection is over in both directions.

    POLLERR alone doesn't say so: a socket's error queue may have notices of other things.
    """
    return bool(_polled(sock, 0) & (_POLLHUP | _POLLNVAL))


def _is_writable(sock: Any) -> bool:
    return _polled(sock, _POLLOUT) == _POLLOUT


def _polled(sock: Any, events: int) -> int:
    if sys.platform == "win32":  # which can't be asked
        return events
    descriptor = sock.fileno()
    if descriptor < 0:
        return _POLLNVAL
    poll = select.poll()
    poll.register(descriptor, events)
    return sum(shown for _, shown in poll.poll(0))


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
    _inside(reader)._buffer[:0] = data


def _belongs_to_transport(given: object) -> bool:
    return isinstance(given, TransportSocket) or type(given).__module__.startswith("uvloop")


def _name(transport: asyncio.BaseTransport) -> str:
    return f"the stream of {transport!r}"
