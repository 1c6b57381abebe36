"""How listening sockets go from one process to another: what is sent over a Unix socket.

The process that gives sends the length of a JSON object (4 bytes, the first is the highest), the
object, and a byte for each socket, which carries its descriptor (SCM_RIGHTS, unix(4)). The first
socket is the one at which the next process will ask; the others are the listeners, set by set. The
process that takes sends one byte once it serves: from then on the sockets are its own.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from .inherited import listener_of

_VERSION = 1
_LENGTH = struct.Struct("!I")
_LONGEST = 1 << 16
_SOCKET = b"s"

#: What the process that takes over says once it serves.
SERVING = b"!"


class Passed(NamedTuple):
    """What a process has been given.

    Attributes:
        process: the number of the process that gives.
        control: the listening socket at which the next process will ask.
        sets: the listening sockets of each worker, or one set for all of them.
    """

    process: int
    control: socket.socket
    sets: list[list[socket.socket]]


def give(
    connection: socket.socket, control: socket.socket, sets: Sequence[Sequence[socket.socket]]
) -> None:
    """Send the sockets.

    Raises:
        OSError: the other process is gone, or takes nothing.
    """
    said = {"version": _VERSION, "process": os.getpid(), "sets": [len(each) for each in sets]}
    text = json.dumps(said).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)
    for listener in [control, *(listener for each in sets for listener in each)]:
        if sys.platform != "win32":  # which passes no descriptors
            socket.send_fds(connection, [_SOCKET], [listener.fileno()])


def take(connection: socket.socket) -> Passed:
    """Receive the sockets.

    Raises:
        OSError: the other process ends, is silent for too long, or says something else.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    if length > _LONGEST:
        raise _not_understood("too long")
    said = _parse(_receive(connection, length))
    held: list[socket.socket] = []
    try:
        control = _take_one(connection, held, "the control socket")
        sets = [
            [_take_one(connection, held, f"listener {len(held)}") for _ in range(count)]
            for count in said["sets"]
        ]
    except BaseException:
        for listener in held:
            listener.close()
        raise
    return Passed(said["process"], control, sets)


def _take_one(connection: socket.socket, held: list[socket.socket], which: str) -> socket.socket:
    if sys.platform == "win32":
        raise OSError(errno.EOPNOTSUPP, "no descriptors can be passed on Windows")
    data, descriptors, _, _ = socket.recv_fds(connection, len(_SOCKET), 1)
    if data != _SOCKET:
        raise _not_understood("no socket") if data else _ended()
    if not descriptors:  # the kernel drops those that there is no room for
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    held.append(listener_of(descriptors[0], which))
    return held[-1]


def _parse(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
        if said["version"] != _VERSION:
            raise _not_understood(f"version {said['version']}")
        sound = isinstance(said["process"], int) and all(
            isinstance(count, int) and count >= 0 for count in said["sets"]
        )
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise _not_understood("no description")
    return dict(said)


def _receive(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        data = connection.recv(count - len(parts))
        if not data:
            raise _ended()
        parts += data
    return bytes(parts)


def _ended() -> OSError:
    return OSError(errno.ECONNABORTED, "the running process hands nothing over, see its log")


def _not_understood(what: str) -> OSError:
    return OSError(errno.EPROTO, f"the running process speaks another protocol ({what})")
