"""SO_LINGER: a close that tells the peer that something is missing, or one that waits."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, Protocol

#: struct linger: whether it is on, and the seconds.
_LINGER = "hh" if sys.platform == "win32" else "ii"


class _Options(Protocol):
    def setsockopt(self, level: int, option: int, value: bytes, /) -> Any: ...


def reset_on_close(sock: _Options) -> None:
    """Let the last close of this connection send a reset in place of a FIN.

    Raises OSError where it is gone already, on some systems.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))


def last_close_waits(sock: socket.socket) -> bool:
    """Whether the last close of this connection may sit there until all has arrived."""
    try:
        size = struct.calcsize(_LINGER)
        answer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, size)
    except OSError:  # it is gone
        return False
    is_on, seconds = struct.unpack(_LINGER, answer)
    return bool(is_on and seconds)
