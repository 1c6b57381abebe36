"""What a process has once: its engine, its watcher, and the sockets in use."""

from __future__ import annotations

import atexit
import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ._backend import KernelChoice, backend, choose_kernel, forced_mover, kernel_demanded
from ._core.blocking_pool import BlockingPool
from ._core.closing import Closer
from ._core.flow import Flow
from ._core.shared_sockets import Sockets
from ._core.timers import Timers
from ._errors import BackendUnavailable
from ._kernel.backend import KernelBackend
from ._platform.interface import Platform
from ._platform.kernel_interface import KernelCalls
from ._platform.process import PerProcess, in_forked_child
from ._platform.system import SystemPlatform
from ._userspace.workers import Engine, LocalWorker


class _Endable(Protocol):
    def end_for_shutdown(self) -> None: ...


class Runtime:
    """All that flows, splices and relays share, over one platform.

    ``choose`` says whether the kernel serves; it is asked for each new flow.
    """

    def __init__(
        self,
        platform: Platform,
        mover: str | None = None,
        *,
        choose: Callable[[], KernelChoice] = choose_kernel,
        demanded: Callable[[], bool] = kernel_demanded,
    ) -> None:
        self.platform = platform
        self._choose = choose
        #: Whether userspace must not stand in for the kernel: as ``choose`` says, for less.
        self.is_kernel_demanded = demanded
        self.timers = Timers(platform)
        self._pool = BlockingPool(platform, self.timers)
        self.sockets = Sockets(platform, self.timers, self.run_blocking, self._pool.submit)
        #: In a forked child: this is the parent's, and nothing in it may be touched.
        self.inherited = False
        self.closer = Closer(platform, self.timers, self.run_blocking)
        self._engine = Engine(platform, mover)
        self._callbacks = BlockingPool(platform, self.timers, "callbacks")
        self._kernel: KernelBackend | None = None
        self._lock = threading.Lock()
        self._live: set[_Endable] = set()
        self._closing = False

    def flows(
        self,
        count: int,
        *,
        fallback: bool = True,
        is_new: bool = False,
        worker: LocalWorker | None = None,
    ) -> list[Flow]:
        """New flows: one, or the two of a pair.

        ``worker`` moves their bytes as long as they are few: in userspace, which may serve new
        connections that nobody else has until they have shown that they last.

        Without ``fallback`` nothing but the kernel serves them.  Raises BackendUnavailable.
        """
        calls, demanded = self._choose()
        fallback = fallback and not demanded
        if calls is not None:
            return self._kernel_for(calls).flows(
                count, fallback=fallback, is_new=is_new and fallback, worker=worker
            )
        if not fallback:
            raise BackendUnavailable(
                errno.ENOPROTOOPT, f"the kernel was demanded, but {backend().reason}"
            )
        return list(self._engine.flows(count, worker))

    def local_worker(self) -> LocalWorker | None:
        """A worker without a thread (see ``LocalWorker``); None where this system has none."""
        return self._engine.local()

    def may_fall_back(self) -> bool:
        """Whether userspace may serve what the kernel can't."""
        return not self.is_kernel_demanded()

    def run_blocking(self, call: Callable[[], object]) -> None:
        """Make ``call``, which may have to wait where the kernel serves, on a thread that may."""
        if self._kernel is None:
            call()
        else:
            self._pool.submit(call)

    def call_back(self, call: Callable[[], object]) -> None:
        """Make ``call``, which is the caller's own code, where it holds up nothing of ours."""
        self._callbacks.submit(call)

    def _kernel_for(self, calls: KernelCalls) -> KernelBackend:
        with self._lock:
            if self._closing:
                raise RuntimeError("freebsd_splice was shut down while a splice was being made")
            if self._kernel is None:
                self._kernel = KernelBackend(
                    self.platform, calls, self.timers, self._engine, self._pool
                )
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
        """Cancel what is live, make the done callbacks, end all threads, close what they have."""
        with self._lock:
            self._closing = True
            live = list(self._live)
        for pool in (self._pool, self._callbacks):
            pool.expect_close()
        for splice in live:
            splice.end_for_shutdown()
        self.closer.finish()
        self._engine.close()
        self._pool.close()
        self.finish_callbacks()  # before the watcher, which sees to those that hold up others
        self.timers.close()
        if self._kernel is not None:
            self._kernel.close()

    def finish_callbacks(self) -> None:
        """Wait until all have returned but the one that this is called from, if it is."""
        self._callbacks.close()

    def is_in_callback(self) -> bool:
        """Whether this thread is making a done callback."""
        return self._callbacks.is_calling()

    def abandon(self) -> None:
        """In a forked child: this process has no part in it."""
        self.inherited = True
        self._callbacks.abandon()
        self.platform.abandon()
        if self._kernel is not None:
            self._kernel.abandon()


def current() -> Runtime:
    """This process's runtime, made when it is first needed.

    Raises RuntimeError where gevent has taken from the standard library what it is made of.
    """
    return _own.get()


def install(runtime: Runtime | None) -> Runtime | None:
    """Use ``runtime`` from now on; the one before it is returned, not closed."""
    return _own.replace(runtime)


def shutdown() -> None:
    """Cancel every ``Splice`` and ``Relay``, and end the package's threads.

    Done callbacks are called first, and waited for.  What is made afterwards starts new threads.
    Happens by itself when the interpreter exits.  A done callback may call it: then it waits for
    all but that callback, whose thread ends after it.
    """
    runtime = _own.made
    if runtime is not None and runtime.platform.is_own_thread() and not runtime.is_in_callback():
        raise RuntimeError("shutdown() was called on a thread that it would have to wait for")
    runtime = install(None)
    if runtime is not None:
        _closing.append(runtime)
        runtime.close()
    for closed in list(_closing):
        if not closed.is_in_callback():
            closed.finish_callbacks()  # that of the thread which closed it may still run
            with suppress(ValueError):
                _closing.remove(closed)


_own = PerProcess(
    lambda: Runtime(SystemPlatform(), forced_mover()), leave=lambda made: made.abandon()
)
#: Those whose threads may not all have ended.
_closing: list[Runtime] = []
in_forked_child(_closing.clear)
atexit.register(shutdown)
