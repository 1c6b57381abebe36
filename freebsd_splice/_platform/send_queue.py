"""The bytes that a socket has sent and its peer has not acknowledged, which each system reports
by a call of its own.

Nothing else shows whether bytes handed to a socket have arrived. A reset throws them away, and so
can a close of a socket with unread bytes.
"""

from __future__ import annotations

import array
import importlib
import os
import select
import socket
import sys
from typing import Any

_select: Any = select  # its names differ between systems, and a type checker knows that
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
_termios: Any = importlib.import_module("termios") if os.name == "posix" else None

#: FIN_WAIT1, LAST_ACK and CLOSING on Linux (include/net/tcp_states.h).
_FIN_ON_ITS_WAY = (4, 9, 11)
#: The bytes in the send buffer, on FreeBSD (sys/filio.h).
_FIONWRITE = 0x40046677
#: The same as a socket option, on macOS (sys/socket.h).
_SO_NWRITE = 0x1024


def unacknowledged(sock: socket.socket) -> int | None:
    """Return how many sent bytes the peer has not acknowledged; None if that is unknown.

    It is unknown on Windows, on systems that this module doesn't know, and for a closed socket. It
    is 0 for Unix sockets, whose bytes lie at the peer from the start. For a dead connection Linux
    reports the bytes that were left, the other systems 0.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    try:
        return _ask(sock)
    except (OSError, ValueError):  # ValueError: it was closed meanwhile, and its number is -1
        return None
    except NotImplementedError:  # uvloop's stand-in for a socket has no options
        return None


def _ask(sock: socket.socket) -> int | None:
    if sys.platform == "linux":
        return _without_fin(sock, _ioctl(sock, _termios.TIOCOUTQ))  # tcp(7) calls it SIOCOUTQ
    if sys.platform.startswith("freebsd"):
        return _ioctl(sock, _FIONWRITE)
    if sys.platform == "darwin":
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    if sys.platform.startswith("openbsd"):
        return size_without_room(sock, _select)
    return None


def _without_fin(sock: socket.socket, count: int) -> int:
    """Subtract Linux's one byte for a FIN that isn't acknowledged, as TCP_INFO's state shows."""
    if not count or sys.platform != "linux":
        return count
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return count - (state in _FIN_ON_ITS_WAY)


def size_without_room(sock: socket.socket, kqueue_module: Any) -> int:
    """Return the send buffer's size less its room, which OpenBSD reports by kqueue(2).

    The room is the data of EVFILT_WRITE. TCP_INFO has the count itself, but only for root. If the
    buffer is too full for an event, it counts as full.
    """
    kqueue = kqueue_module.kqueue()
    try:
        flags = kqueue_module.KQ_EV_ADD | kqueue_module.KQ_EV_ONESHOT
        change = kqueue_module.kevent(sock.fileno(), kqueue_module.KQ_FILTER_WRITE, flags)
        events = kqueue.control([change], 1, 0)
    finally:
        kqueue.close()
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    return max(0, size - int(events[0].data)) if events else size


def _ioctl(sock: socket.socket, request: int) -> int:
    answer = array.array("i", [0])
    _fcntl.ioctl(sock.fileno(), request, answer)
    return answer[0]
