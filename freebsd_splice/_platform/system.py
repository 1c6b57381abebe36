"""The platform of this machine."""

from __future__ import annotations

import errno
import logging
import os
import queue
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from .._errors import SHORTAGES, short_of
from .callers_options import is_survived, lower_read_mark, peek_offset, restore_read_mark, unread
from .interface import Endpoint, Event, Mailbox, Notice, Pipe, Poller, Runner, SocketLike
from .pollers import BasePoller, kinds, make_poller
from .reset import last_close_waits, reset_on_close
from .send_queue import unacknowledged
from .tcp import HAS_INODES, identity, is_connected, peer_of
from .threads import start as start_thread

logger = logging.getLogger("freebsd_splice")

#: Keeps a call from blocking, whatever the program has done to the socket's flags. The operators of
#: the socket module's flags are slow, so these are plain numbers.
_DONT_WAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
_PEEK = int(socket.MSG_PEEK) | _DONT_WAIT


class SystemPlatform:
    """The operating system's sockets, pipes, clock and threads.

    ``readiness`` forces a kind of poller ("epoll", "kqueue", "poll", "select"); None takes the
    best one that the system has.
    """

    def __init__(self, readiness: str | None = None) -> None:
        self._readiness = readiness
        # Everything that is open, so that a forked child can close its copies.
        self._opened: weakref.WeakSet[_Closable] = weakref.WeakSet()
        self._this_thread = threading.local()

    # Sockets

    def is_open(self, original: SocketLike) -> bool:
        try:
            return original.fileno() >= 0
        except Exception:  # each library chooses what its closed sockets raise
            return False

    def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
        if sys.platform == "win32":
            if not isinstance(original, socket.socket):
                raise TypeError("on Windows only socket.socket objects can be spliced")
            was_blocking = original.getblocking()
            duplicate = original.dup()
        else:
            try:
                was_blocking, duplicate = _duplicate_descriptor(original)
            except OSError as error:
                raise short_of(error, f"no duplicate of {original!r}") from None
        try:
            _check_stream(duplicate)
            duplicate.setblocking(False)
        except BaseException as error:
            duplicate.close()
            if isinstance(error, OSError):
                raise short_of(error, f"no duplicate of {original!r}") from None
            raise
        self._opened.add(cast(_Closable, duplicate))
        return duplicate, was_blocking

    def identity(self, endpoint: Endpoint) -> object:
        asked = _socket(endpoint)
        if HAS_INODES:
            return identity(asked)
        if asked.family not in (socket.AF_INET, socket.AF_INET6) or peer_of(asked) is None:
            return None
        return identity(asked)

    def close(self, endpoint: Endpoint) -> None:
        duplicate = _socket(endpoint)
        self._opened.discard(cast(_Closable, duplicate))
        # close(2) can report an error of the connection (ECONNRESET on FreeBSD). The descriptor is
        # gone all the same, and the flow has reported the error if it mattered.
        with suppress(OSError):
            duplicate.close()

    def last_close_waits(self, endpoint: Endpoint) -> bool:
        return last_close_waits(_socket(endpoint))

    def close_original(self, original: SocketLike) -> None:
        close = getattr(original, "close", None)
        if close is not None:
            try:
                close()
            except BaseException:  # the caller's object must not end one of the package's threads
                logger.exception("closing %r failed", original)

    def restore_blocking(self, original: SocketLike, endpoint: Endpoint) -> None:
        if not self.is_open(original):
            # Another holder of the connection has taken it over, perhaps for a splice of its own.
            return
        timeout = getattr(original, "gettimeout", None)
        if timeout is not None and timeout() is not None:
            return
        if sys.platform == "win32":
            _socket(endpoint).setblocking(True)
        else:
            os.set_blocking(endpoint.fileno(), True)

    def lower_read_mark(self, endpoint: Endpoint) -> int:
        return lower_read_mark(_socket(endpoint))

    def restore_read_mark(self, endpoint: Endpoint, mark: int) -> None:
        restore_read_mark(_socket(endpoint), mark)

    # Each piece that is moved costs these calls. Their arguments are Any rather than be cast, as a
    # cast is one call more.

    def receive_into(self, endpoint: Any, buffer: memoryview) -> int:
        source: socket.socket = endpoint
        return source.recv_into(buffer, 0, _DONT_WAIT)

    def peek(self, endpoint: Any, *, told: bool = True) -> int:
        asked: socket.socket = endpoint
        try:
            return len(asked.recv(1, _PEEK)) or _begins_before(asked)
        except BlockingIOError:
            if told and _begins_before(asked):
                return 1
            raise

    def is_connected(self, endpoint: Endpoint) -> bool:
        return is_connected(_socket(endpoint))

    def send(self, endpoint: Any, data: memoryview) -> int:
        drain: socket.socket = endpoint
        return drain.send(data, _DONT_WAIT)

    def write_through(self, original: SocketLike, data: bytes | bytearray) -> int:
        return os.write(original.fileno(), data)

    def shutdown_write(self, endpoint: Endpoint) -> None:
        _socket(endpoint).shutdown(socket.SHUT_WR)

    def reset_on_close(self, endpoint: Endpoint) -> None:
        reset_on_close(_socket(endpoint))

    def unacknowledged(self, endpoint: Endpoint) -> int | None:
        return unacknowledged(_socket(endpoint))

    def take_error(self, endpoint: Endpoint) -> OSError | None:
        try:
            number = _socket(endpoint).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:  # FreeBSD raises this for a connection that is gone (F21)
            return None if error.errno in SHORTAGES else error
        if not number or is_survived(_socket(endpoint), number):
            return None
        return OSError(number, os.strerror(number))

    # os.splice

    def can_splice(self) -> bool:
        return sys.platform == "linux" and hasattr(os, "splice")

    def open_pipe(self, size: int) -> Pipe:
        pipe = _SystemPipe(size)
        self._opened.add(pipe)
        return pipe

    def close_pipe(self, pipe: Pipe) -> None:
        opened = _pipe(pipe)
        self._opened.discard(opened)
        opened.close()

    def splice_in(self, source: Endpoint, pipe: Any, count: int) -> int:
        if sys.platform != "linux":
            raise NotImplementedError
        return os.splice(source.fileno(), pipe.entrance, count, flags=_SPLICE_FLAGS)

    def splice_out(self, pipe: Any, drain: Endpoint, count: int) -> int:
        if sys.platform != "linux":
            raise NotImplementedError
        # Anybody with a duplicate can have cleared O_NONBLOCK (socket.dup() does), and
        # SPLICE_F_NONBLOCK applies only to the pipe. A worker that blocks here holds up its flows.
        descriptor = drain.fileno()
        os.set_blocking(descriptor, False)
        return os.splice(pipe.exit, descriptor, count, flags=_SPLICE_FLAGS)

    def read_pipe(self, pipe: Pipe, count: int) -> bytes:
        return os.read(_pipe(pipe).exit, count)

    # Waiting, time and threads

    def poller(self, *, few: bool = False) -> Poller:
        # A kqueue is watched by poll(2) rather than by another kqueue, which is simpler.
        try:
            poller = make_poller("poll" if few and "poll" in kinds() else self._readiness)
        except OSError as error:
            raise short_of(error, "nothing to wait for sockets with") from None
        self._opened.add(cast(_Closable, poller))
        return poller

    def mailbox(self) -> Mailbox:
        return _SystemMailbox()

    def event(self) -> Event:
        return threading.Event()

    def notice(self) -> Notice:
        try:
            notice = _SystemNotice()
        except OSError as error:
            raise short_of(error, "nothing to report an end with") from None
        self._opened.add(notice)
        return notice

    def now(self) -> float:
        return time.monotonic()

    def cpus(self) -> int:
        if sys.platform == "linux":
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def run(self, step: Callable[[], bool], name: str) -> Runner:
        return _Thread(step, name, self._this_thread)

    def is_own_thread(self) -> bool:
        return getattr(self._this_thread, "is_own", False)

    def abandon(self) -> None:
        for opened in list(self._opened):
            with suppress(OSError):
                opened.abandon() if isinstance(opened, BasePoller) else opened.close()
        self._opened.clear()


