"""Listening sockets that whoever started this program has made: sd_listen_fds(3)."""

from __future__ import annotations

import errno
import os
import socket

#: The first descriptor that is passed on.
_FIRST = 3


def inherited_listeners() -> list[list[socket.socket]]:
    """The sockets of LISTEN_FDS, as one set for all workers; [] where none are meant for us.

    Raises OSError where one is no listening socket.
    """
    # Of a program that passes its environment on to others, these are not for the others.
    meant_for = os.environ.pop("LISTEN_PID", "")
    number = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()) or not number.isdecimal() or not int(number):
        return []
    return [[_listener(descriptor) for descriptor in range(_FIRST, _FIRST + int(number))]]


def _listener(descriptor: int) -> socket.socket:
    os.set_inheritable(descriptor, False)
    listener = socket.socket(fileno=descriptor)
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, f"descriptor {descriptor} of LISTEN_FDS does not listen")
    return listener
