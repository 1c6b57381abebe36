"""Listening sockets that are passed on by the program that started this one: sd_listen_fds(3)."""

from __future__ import annotations

import errno
import os
import socket

from ..proxies._connecting import set_buffers
from ..proxies._unix_sockets import AF_UNIX

#: The first descriptor that is passed on.
_FIRST = 3


def inherited_listeners(buffers: int | None) -> list[list[socket.socket]]:
    """Return the sockets of LISTEN_FDS, as one set for all workers.

    The list is empty where none are passed on to this process.

    Args:
        buffers: the size, in bytes, that both buffers of accepted sockets begin with.

    Raises:
        OSError: one of the descriptors is not a listening TCP or Unix socket for streams.
    """
    # Removed from the environment: programs that this one starts must not take them.
    meant_for = os.environ.pop("LISTEN_PID", "")
    number = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()) or not number.isdecimal() or not int(number):
        return []
    made = [
        listener_of(descriptor, f"descriptor {descriptor} of LISTEN_FDS")
        for descriptor in range(_FIRST, _FIRST + int(number))
    ]
    for listener in made:
        set_buffers(listener, buffers)
    return [made]


def listener_of(descriptor: int, which: str) -> socket.socket:
    """Return the listening socket that another process has made.

    Args:
        descriptor: the descriptor, which belongs to the socket from now on.
        which: what the error's text calls it.

    Raises:
        OSError: it is not a listening TCP or Unix socket for streams.
    """
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        # For all processes that have it. An object that did not know would make it blocking again
        # with each duplicate (``socket.dup``), and an accept would hang.
        listener.setblocking(False)
    except OSError as error:
        raise OSError(error.errno, f"{which}: {error.strerror}") from error
    if listener.family not in (socket.AF_INET, socket.AF_INET6, AF_UNIX):
        listener.close()
        raise OSError(errno.EAFNOSUPPORT, f"{which} is neither a TCP nor a Unix socket")
    # Unix sockets for sequences of packets listen too.
    is_stream = listener.type == socket.SOCK_STREAM
    if not is_stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.close()
        raise OSError(errno.EINVAL, f"{which} does not listen")
    return listener
