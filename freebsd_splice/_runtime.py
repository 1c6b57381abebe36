"""What a process has once: its engine, its watcher, and the sockets in use."""

from __future__ import annotations

import atexit
import errno
import os
import threading
from typing import Protocol

from ._backend import VARIABLE, backend
from ._engine import Engine
from ._errors import BackendUnavailable
from ._flow import Flow
from ._movers import COPY, OS_SPLICE
from ._port import Port
from ._sockets import Sockets
from ._system import SystemPort
from ._watcher import Watcher


class _Endable(Protocol):
    def end_for_shutdown(self) -> None: ...


class Runtime:
    """All that flows, splices and relays share, over one port."""

    def __init__(self, port: Port, mover: str | None = None) -> None:
        self.port = port
        self.watcher = Watcher(port)
        self.sockets = Sockets(port, self.watcher)
        #: In a forked child: this is the parent's, and nothing in it may be touched.
        self.inherited = False
        self._engine = Engine(port, mover)
        self._lock = threading.Lock()
        self._live: set[_Endable] = set()
        self._closing = False

    def flows(self, count: int) -> list[Flow]:
        """New flows: one, or the two of a pair."""
        return list(self._engine.flows(count))

    def add(self, splice: _Endable) -> None:
        """``splice`` is being made; it will ``discard`` itself.  Before it touches anything."""
        with self._lock:
            if self._closing:
                raise RuntimeError("freebsd_splice was shut down while a splice was being made")
            self._live.add(splice)

    def discard(self, splice: _Endable) -> None:
        with self._lock:
            self._live.discard(splice)

    def close(self) -> None:
        """Cancel what is live, then end the threads and close all that they had open."""
        with self._lock:
            self._closing = True
            live = list(self._live)
        for splice in live:
            splice.end_for_shutdown()
        self._engine.close()
        self.watcher.close()


def current() -> Runtime:
    """This process's runtime, made when it is first needed."""
    global _current
    with _lock:
        if _current is None:
            _current = Runtime(SystemPort(), _mover_from_environment())
        return _current


def check_backend(what: str) -> None:
    """Refuse to serve in userspace where FREEBSD_SPLICE_BACKEND demands the kernel."""
    if VARIABLE in os.environ and backend().name == "kernel" and os.environ[VARIABLE] == "kernel":
        raise BackendUnavailable(
            errno.ENOPROTOOPT,
            f"{VARIABLE}=kernel: the functions of the thin layer use SO_SPLICE here, but {what} "
            "moves bytes in userspace only in this version",
        )


def install(runtime: Runtime | None) -> Runtime | None:
    """Use ``runtime`` from now on; the one before it is returned, not closed."""
    global _current
    with _lock:
        before, _current = _current, runtime
        return before


def shutdown() -> None:
    """Cancel every ``Splice`` and ``Relay``, and end the package's threads.

    What is made afterwards starts new ones.  Happens by itself when the interpreter exits.  Not to
    be called from a done callback, which runs on one of those threads (RuntimeError).
    """
    if _current is not None and _current.port.is_own_thread():
        raise RuntimeError("shutdown() was called on a thread that it would have to wait for")
    runtime = install(None)
    if runtime is not None:
        runtime.close()


def _mover_from_environment() -> str | None:
    wanted = os.environ.get("FREEBSD_SPLICE_MOVER", "auto")
    if wanted not in ("auto", OS_SPLICE, COPY):
        raise ValueError(
            f"FREEBSD_SPLICE_MOVER is {wanted!r}; it can be 'auto', {OS_SPLICE!r} or {COPY!r}"
        )
    return None if wanted == "auto" else wanted


def _forget_after_fork() -> None:
    """A forked child closes its copies and has no flows; the parent's go on."""
    global _current, _lock
    _lock = threading.Lock()  # a thread of the parent's may have held it
    if _current is not None:
        _current.inherited = True
        _current.port.abandon()
        _current = None


_lock = threading.Lock()
_current: Runtime | None = None
atexit.register(shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
