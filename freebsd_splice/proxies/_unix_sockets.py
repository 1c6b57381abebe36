"""Unix sockets: listening at a path, connecting to one, and who has connected."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

#: The family of Unix sockets; None where Python has none.
AF_UNIX: Any = getattr(socket, "AF_UNIX", None)

#: How often a path is connected to before nobody counts as listening there. On the BSDs a full
#: queue refuses a connection as a socket does that nobody has; Linux tells the two apart.
_PROBES = 1 if sys.platform == "linux" else 5
_BETWEEN_PROBES = 0.1

#: Seconds between two attempts to connect to a socket whose queue is full: no event says when there
#: is room.
_RETRY_AFTER = 0.02

#: struct ucred of Linux: the process, its user and its group.
_CREDENTIALS = struct.Struct("iII")


class UnixPeer(NamedTuple):
    """A client of a Unix socket. It has no address, and counts as the user that it runs as.

    ``str(peer)`` is ``unix:uid=1000``, or ``unix`` where the system doesn't know the user.

    Attributes:
        user (int | None): the effective user of the process when it connected.
    """

    user: int | None

    def __str__(self) -> str:
        return "unix" if self.user is None else f"unix:uid={self.user}"


def peer_user(sock: socket.socket) -> int | None:
    """Return the user of the process at the other end; None where the system doesn't tell.

    Linux has SO_PEERCRED (unix(7)), the BSDs and macOS getpeereid(3).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            answer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return int(_CREDENTIALS.unpack(answer)[1])
        return None
    return _asked_by_getpeereid(sock)


def _asked_by_getpeereid(sock: socket.socket) -> int | None:
    ask = load_getpeereid()
    if ask is None:
        return None
    import ctypes

    user, group = ctypes.c_uint32(), ctypes.c_uint32()
    failed = ask(sock.fileno(), ctypes.byref(user), ctypes.byref(group))
    return None if failed else user.value


@cache
def load_getpeereid() -> Callable[..., int] | None:
    """Return the C library's getpeereid(3); None: it has none, or Python has no ctypes."""
    try:
        import ctypes

        found: Callable[..., int] = ctypes.CDLL(None).getpeereid
    except (ImportError, OSError, TypeError, AttributeError):
        return None
    return found


# Listening


class _File(NamedTuple):
    """The file of a socket, and the process that removes it.

    Attributes:
        process: the process.
        device: where the file is.
        inode: which file it is.
        holders: the descriptors of the sockets that listen at it, which are duplicates of each
            other. The last one that is closed takes the file with it.
    """

    process: int
    device: int
    inode: int
    holders: set[int]


#: By the path: the files that this process removes once it listens there no more.
_files: dict[str, _File] = {}


def listen_at(
    path: str,
    *,
    backlog: int,
    mode: int,
    prepare: Callable[[socket.socket], object] = lambda sock: None,
) -> socket.socket:
    """Return a socket that listens at a path.

    A file that is left from a process that has died is replaced: a socket that nobody listens on.

    Args:
        path: where to make the file.
        backlog: how many clients may wait to be accepted.
        mode: the permissions of the file. Who may write to it may connect.
        prepare: is given the socket before it is bound.

    Raises:
        OSError: EADDRINUSE: something else is there, or somebody listens.
    """
    if AF_UNIX is None:
        raise OSError(errno.EAFNOSUPPORT, "Python has no Unix sockets on this system")
    listener = socket.socket(AF_UNIX, socket.SOCK_STREAM)
    try:
        prepare(listener)
        listener.setblocking(False)
        _bind(listener, path)
        adopt_file(listener)
        os.chmod(path, mode)
        listener.listen(backlog)
    except BaseException:
        remove_file(listener)
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: str) -> None:
    # Nobody else may connect before the permissions are those that were asked for.
    before = os.umask(0o177)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_over(path):
                raise
            os.unlink(path)
            listener.bind(path)
    finally:
        os.umask(before)


def _is_left_over(path: str) -> bool:
    """Return whether the file is a socket that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    for attempt in range(_PROBES):
        if attempt:
            # Nobody waits for it: the program is starting, or a thread of its own reloads.
            time.sleep(_BETWEEN_PROBES)
        with socket.socket(AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            number = probe.connect_ex(path)
        if number != errno.ECONNREFUSED:
            return False
    return True


def adopt_file(listener: socket.socket) -> None:
    """Remove the file of a listening Unix socket once this process closes the socket."""
    path = path_of(listener)
    if path is None:
        return
    found = os.lstat(path)
    made = _File(os.getpid(), found.st_dev, found.st_ino, {listener.fileno()})
    known = _files.get(path)
    if known is not None and known[:3] == made[:3]:
        known.holders.add(listener.fileno())
    else:
        _files[path] = made


def duplicate(listener: socket.socket) -> socket.socket:
    """Return a duplicate of a listening socket that keeps the file of a Unix socket as well."""
    made = listener.dup()
    path = path_of(listener) if _files else None
    if path is not None and path in _files and listener.fileno() in _files[path].holders:
        _files[path].holders.add(made.fileno())
    return made


def has_file(listener: socket.socket) -> bool:
    """Return whether this process removes the file of the listening socket."""
    return path_of(listener) in _files


def keep_files() -> None:
    """Remove no file any more: another process listens on the sockets."""
    _files.clear()


def remove_file(listener: socket.socket) -> None:
    """Remove the file of a listening Unix socket, if this process is the one to do so.

    While a duplicate of the socket listens nothing is removed. Another process can have put a
    socket of its own there; its file is left alone.
    """
    path = path_of(listener) if _files else None
    if path is None or path not in _files or _files[path].process != os.getpid():
        return
    made = _files[path]
    made.holders.discard(listener.fileno())
    if made.holders:
        return
    del _files[path]
    # A process that has given up root's privileges may not be allowed to: what is left is replaced
    # by the next one.
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (made.device, made.inode):
            os.unlink(path)


def path_of(listener: socket.socket) -> str | None:
    """Return where a Unix socket listens; None for other sockets and for closed ones."""
    try:
        name = listener.getsockname()
    except OSError:
        return None
    return name if isinstance(name, str) and name else None


# Connecting


async def connect_at(sock: socket.socket, path: str, seconds: float) -> None:
    """Connect a non-blocking socket.

    Raises:
        asyncio.TimeoutError: the queue of the listening socket was full all the time.
        OSError: ENOENT: nothing is there; ECONNREFUSED: nobody listens; EACCES: forbidden.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while number := sock.connect_ex(path):
        # Linux says so of a full queue; there is no connection under way then. The BSDs refuse.
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))
        if loop.time() >= deadline:
            raise asyncio.TimeoutError
        await asyncio.sleep(_RETRY_AFTER)