#: Without SPLICE_F_NONBLOCK a full or empty pipe would block, whatever the socket's flags.
_SPLICE_FLAGS: int = getattr(os, "SPLICE_F_NONBLOCK", 0) | getattr(os, "SPLICE_F_MOVE", 0)


class _Closable:
    def close(self) -> None:
        raise NotImplementedError


class _SystemPipe(_Closable):
    def __init__(self, size: int) -> None:
        self.exit, self.entrance = os.pipe()
        self.size = 1 << 16
        try:
            self._make_ready(size)
        except BaseException:
            self.close()
            raise

    def _make_ready(self, size: int) -> None:
        if sys.platform != "linux":
            return
        import fcntl

        os.set_blocking(self.exit, False)
        os.set_blocking(self.entrance, False)
        # F31: past pipe-user-pages-soft, an unprivileged user's new pipes have two pages.
        set_size, get_size = (
            getattr(fcntl, "F_SETPIPE_SZ", 1031),
            getattr(fcntl, "F_GETPIPE_SZ", 1032),
        )
        self.size = fcntl.fcntl(self.entrance, get_size)
        if self.size < size:
            with suppress(OSError):
                self.size = fcntl.fcntl(self.entrance, set_size, size)

    def close(self) -> None:
        os.close(self.exit)
        os.close(self.entrance)


