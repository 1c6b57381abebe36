"""SO_LINGER: a close that sends a reset, so that the peer learns of the loss, or one that waits."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, Protocol

#: struct linger: l_onoff, and l_linger in seconds.
_LINGER = "hh" if sys.platform == "win32" else "ii"


class _Options(Protocol):
    def setsockopt(self, level: int, option: int, value: bytes, /) -> Any: ...


def reset_on_close(sock: _Options) -> None:
    """Make the last close of this connection send a reset in place of a FIN.

    Raises:
        OSError: on some systems, if the connection is gone.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))


def no_linger(sock: _Options) -> None:
    """Let a close return at once, and deliver what was sent behind it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 0, 0))


def last_close_waits(sock: socket.socket) -> bool:
    """Return whether the last close of this connection may block until all bytes have arrived."""
    try:
        size = struct.calcsize(_LINGER)
        answer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, size)
    except OSError:  # the connection is gone
        return False
    is_on, seconds = struct.unpack(_LINGER, answer)
    return bool(is_on and seconds)
