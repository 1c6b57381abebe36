"""Shortages of the system, injected where the package calls it: one call fails, once, and no other.

``Injection.play_each`` plays a scenario and notes every call of the package that could fail for
want of something; then it plays it again for each of them, which fails. A call is told by what is
called and by the lines of the package that lead to it: the duplicate of a source and that of a
drain are two.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import freebsd_splice

#: What asyncio itself doesn't survive, and doesn't tell: a transport that could not be resumed
#: reads nothing any more, and a loop whose wake-up was lost sleeps on.
_OF_ASYNCIO = ("resume_reading", "_write_to_self")

_PACKAGE = str(Path(freebsd_splice.__file__).parent) + os.sep
_TESTS = str(Path(__file__).parent.parent) + os.sep
_HERE = __file__


class Shortage(NamedTuple):
    """What is short, and how the calls of the system say it."""

    name: str
    make: Callable[[], BaseException]
    #: The names of those calls.
    calls: frozenset[str]
    #: A part of what the package advises.
    advice: str = ""


class Call(NamedTuple):
    """A call of the package's to the system."""

    name: str
    #: The lines of the package that lead to it, the innermost first.
    path: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} at {' < '.join(self.path)}"


def _error(number: int) -> Callable[[], BaseException]:
    return lambda: OSError(number, os.strerror(number))


#: By the manual pages: which calls say EMFILE or ENFILE, which need memory, which a buffer.
_MAKE_DESCRIPTORS = {
    *("socket.socket", "socket.accept", "socket.dup", "socket.socketpair"),
    *("os.dup", "os.pipe", "os.open", "os.listdir", "select.epoll", "select.kqueue"),
}
_NEED_BUFFERS = {
    *("socket.socket", "socket.accept", "socket.socketpair", "socket.connect", "socket.connect_ex"),
    *("socket.send", "socket.setsockopt", "socket.getpeername", "socket.getsockname"),
    *("os.write", "socket.bind"),
}
_NEED_MEMORY = {
    *("socket.socket", "socket.accept", "socket.socketpair", "socket.send", "socket.recv"),
    *("socket.recv_into", "socket.setsockopt", "socket.getsockopt", "socket.setblocking"),
    *("os.splice", "os.open", "os.pipe", "os.fstat", "os.read", "fcntl.fcntl"),
    *("select.epoll", "epoll.register", "epoll.modify", "poll.poll", "select.select"),
    *("selector.register", "fcntl.ioctl", "socket.getaddrinfo"),
}

NO_DESCRIPTOR = Shortage(
    "no descriptor",
    _error(errno.EMFILE),
    frozenset(_MAKE_DESCRIPTORS),
    "raise ulimit -n",
)
NO_FILE = Shortage(
    "no file", _error(errno.ENFILE), frozenset(_MAKE_DESCRIPTORS), "raise kern.maxfiles"
)
NO_BUFFER = Shortage("no buffer space", _error(errno.ENOBUFS), frozenset(_NEED_BUFFERS))
NO_MEMORY = Shortage("no memory", _error(errno.ENOMEM), frozenset(_NEED_MEMORY))
NO_THREAD = Shortage(
    "no thread",
    lambda: RuntimeError("can't start new thread"),
    frozenset({"Thread.start"}),
    "raise ulimit -u",
)


