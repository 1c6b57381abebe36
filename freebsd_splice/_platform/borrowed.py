"""Socket calls on a descriptor that belongs to the caller, without changing anything about it.

``socket.socket(fileno=...)`` may make the caller's socket non-blocking (whenever
``socket.setdefaulttimeout`` was used), because that flag belongs to the open socket and not to
the descriptor. So one socket object is made beforehand, and the caller's descriptor is duplicated
*onto its number*: no call that could change the socket is ever made on it, and borrowing again and
again needs no new descriptor.
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
            # The socket that the number refers to between two loans. Its family only limits how
            # long an address the object can read: AF_UNIX has the longest ones.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as blank:
                self._blank = os.dup(blank.fileno())
                try:
                    self.socket = blank.dup()
                except BaseException:
                    os.close(self._blank)
                    raise
            self.socket.settimeout(None)

        def take(self, descriptor: int) -> None:
            """Let ``socket`` stand for the descriptor's socket; raise OSError if it is closed."""
            if descriptor < 0:  # a closed socket object's; dup2 would raise an old errno
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            os.dup2(descriptor, self.socket.fileno(), inheritable=False)

        def give_back(self) -> None:
            """Let go of the caller's socket. If they closed it meanwhile, it closes now."""
            os.dup2(self._blank, self.socket.fileno(), inheritable=False)

        def close(self) -> None:
            """Close both descriptors."""
            self.socket.close()
            os.close(self._blank)

else:
    from _socket import dup as _duplicate  # WSADuplicateSocket

    class Borrowed:
        """A socket object that stands for one of the caller's sockets, for a moment at a time.

        Windows has no dup2 for sockets, so each loan makes a new duplicate, and makes the socket
        non-blocking if ``socket.setdefaulttimeout`` is in use.
        """

        def __init__(self) -> None:
            self.socket = socket.socket()

        def take(self, descriptor: int) -> None:
            """Let ``socket`` stand for the descriptor's socket; raise OSError if it is closed."""
            self.socket.close()
            self.socket = socket.socket(fileno=_duplicate(descriptor))

        def give_back(self) -> None:
            """Let go of the caller's socket. If they closed it meanwhile, it closes now."""
            self.socket.close()

        def close(self) -> None:
            """Close the descriptor."""
            self.socket.close()
