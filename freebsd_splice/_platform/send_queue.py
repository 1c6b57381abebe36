"""How much a socket has sent that its peer has not acknowledged: each system has its own question.

Only this tells whether what was handed to a socket has arrived. A reset throws it away, and so can
a close with bytes unread.
"""

from __future__ import annotations

import array
import importlib
import os
import select
import socket
import sys
from typing import Any

_select: Any = select  # each system's has other names, and a type checker knows that
_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
_termios: Any = importlib.import_module("termios") if os.name == "posix" else None

#: Linux's numbers (include/net/tcp_states.h) of FIN_WAIT1, LAST_ACK and CLOSING.
_FIN_ON_ITS_WAY = (4, 9, 11)
#: sys/filio.h on FreeBSD: bytes in the send buffer.
_FIONWRITE = 0x40046677
#: sys/socket.h on macOS: the same, as an option.
_SO_NWRITE = 0x1024


def unacknowledged(sock: socket.socket) -> int | None:
    """Bytes that the peer has not acknowledged.

    Of a dead connection Linux says what it had left, the others 0. 0 for Unix sockets: their bytes
    lie at the peer from the start. None where it can't be told: on Windows, on a system that isn't
    known here, of a closed socket.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0
    try:
        return _ask(sock)
    except (OSError, ValueError):  # ValueError: it was closed meanwhile, and its number is -1
        return None
    except NotImplementedError:  # what uvloop gives in place of a socket takes no options
        return None


def _ask(sock: socket.socket) -> int | None:
    if sys.platform == "linux":
        return _without_fin(sock, _ioctl(sock, _termios.TIOCOUTQ))  # that is SIOCOUTQ: tcp(7)
    if sys.platform.startswith("freebsd"):
        return _ioctl(sock, _FIONWRITE)
    if sys.platform == "darwin":
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    if sys.platform.startswith("openbsd"):
        return size_without_room(sock, _select)
    return None


def _without_fin(sock: socket.socket, count: int) -> int:
    """Linux counts a FIN as one byte until it is acknowledged, which the state tells (TCP_INFO)."""
    if not count or sys.platform != "linux":
        return count
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return count - (state in _FIN_ON_ITS_WAY)


def size_without_room(sock: socket.socket, kqueue_module: Any) -> int:
    """OpenBSD tells the room in the send buffer, as the data of EVFILT_WRITE (kqueue(2)).

    Its TCP_INFO has the count as well, but for root alone. A buffer too full to be reported at all
    counts as full.
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