class Injection:
    """The calls of one scenario: records them, or has one of them fail."""

    def __init__(self, shortage: Shortage, *, depth: int | None = None) -> None:
        self.shortage = shortage
        self._depth = depth  # how many lines tell one call from another; None: all
        self._lock = threading.Lock()
        self._seen: dict[Call, None] = {}
        self._fails: Callable[[Call], bool] | None = None
        self._active = False
        #: A file of the package whose calls are left out, where another test plays them.
        self.left_out = " "
        #: How often a call has failed.
        self.failed = 0

    @contextmanager
    def recorded(self, calls: dict[Call, None]) -> Iterator[None]:
        """Note in ``calls`` what is called inside the block, in the order of its first time."""
        self._seen = calls
        with self._while_active():
            yield

    @contextmanager
    def failing(self, call: Call) -> Iterator[None]:
        """Have that call fail when it is made for the first time inside the block."""
        with self.failing_while(lambda made: made == call and not self.failed):
            yield

    @contextmanager
    def failing_while(self, fails: Callable[[Call], bool]) -> Iterator[None]:
        """Have all calls fail of which ``fails`` is true."""
        self._fails, self.failed = fails, 0
        try:
            with self._while_active():
                yield
        finally:
            self._fails = None

    @contextmanager
    def _while_active(self) -> Iterator[None]:
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def meet(self, name: str) -> None:
        """Note the call, or let it fail; called in its place, before it."""
        if not self._active or name not in self.shortage.calls:
            return
        path = _path(sys._getframe(2))
        if path is None or any(line.startswith(self.left_out) for line in path):
            return
        call = Call(name, path[: self._depth])
        with self._lock:
            if self._fails is None:
                self._seen.setdefault(call)
                return
            if not self._fails(call):
                return
            self.failed += 1
        if name == "socket.getaddrinfo":
            raise socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure")
        raise self.shortage.make()

    def check_text(self, error: BaseException, text: str) -> None:
        """Check that an exception comes of the shortage, and says ``text``."""
        assert self.failed, error
        assert text in str(error), error

    def check(self, error: BaseException, text: str = "") -> None:
        """Check that an exception is the shortage's, and says so, and ``text``."""
        self.check_text(error, text)
        expected = self.shortage.make()
        assert isinstance(error, type(expected)), error
        assert str(getattr(expected, "strerror", expected)) in str(error), error
        if isinstance(expected, OSError):
            assert isinstance(error, OSError)
            assert error.errno == expected.errno, error

    def play_each(self, once: Callable[[AbstractContextManager[object]], None]) -> list[Call]:
        """Play ``once``, and again for each call that was made, which fails then.

        Returns:
            The calls that have failed. A call that only a race leads to may not be made again.
        """
        calls: dict[Call, None] = {}
        once(self.recorded(calls))
        failed = []
        for call in calls:
            try:
                once(self.failing(call))
            except BaseException as error:
                raise AssertionError(f"{self.shortage.name}: {call}") from error
            if self.failed:
                failed.append(call)
        return failed

    def wrap(self, patch: pytest.MonkeyPatch, owner: Any, name: str, call: str) -> None:
        """Have that function or method stand for a call of the system."""
        patch.setattr(owner, name, _wrapped(self, call, getattr(owner, name)), raising=False)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand between the package and the system."""
        _install_sockets(self, patch)
        for module, names in _FUNCTIONS.items():
            for name in names:
                if hasattr(module, name):
                    call = f"{module.__name__}.{name}"
                    patch.setattr(module, name, _wrapped(self, call, getattr(module, name)))
        patch.setattr(
            threading.Thread, "start", _wrapped(self, "Thread.start", threading.Thread.start)
        )
        for kind in ("epoll", "kqueue", "poll"):
            if hasattr(select, kind):
                patch.setattr(select, kind, _wrapped_poller(self, kind, getattr(select, kind)))
        for of_loop in (selectors.DefaultSelector,):
            patch.setattr(
                of_loop, "register", _wrapped(self, "selector.register", of_loop.register)
            )


_FUNCTIONS: dict[Any, tuple[str, ...]] = {
    os: (*("dup", "pipe", "open", "splice", "write", "read", "fstat", "set_blocking", "listdir"),),
    socket: ("socketpair", "getaddrinfo"),
    select: ("select",),
}
if sys.platform != "win32":
    import fcntl

    _FUNCTIONS[fcntl] = ("fcntl", "ioctl")

_OF_SOCKETS = (
    *("accept", "dup", "connect", "send", "recv", "recv_into", "setsockopt", "getsockopt"),
    *("getpeername", "getsockname", "bind", "setblocking"),
)


def _install_sockets(injection: Injection, patch: pytest.MonkeyPatch) -> None:
    made = socket.socket.__init__

    def make(sock: socket.socket, *args: Any, **options: Any) -> None:
        if options.get("fileno") is None and len(args) < 4:
            injection.meet("socket.socket")
        made(sock, *args, **options)

    patch.setattr(socket.socket, "__init__", make)
    for name in _OF_SOCKETS:
        wrapped = _wrapped(injection, f"socket.{name}", getattr(socket.socket, name))
        patch.setattr(socket.socket, name, wrapped, raising=False)
    connect_ex = socket.socket.connect_ex

    def connect(sock: socket.socket, address: Any) -> int:
        try:
            injection.meet("socket.connect_ex")
        except OSError as error:
            return error.errno or 0
        return connect_ex(sock, address)

    patch.setattr(socket.socket, "connect_ex", connect, raising=False)


def _wrapped(injection: Injection, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        injection.meet(name)
        return original(*args, **options)

    return call


def _wrapped_poller(
    injection: Injection, kind: str, original: Callable[[], Any]
) -> Callable[[], Any]:
    class Wrapped:
        def __init__(self) -> None:
            self._made = original()

        def __getattr__(self, name: str) -> Any:
            if name in ("register", "modify", "poll"):
                return _wrapped(injection, f"{kind}.{name}", getattr(self._made, name))
            return getattr(self._made, name)

    def make() -> Wrapped:
        injection.meet(f"select.{kind}")
        return Wrapped()

    return make


def _path(frame: FrameType | None) -> tuple[str, ...] | None:
    """Return the lines of the package that lead here; None if it is a test that calls."""
    lines: list[str] = []
    while frame is not None:
        name = frame.f_code.co_filename
        if frame.f_code.co_name in _OF_ASYNCIO:
            return None
        if name.startswith(_PACKAGE):
            lines.append(f"{name[len(_PACKAGE) :]}:{frame.f_lineno} {frame.f_code.co_name}")
        elif not lines and name.startswith(_TESTS) and name != _HERE:
            return None
        frame = frame.f_back
    return tuple(lines) or None
