"""The state of a TCP socket, TLS in the kernel, and a socket's identity, on each system.

All systems' numbers for these are here and nowhere else.
"""

from __future__ import annotations

import enum
import os
import socket
import sys
from collections.abc import Hashable

from .._errors import SHORTAGES
from .shortages import raise_if_short

__all__ = [
    "HAS_INODES",
    "KERNEL_TLS",
    "STATE_OPTION",
    "State",
    "bsd_state",
    "identity",
    "is_connected",
    "linux_state",
    "peer_of",
]

_LINUX = sys.platform.startswith("linux")

#: On Linux two sockets differ by inode. Elsewhere only a connection's two addresses differ.
HAS_INODES = _LINUX


class State(enum.Enum):
    """A connection's state, as far as splicing needs it."""

    #: Never connected, or broken, or finished in both directions.
    CLOSED = enum.auto()
    LISTENING = enum.auto()
    CONNECTING = enum.auto()
    OPEN = enum.auto()
    #: Shut down for writing at this end.
    SHUT_DOWN = enum.auto()


def linux_state(number: int) -> State:
    """Convert the first byte of TCP_INFO on Linux (include/net/tcp_states.h)."""
    return _LINUX_STATES.get(number, State.CLOSED)


def bsd_state(number: int) -> State:
    """Convert the first byte of TCP_INFO on the BSDs (netinet/tcp_fsm.h); 6 and up: shut down."""
    return _BSD_STATES.get(number, State.CLOSED if number < 6 else State.SHUT_DOWN)


#: The option, at level IPPROTO_TCP, whose first byte is the state: TCP_INFO, on macOS
#: TCP_CONNECTION_INFO. Windows and OpenBSD aren't asked.
STATE_OPTION: int | None = {"linux": 11, "freebsd": 32, "darwin": 0x106}.get(
    sys.platform.rstrip("0123456789")
)

#: Level and option that show TLS in the kernel, by system: for what is sent, and received.
KERNEL_TLS = {
    "linux": ((282, 1), (282, 2)),  # SOL_TLS; TLS_TX, TLS_RX
    # TCP_TXTLS_MODE, TCP_RXTLS_MODE (F22)
    "freebsd": ((socket.IPPROTO_TCP, 40), (socket.IPPROTO_TCP, 42)),
}

_LINUX_STATES = {
    **dict.fromkeys((1, 8), State.OPEN),  # ESTABLISHED, CLOSE_WAIT
    **dict.fromkeys((4, 5, 9, 11), State.SHUT_DOWN),
    **dict.fromkeys((2, 3, 12), State.CONNECTING),
    10: State.LISTENING,
}
_BSD_STATES = {
    **dict.fromkeys((4, 5), State.OPEN),  # ESTABLISHED, CLOSE_WAIT
    **dict.fromkeys((2, 3), State.CONNECTING),
    1: State.LISTENING,
}


def identity(asked: socket.socket) -> Hashable:
    """Return a value that is equal for two descriptors of one socket and differs between sockets.

    Without inodes it is the connection's two addresses; a broken connection has lost the second.
    """
    if HAS_INODES:
        status = os.fstat(asked.fileno())
        return status.st_dev, status.st_ino
    return asked.getsockname(), peer_of(asked)


def is_connected(asked: socket.socket) -> bool:
    """Return whether the socket is connected still.

    It takes no bytes, and no error that another call should report. A shortage says nothing about
    the connection, so the answer is then True.
    """
    try:
        asked.getpeername()
    except OSError as error:
        return error.errno in SHORTAGES
    return True


def peer_of(asked: socket.socket) -> object:
    """Return the peer's address; None if the socket isn't connected, or no longer.

    Raises:
        OSError: one of SHORTAGES.
    """
    try:
        return asked.getpeername()
    except OSError as error:
        raise_if_short(error)
        return None
