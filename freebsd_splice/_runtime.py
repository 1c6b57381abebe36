"""What a process has once: its engine, its watcher, and the sockets in use."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from ._backend import backend
from ._closing import Closer
from ._crew import Crew
from ._engine import Engine
from ._errors import BackendUnavailable
from ._flow import Flow
from ._kernel import Kernel
from ._kernel_port import KernelCalls
from ._movers import COPY, OS_SPLICE
from ._port import Port
from ._sockets import Sockets
from ._system import SystemPort
from ._watcher import Watcher

#: Modules that have to be the standard library's own.
_NOT_TO_PATCH = ("threading", "select", "queue")


class _Endable(Protocol):
    def end_for_shutdown(self) -> None: ...


class Runtime:
    """All that flows, splices and relays share, over one port."""

    def __init__(self, port: Port, mover: str | None = None) -> None:
        self.port = port
        self.watcher = Watcher(port)
        self.sockets = Sockets(port, self.watcher, self.errand)
        #: In a forked child: this is the parent's, and nothing in it may be touched.
        self.inherited = False
        self.closer = Closer(port, self.watcher, self.errand)
        self._engine = Engine(port, mover)
        self._crew = Crew(port, self.watcher)
        self._kernel: Kernel | None = None
        self._lock = threading.Lock()
        self._live: set[_Endable] = set()
        self._closing = False

    def flows(self, count: int, *, fallback: bool = True) -> list[Flow]:
        """New flows: one, or the two of a pair.

        Without ``fallback`` nothing but the kernel serves them.  Raises BackendUnavailable.
        """
        calls = self.port.kernel()
        fallback = fallback and not self.port.kernel_demanded()
        if calls is not None:
            return self._kernel_for(calls).flows(count, fallback=fallback)
        if not fallback:
            raise BackendUnavailable(
                errno.ENOPROTOOPT, f"the kernel was demanded, but {backend().reason}"
            )
        return list(self._engine.flows(count))

    def errand(self, call: Callable[[], object]) -> None:
        """Make ``call``, which may have to wait where the kernel serves, on a thread that may."""
        if self._kernel is None:
            call()
        else:
            self._crew.submit(call)

    def _kernel_for(self, calls: KernelCalls) -> Kernel:
        with self._lock:
            if self._closing:
                raise RuntimeError("freebsd_splice was shut down while a splice was being made")
            if self._kernel is None:
                self._kernel = Kernel(self.port, calls, self.watcher, self._engine, self._crew)
            return self._kernel

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
        self.closer.finish()
        self._engine.close()
        self._crew.close()
        self.watcher.close()
        if self._kernel is not None:
            self._kernel.close()

    def abandon(self) -> None:
        """In a forked child: this process has no part in it."""
        self.inherited = True
        self.port.abandon()
        if self._kernel is not None:
            self._kernel.abandon()


def current() -> Runtime:
    """This process's runtime, made when it is first needed.

    Raises RuntimeError where gevent has taken from the standard library what it is made of.
    """
    global _current
    with _lock:
        if _current is None:
            _check_real_threads()
            _current = Runtime(SystemPort(), _mover_from_environment())
        return _current


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


def _check_real_threads() -> None:
    """As greenlets of the main thread, the package's threads would hold up all of it, signals too;
    and gevent's ``poll`` aborts the process when another thread closes what it watches."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return
    patched = [name for name in _NOT_TO_PATCH if monkey.is_module_patched(name)]
    if patched:
        without = ", ".join(
            f"{'thread' if name == 'threading' else name}=False" for name in patched
        )
        raise RuntimeError(
            f"gevent has patched {', '.join(patched)}, which freebsd_splice's own threads need as "
            f"it was: call monkey.patch_all({without})"
        )


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
        _current.abandon()
        _current = None


_lock = threading.Lock()
_current: Runtime | None = None
atexit.register(shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
