"""Sides that can be spliced on a loop: a socket, or a stream pair whose socket is taken over."""

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

#: Stands for what a TLS transport that has dropped its connection would say.
_UNKNOWN: Any = object()

#: A non-blocking socket, or both halves of a stream.
Side = socket.socket | tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: Errors that end a connection in both directions.
_DEATHS = (
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH),
)

#: Windows has no poll(2).
_POLLOUT, _POLLHUP, _POLLNVAL = (
    getattr(select, name, 0) for name in ("POLLOUT", "POLLHUP", "POLLNVAL")
)

#: The most bytes that a reader is asked for at once.
_PIECE = 1 << 16


def side(given: Side) -> SocketSide | StreamSide:
    """Return the object that serves a ``Side``.

    Raise TypeError or ValueError, which say what to pass instead, if ``given`` is not a valid side.
    """
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
    """The caller's socket: nothing was taken from it, and nothing waits to be written to it."""

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
        """Close the socket so that its peer learns that something is missing."""
        with contextlib.suppress(OSError):  # it is closed already
            reset_on_close(self.socket)
        self.abandon()

    def abandon(self) -> None:
        """Close the socket, although other code may hold a duplicate."""
        self.socket.close()


class StreamSide:
    """A stream whose socket can be taken over and given back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.transport = cast(asyncio.Transport, writer.transport)
        # Asked once: it doesn't change, and a transport that has dropped its connection can't tell.
        tls = self._asked(lambda: self.transport.get_extra_info("ssl_object"), _UNKNOWN)
        self.is_tls = tls is not None
        self._peer_is_server = not getattr(tls, "server_side", True)
        if not self.is_tls:  # TLS closes at its peer's EOF, and holds all that came before
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
            # The loop's pending receive can't be cancelled there without losing bytes.
            return f"{_name(self.transport)} can't be taken over on Windows"
        return None

    @property
    def pending(self) -> int:
        """Bytes that wait to be written to the socket; with TLS, approximately."""
        held = self._asked(self.transport.get_write_buffer_size, 0)
        return held + self._pending_below() if self.is_tls else held

    @property
    def room(self) -> int:
        """Bytes that the writer takes before its ``drain`` waits."""
        limits = self._asked(self.transport.get_write_buffer_limits, (0, 0))
        return max(0, limits[1] - self.pending)

    def undelivered(self) -> int | None:
        """Return how many written bytes the peer has not acknowledged; None: unknown."""
        sock = self._socket()
        sent = unacknowledged(sock) if sock is not None else 0
        return None if sent is None else self.pending + sent

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be written any more. The error itself is left for the reader."""
        if self._is_closed():
            return True
        sock = self._socket()
        return sock is None or hangs_up(sock)

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more will arrive and the reader has not been told of that.

        A TLS transport that was closed gives its reader nothing more, and waits for its peer to
        close as well: up to 30 s, on Python 3.10 for ever. A direction whose reader has been told
        its EOF ends by itself, once the bytes that the reader gave are written.
        """
        reader = _inside(self.reader)
        return self.is_tls and self._is_closed() and not (reader._buffer or reader._eof)

    @property
    def was_closed(self) -> bool:
        """Whether the program has closed it. False for TLS, which also closes at its peer's EOF."""
        return not self.is_tls and self.transport.is_closing()

    def check_open(self) -> None:
        """Raise the error that ended the connection, or EBADF, if the stream is closed."""
        if self._is_closed():
            raise self.reader.exception() or OSError(
                errno.EBADF, f"{os.strerror(errno.EBADF)}: {_name(self.transport)} is closed"
            )

    def take_over(self, limit: int | None) -> bytes:
        """Take what the reader has buffered, up to ``limit``. If that is all, stop reading.

        Nothing is awaited in between: the loop would read what arrives meanwhile. Raise what the
        reader has to report.
        """
        taken = bytearray()
        try:
            while limit is None or len(taken) < limit:
                wanted = _PIECE if limit is None else min(_PIECE, limit - len(taken))
                data = read_now(self.reader, wanted)
                if data is None:
                    self._pause()
                    break
                if not data:  # EOF, which the socket keeps reporting
                    break
                taken += data
        except BaseException:  # other code waits for more, for instance
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
        """Report to the reader the error that the splice met; the system reports it only once.

        After that the transport sees an EOF, and a truncated answer would look complete.
        """
        # After other errors the stream can still be read: EBUSY, or EPIPE where the drain was shut
        # down for writing.
        if error.errno in _DEATHS and self.reader.exception() is None:
            self.reader.set_exception(error)

    async def receive(self, count: int) -> bytes:
        """Return some bytes, b"" at EOF. A cancelled call has taken none.

        The reader's own ``read`` is not used: it raises a failure before it returns the bytes that
        came before the failure, and loses bytes where the transport can't be resumed any more.
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
        """Return how many bytes were taken: the writer holds what the socket doesn't take yet."""
        # Checked before the transport meets the failure: it would stop reading, an answer unread.
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
        """Pass an EOF on. Return whether what the peer still sends is worth waiting for.

        TLS has no half-close. So a TLS server isn't told of the EOF before it has answered; a TLS
        client has its answer, and has to be told by a close.
        """
        if not self.is_tls:
            self.writer.write_eof()
        return self._peer_is_server or not self.is_tls

    def has_rest(self) -> bool:
        """Return whether bytes have arrived that nobody took, or would have but for a failure."""
        return bool(_inside(self.reader)._buffer) or self.reader.exception() is not None

    def close(self) -> None:
        # A TLS transport that is closed a second time drops its connection (see ``_asked``).
        if not self._asked(self.transport.is_closing, True):
            self.transport.close()

    def reset(self) -> None:
        """Close the stream so that its peer learns that something is missing."""
        if not self.is_tls:  # TLS has an end of its own, which is then missing
            sock = self._socket()
            if sock is not None:
                with contextlib.suppress(OSError):  # it is closed already
                    reset_on_close(sock)
        self.abandon()

    def abandon(self) -> None:
        """Close it and discard what the writer holds, although other code may hold a duplicate."""
        self._asked(self.transport.abort, None)

    def _is_closed(self) -> bool:
        """Return whether the stream is closed, as far as the loop has noticed."""
        if self.is_tls and _inside(self.reader)._eof:  # TLS closes both directions at once
            return True
        return self.reader.exception() is not None or self.transport.is_closing()

    def _raise_failure(self) -> None:
        """Raise the error that ended the connection as an OSError; asyncio has other types too."""
        error = self.reader.exception()
        if isinstance(error, OSError):
            raise error
        if error is not None:
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error

    def _socket(self) -> Any:
        """Return the socket; None where the transport has closed or dropped it."""
        sock = self._asked(lambda: self.transport.get_extra_info("socket"), None)
        return sock if sock is not None and sock.fileno() >= 0 else None

    def _pending_below(self) -> int:
        """Return how many bytes wait in the transport below TLS; TLS's own count omits them."""
        below = getattr(getattr(self.transport, "_ssl_protocol", None), "_transport", None)
        if below is not None:
            return int(below.get_write_buffer_size())
        sock = self._socket()
        # uvloop doesn't say; it writes what it holds as soon as the socket takes it.
        return 0 if sock is None or _is_writable(sock) else 1

    def _asked(self, ask: Callable[[], T], gone: T) -> T:
        """Return what the transport says; ``gone`` where it has dropped its connection.

        asyncio's TLS then raises AttributeError: after it was closed twice, the first time perhaps
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
    """A transport's socket while it is open. The object that the loop gives is not a socket."""

    def __init__(self, transport: asyncio.WriteTransport, sock: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._socket = sock

    def fileno(self) -> int:
        return -1 if self._socket is None else int(self._socket.fileno())

    def close(self) -> None:
        """Have the loop close the transport. A relay that closes calls this from its threads."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._transport.close)

    def __repr__(self) -> str:
        return _name(self._transport)


class _Inside(Protocol):
    """The parts of a StreamReader that have no public names."""

    _buffer: bytearray
    _eof: bool

    async def _wait_for_data(self, func_name: str) -> None: ...

    def _maybe_resume_transport(self) -> None: ...


def _inside(reader: asyncio.StreamReader) -> _Inside:
    return cast(_Inside, reader)


def hangs_up(sock: Any) -> bool:
    """Return whether a connection is over in both directions.

    POLLERR alone doesn't show that: a socket's error queue may hold messages about other things.
    """
    return bool(_polled(sock, 0) & (_POLLHUP | _POLLNVAL))


def _is_writable(sock: Any) -> bool:
    return _polled(sock, _POLLOUT) == _POLLOUT


def _polled(sock: Any, events: int) -> int:
    if sys.platform == "win32":  # has no poll(2)
        return events
    descriptor = sock.fileno()
    if descriptor < 0:
        return _POLLNVAL
    poll = select.poll()
    poll.register(descriptor, events)
    return sum(shown for _, shown in poll.poll(0))


def read_now(reader: asyncio.StreamReader, count: int) -> bytes | None:
    """Return ``reader.read(count)`` if that need not wait; None if it would wait.

    A reader doesn't say what it has buffered. So its own ``read`` is run for one step: before it
    waits, it returns what there is.
    """
    reading = reader.read(count)
    try:
        reading.send(None)
    except StopIteration as done:
        return bytes(done.value)
    reading.close()
    return None


def _unread(reader: asyncio.StreamReader, data: bytes | bytearray) -> None:
    """Put ``data`` before what the reader has buffered.

    ``feed_data`` would put it after that, and can't be called after EOF.
    """
    _inside(reader)._buffer[:0] = data


def _belongs_to_transport(given: object) -> bool:
    return isinstance(given, TransportSocket) or type(given).__module__.startswith("uvloop")


def _name(transport: asyncio.BaseTransport) -> str:
    return f"the stream of {transport!r}"