class _SystemNotice(_Closable):
    """A socket pair whose far end is closed to give the notice: every system can select on it."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        try:
            self._near.setblocking(False)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._near.fileno()

    def give(self) -> None:
        self._far.close()

    def close(self) -> None:
        self._far.close()
        self._near.close()


class _SystemMailbox:
    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def put(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def take(self, timeout: float) -> Callable[[], object] | None:
        try:
            # Python 3.10 waits for ever if the timeout is 0.
            return self._calls.get(timeout=timeout) if timeout else self._calls.get_nowait()
        except queue.Empty:
            return None


class _Thread:
    """A loop on a thread; the runtime ends it at exit."""

    def __init__(self, step: Callable[[], bool], name: str, this_thread: threading.local) -> None:
        self._step = step
        self._this_thread = this_thread
        self._thread = start_thread(self._run, name)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        self._this_thread.is_own = True
        while self._step():
            pass


def _duplicate_descriptor(original: SocketLike) -> tuple[bool, socket.socket]:
    if sys.platform == "win32":
        raise NotImplementedError
    descriptor = os.dup(original.fileno())
    try:
        # Read the flag before socket.socket() is made, which sets O_NONBLOCK if the program has set
        # a default timeout. socket.dup() can't be used: it can clear the flag for all duplicates.
        was_blocking = os.get_blocking(descriptor)
        # Prefer what the caller's object knows: the system may know nothing any more about a
        # connection that was reset.
        family, kind, proto = (getattr(original, name, -1) for name in ("family", "type", "proto"))
        return was_blocking, socket.socket(family, kind, proto, fileno=descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _check_stream(duplicate: socket.socket) -> None:
    """Refuse sockets whose splice would never end, or would end at an empty datagram."""
    if duplicate.type != socket.SOCK_STREAM:
        raise OSError(errno.EPROTONOSUPPORT, f"only stream sockets can be spliced, not {duplicate}")
    accepting = False
    with suppress(OSError):  # not every system has the option
        accepting = bool(duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if accepting:
        raise OSError(errno.EINVAL, f"a listening socket can't be spliced: {duplicate}")


def _begins_before(asked: socket.socket) -> bool:
    """Return whether bytes wait before the offset at which MSG_PEEK begins (SO_PEEK_OFF)."""
    return peek_offset(asked) >= 0 and unread(asked) > 0


def _socket(endpoint: Any) -> socket.socket:
    given: socket.socket = endpoint  # without a cast, which is a call: this is asked very often
    return given


def _pipe(pipe: Pipe) -> _SystemPipe:
    return cast(_SystemPipe, pipe)
