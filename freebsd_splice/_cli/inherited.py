"""Listening sockets that are passed on by the program that started this one: sd_listen_fds(3)."""

from __future__ import annotations

import errno
import os
import socket

from ..proxies._connecting import set_buffers

#: The first descriptor that is passed on.
_FIRST = 3


def inherited_listeners(buffers: int | None) -> list[list[socket.socket]]:
    """Return the sockets of LISTEN_FDS, as one set for all workers.

    The list is empty where none are passed on to this process.

    Args:
        buffers: the size, in bytes, that both buffers of accepted sockets begin with.

    Raises:
        OSError: one of the descriptors is not a listening TCP socket.
    """
    # Removed from the environment: programs that this one starts must not take them.
    meant_for = os.environ.pop("LISTEN_PID", "")
    number = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()) or not number.isdecimal() or not int(number):
        return []
    made = [_listener(descriptor) for descriptor in range(_FIRST, _FIRST + int(number))]
    for listener in made:
        set_buffers(listener, buffers)
    return [made]


def _listener(descriptor: int) -> socket.socket:
    which = f"descriptor {descriptor} of LISTEN_FDS"
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise OSError(error.errno, f"{which}: {error.strerror}") from error
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        raise OSError(errno.EAFNOSUPPORT, f"{which} is not a TCP socket")
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, f"{which} does not listen")
    return listener
