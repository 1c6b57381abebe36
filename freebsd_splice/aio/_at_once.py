"""Write bytes that the program already has in memory, immediately and with one call.

Splicing those bytes would mean handing them to a thread, or having a thread send them before the
kernel is asked for a splice, and waiting for the answer. That costs many times as much as writing
them. So only the remainder is spliced: bytes that the socket has no room for, or that the reader
doesn't have yet.
"""

from __future__ import annotations

import errno
import socket
import sys
from asyncio import CancelledError, StreamReader, StreamWriter, selector_events
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any

from .._core.flow import Reason
from .._platform.interface import SocketLike
from .._runtime import current
from .._splice import Outcome
from ._copying import STREAMS
from ._ending import attach, outcome_of
from ._sides import Side, StreamSide

_LIMIT = Reason.LIMIT  # an enum's members cost a call each, on some versions

#: Errors that the system reports again at each call. A splice finds out what to report about such a
#: drain: possibly that it is not a valid drain (closed, or listening) and nothing has been taken.
_LEFT_TO_THE_SPLICE = frozenset({errno.EBADF, errno.EPIPE, errno.ENOTCONN})

#: asyncio's transport of a socket, below any TLS. Its attributes are read as they are: asked by its
#: methods, a pair would cost nine calls, which take half as long as the write.
_SOCKET_TRANSPORT: Any = getattr(selector_events, "_SelectorSocketTransport", None)

#: On other systems a socket's descriptor can be written to.
_IS_WINDOWS = sys.platform == "win32"


def write_buffered(source: Any, drain: Any, count: Any, initial: bytes) -> int | Outcome:
    """Write ``initial`` and what the reader of ``source`` has buffered: ``count`` bytes in all.

    Return the outcome; or the number of bytes that were written, and taken, before the socket was
    full. 0 means that nothing was touched and nothing was raised, because the reader has too few
    bytes or the pair is not a simple case. The code that serves the pair next reports any error,
    one of ``count`` included: nobody has checked it yet.
    """
    # The code is flat and makes no object for each side: the whole call has to cost about as much
    # as the program's own ``readexactly`` and ``write``, which is little more than the system call.
    started = monotonic()
    if type(source) is not tuple or type(count) is not int or not count:
        return 0
    from_socket, to_socket = _socket_of(source, False), _socket_of(drain, True)
    if from_socket is None or to_socket is None:
        return 0
    reader, wanted = source[0], count - len(initial)
    buffer = reader._buffer
    if not 0 <= wanted <= len(buffer):
        return 0
    runtime = current()
    platform, sockets = runtime.platform, runtime.sockets
    if runtime.is_kernel_demanded() or (
        sockets.in_use and not sockets.are_free(from_socket, to_socket)
    ):
        return 0
    data = buffer if wanted == count == len(buffer) else initial + buffer[:wanted]
    try:
        sent = platform.write_through(to_socket, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno in _LEFT_TO_THE_SPLICE:
            return 0
        taken = bytes(data)
        del buffer[:wanted]
        return _failed(drain, error, taken, started)
    if sent > len(initial):
        del buffer[: sent - len(initial)]
        if reader._paused:
            reader._maybe_resume_transport()
    if sent < count:
        return sent
    return Outcome(sent, b"", _LIMIT, None, "userspace", STREAMS, monotonic() - started)


async def continue_after(sent: int, unsent: bytes, splicing: Awaitable[Outcome]) -> Outcome:
    """Wait for ``splicing`` and return the outcome of the whole, with the ``sent`` bytes included.

    ``sent`` bytes were written before the splice. ``unsent`` holds those bytes of the remainder
    that were never in the reader.
    """
    started = monotonic()
    try:
        outcome = await splicing
    except CancelledError as error:
        so_far = outcome_of(error)
        if isinstance(so_far, Outcome):  # always, unless other code raised it
            attach(error, replace(so_far, bytes=sent + so_far.bytes))
        raise
    except (OSError, RuntimeError) as error:
        # No descriptor, or no thread. Raising the error would say that nothing has been taken.
        failure = error if isinstance(error, OSError) else OSError(errno.EAGAIN, str(error))
        seconds = monotonic() - started
        return Outcome(sent, unsent, Reason.SOURCE_ERROR, failure, "userspace", STREAMS, seconds)
    return replace(outcome, bytes=sent + outcome.bytes)


def _socket_of(side: Any, is_drain: bool) -> SocketLike | None:
    """Return the socket of a side.

    None: the side is not valid, speaks TLS, has an end that must be reported first, or is a drain
    whose writer holds bytes that must be sent first.
    """
    if type(side) is not tuple:
        # A datagram socket would take all the bytes, as one datagram.
        is_usual = type(side) is socket.socket and side.type is socket.SOCK_STREAM
        return side if is_usual and side.gettimeout() == 0 else None
    if len(side) != 2 or _IS_WINDOWS:
        return None
    reader, writer = side
    if type(reader) is not StreamReader or type(writer) is not StreamWriter:
        return None
    if reader._exception is not None:  # type: ignore[attr-defined]
        return None
    transport: Any = writer._transport  # type: ignore[attr-defined]
    try:
        if type(transport) is _SOCKET_TRANSPORT:
            must_wait = transport._closing or (is_drain and transport._buffer)
            return None if must_wait else transport._sock
        if transport.get_extra_info("ssl_object") is not None or transport.is_closing():
            return None
        if is_drain and transport.get_write_buffer_size():
            return None
    except AttributeError:  # a TLS transport that has dropped its connection
        return None
    return transport.get_extra_info("socket")  # type: ignore[no-any-return]


def _failed(drain: Side, error: OSError, data: bytes, started: float) -> Outcome:
    if isinstance(drain, tuple):
        with suppress(OSError, TypeError):  # the program closes the stream: no reader to notify
            StreamSide(*drain).failed(error)
    reason, seconds = Reason.DRAIN_ERROR, monotonic() - started
    return Outcome(0, data, reason, error, "userspace", STREAMS, seconds)
