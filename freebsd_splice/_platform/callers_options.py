"""Socket options of the caller's that change what poll, MSG_PEEK and SO_ERROR say.

A splice has to know better than they do (``docs/socket_options.md``).
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress

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

#: Linux's numbers, which the socket module doesn't have.
_SO_PEEK_OFF = 42
_IP_RECVERR, _IPV6_RECVERR = 11, 25

#: What a router, or a missing route, says of a connection.
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
    """Have a single byte make it readable; what the mark was, or 0 where it was that already."""
    try:
        mark = asked.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        if mark > 1:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return mark
    except OSError:  # Windows has none, a connection that is over may have none
        pass
    return 0


def restore_read_mark(asked: socket.socket, mark: int) -> None:
    """Give the caller's mark back, unless there is another one by now."""
    with suppress(OSError):
        if asked.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)


def unread(asked: socket.socket) -> int:
    """How many bytes could be read at once (FIONREAD), whatever MSG_PEEK says; 0 if unknown."""
    if sys.platform != "win32":
        with suppress(OSError):  # not every family of sockets can tell
            return int.from_bytes(fcntl.ioctl(asked, termios.FIONREAD, bytes(4)), sys.byteorder)
    return 0


def peek_offset(asked: socket.socket) -> int:
    """Where MSG_PEEK begins; negative: at the first byte, as usual."""
    if sys.platform == "linux":
        with suppress(OSError):  # of older kernels', for TCP
            return asked.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    return -1


def set_peek_offset(asked: socket.socket, offset: int) -> None:
    """Have MSG_PEEK begin there."""
    asked.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)


def is_survived(asked: socket.socket, error: int) -> bool:
    """Whether SO_ERROR has told of something that the connection has not died of.

    On Linux it tells of messages (ICMP) too that TCP takes no notice of. With IP_RECVERR the caller
    has asked to be stopped by them.
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
        with suppress(OSError):  # IPv4 has no options of IPv6
            if asked.getsockopt(level, option):
                return True
    return False
