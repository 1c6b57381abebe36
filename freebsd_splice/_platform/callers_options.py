"""The caller's socket options that change what poll, MSG_PEEK and SO_ERROR report.

A splice must see the truth in spite of them (``docs/socket_options.md``).
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress
from functools import partial

from .shortages import in_spite_of_shortages, raise_if_short
from .tcp import State, linux_state

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = [
    "is_survived",
    "lower_read_mark",
    "peek_offset",
    "restore_read_mark",
    "set_peek_offset",
    "unread",
]

#: Linux's numbers, which the socket module lacks.
_SO_PEEK_OFF = 42
_IP_RECVERR, _IPV6_RECVERR = 11, 25

#: Errors by which a router, or a missing route, reports trouble with a connection.
_MESSAGES = {
    getattr(errno, name)
    for name in (
        "EACCES",
        "ECONNREFUSED",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPROTO",
    )
    if hasattr(errno, name)
}


def lower_read_mark(asked: socket.socket) -> int:
    """Let a single byte make the socket readable (SO_RCVLOWAT).

    Returns:
        The mark before, in bytes; 0 if it was not changed.

    Raises:
        OSError: one of SHORTAGES. Bytes fewer than the mark would be waited for in vain.
    """
    try:
        mark = asked.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        if mark > 1:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return mark
    except OSError as error:  # Windows has no mark; a connection that has ended may have none
        raise_if_short(error)
    return 0


def restore_read_mark(asked: socket.socket, mark: int) -> None:
    """Restore the caller's mark (bytes), unless the caller has set another one meanwhile."""
    option = (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
    with suppress(OSError):
        if in_spite_of_shortages(partial(asked.getsockopt, *option)) == 1:
            in_spite_of_shortages(partial(asked.setsockopt, *option, mark))


def unread(asked: socket.socket) -> int:
    """Return how many bytes could be read at once (FIONREAD), whatever MSG_PEEK says.

    0 if the system doesn't answer.
    """
    if sys.platform != "win32":
        with suppress(OSError):  # not every family of sockets supports it
            return int.from_bytes(fcntl.ioctl(asked, termios.FIONREAD, bytes(4)), sys.byteorder)
    return 0


def peek_offset(asked: socket.socket) -> int:
    """Return the offset, in bytes, at which MSG_PEEK begins (SO_PEEK_OFF).

    It is negative where MSG_PEEK begins at the first byte, as usual.

    Raises:
        OSError: one of SHORTAGES. Bytes would be peeked at that aren't the first ones.
    """
    if sys.platform == "linux":
        try:
            return asked.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
        except OSError as error:  # older kernels lack it for TCP
            raise_if_short(error)
    return -1


def set_peek_offset(asked: socket.socket, offset: int) -> None:
    """Let MSG_PEEK begin at that offset, in bytes (SO_PEEK_OFF)."""
    asked.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)


def is_survived(asked: socket.socket, error: int) -> bool:
    """Return whether the connection lives on after the error that SO_ERROR has reported.

    Linux also reports messages (ICMP) there that TCP ignores. A caller who has set IP_RECVERR has
    asked to be stopped by them.
    """
    if sys.platform != "linux" or error not in _MESSAGES:
        return False
    with suppress(OSError):
        state = linux_state(asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
        return state is not State.CLOSED and not _wants_messages(asked)
    return False


def _wants_messages(asked: socket.socket) -> bool:
    for level, option in (
        (socket.IPPROTO_IP, _IP_RECVERR),
        (socket.IPPROTO_IPV6, _IPV6_RECVERR),
    ):
        with suppress(OSError):  # an IPv4 socket has no IPv6 options
            if asked.getsockopt(level, option):
                return True
    return False
