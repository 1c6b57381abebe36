"""A close that tells the peer that something is missing."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, Protocol


class _Options(Protocol):
    def setsockopt(self, level: int, option: int, value: bytes, /) -> Any: ...


def reset_on_close(sock: _Options) -> None:
    """Let the last close of this connection send a reset in place of a FIN.

    Raises OSError where it is gone already, on some systems.
    """
    linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
