"""Socket calls on a descriptor that belongs to the caller, without changing anything about it.

``socket.socket(fileno=...)`` may make the caller's socket non-blocking (whenever
``socket.setdefaulttimeout`` was used), because that flag belongs to the open socket and not to
the descriptor. So a socket object of our own is made once and the caller's descriptor is
duplicated *onto its number*: no call that could change the socket is ever made on it, and
borrowing again and again needs no new descriptor.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

__all__ = ["Borrowed"]

if sys.platform != "win32":

    class Borrowed:
        """A socket object that stands for one of the caller's sockets, for a moment at a time."""

        def __init__(self) -> None:
            # The socket that the number stands for between two loans. Its family decides only
            # how long an address the object can read: those of AF_UNIX are the longest.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as blank:
                self._blank = os.dup(blank.fileno())
                self.socket = blank.dup()
            self.socket.settimeout(None)

        def take(self, descriptor: int) -> None:
            """Let ``socket`` stand for what the descriptor refers to now; OSError: nothing."""
            if descriptor < 0:  # of a closed socket object; dup2 raises whatever errno there was
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            os.dup2(descriptor, self.socket.fileno(), inheritable=False)

        def give_back(self) -> None:
            """Refer to the caller's socket no longer. A close of theirs in between counts now."""
            os.dup2(self._blank, self.socket.fileno(), inheritable=False)

        def close(self) -> None:
            """Close both descriptors."""
            self.socket.close()
            os.close(self._blank)

else:
    from _socket import dup as _duplicate  # WSADuplicateSocket

    class Borrowed:
        """Windows has no dup2 for sockets: each loan is a duplicate of its own.

        There a socket is made non-blocking by a loan if ``socket.setdefaulttimeout`` is in use.
        """

        def __init__(self) -> None:
            self.socket = socket.socket()

        def take(self, descriptor: int) -> None:
            """Let ``socket`` stand for what the descriptor refers to now; OSError: nothing."""
            self.socket.close()
            self.socket = socket.socket(fileno=_duplicate(descriptor))

        def give_back(self) -> None:
            """Refer to the caller's socket no longer. A close of theirs in between counts now."""
            self.socket.close()

        def close(self) -> None:
            """Close the descriptor."""
            self.socket.close()
