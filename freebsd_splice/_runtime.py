"""The runtime that each process has once: its engine, its watcher, and the sockets in use."""

from __future__ import annotations

import atexit
import errno
import os
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

    Args:
        platform: the operating system, or a test's model of one.
        mover: the mover that userspace must use; None: the best there is.
        choose: says whether the kernel serves. It is asked for each new flow.
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
        #: True in a forked child: this runtime is the parent's, and nothing in it may be touched.
        self.inherited = False
        self.closer = Closer(platform, self.timers, self.run_blocking)
        self._engine = Engine(platform, mover)
        self._callbacks = BlockingPool(platform, self.timers, "callbacks")
        self._kernel: KernelBackend | None = None
        self._lock = threading.Lock()
        self._live: set[_Endable] = set()
        #: What ``close`` calls first, while operations can still be made.
        self.call_before_close: set[Callable[[], object]] = set()
        self._closing = False

    def flows(
        self,
        count: int,
        *,
        fallback: bool = True,
        is_new: bool = False,
        worker: LocalWorker | None = None,
    ) -> list[Flow]:
        """Return new flows: one, or the two of a pair.

        Args:
            count: 1 or 2.
            fallback: whether userspace may serve them where the kernel can't.
            is_new: the connections are new and nobody else's, so that userspace may serve them
                until they have shown that they last.
            worker: moves their bytes in userspace as long as they are few.

        Raises:
            BackendUnavailable: the kernel can't serve, and userspace must not.
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

    def has_kernel(self) -> bool:
        """Return whether the kernel splices what lasts."""
        return self._choose()[0] is not None

    def copies_first(self) -> bool:
        """Return whether new flows begin with a copy in userspace, whatever serves them later."""
        return not self.is_kernel_demanded() and self._engine.copies_first()

    def start_workers(self) -> None:
        """Start the workers and the watcher now; later they would take descriptors of clients."""
        self.timers.begin()
        for _ in range(os.cpu_count() or 1):
            self.flows(1)

    def local_worker(self) -> LocalWorker | None:
        """A worker without a thread (see ``LocalWorker``); None where this system has none."""
        return self._engine.local()

    def may_fall_back(self) -> bool:
        """Return whether userspace may serve what the kernel can't."""
        return not self.is_kernel_demanded()

    def run_blocking(self, call: Callable[[], object]) -> None:
        """Run ``call``, which may have to wait where the kernel serves, on a thread that may.

        Where the kernel serves nothing, no such call waits, and this thread runs it.
        """
        if self._kernel is None:
            call()
        else:
            self._pool.submit(call)

    def call_back(self, call: Callable[[], object]) -> None:
        """Run ``call``, which is the user's code, on a thread where it holds up none of ours."""
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
        """Have ``close`` end ``splice``, until it discards itself.

        Called by its constructor, before that touches a socket.
        """
        with self._lock:
            if self._closing:
                raise RuntimeError("freebsd_splice was shut down while a splice was being made")
            self._live.add(splice)

    def discard(self, splice: _Endable) -> None:
        """Forget ``splice``: it is over."""
        with self._lock:
            self._live.discard(splice)

    def close(self) -> None:
        """Cancel what is live, wait for the done callbacks, end all threads, close descriptors."""
        for call in list(self.call_before_close):
            call()
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
        # Before the watcher ends, which starts a further thread where a callback holds up others.
        self.finish_callbacks()
        self.timers.close()
        if self._kernel is not None:
            self._kernel.close()

    def finish_callbacks(self) -> None:
        """Wait until all done callbacks have returned, except one that this is called from."""
        self._callbacks.close()

    def is_in_callback(self) -> bool:
        """Return whether this thread is running a done callback."""
        return self._callbacks.is_calling()

    def abandon(self) -> None:
        """Leave all to the parent: this process was forked, and has no part in this runtime."""
        self.inherited = True
        self._callbacks.abandon()
        self.platform.abandon()
        if self._kernel is not None:
            self._kernel.abandon()


def current() -> Runtime:
    """Return this process's runtime, which is made when it is first needed.

    Raises:
        RuntimeError: gevent has replaced parts of the standard library that the runtime needs.
    """
    made = _own.made
    return made if made is not None else _own.get()


def install(runtime: Runtime | None) -> Runtime | None:
    """Use ``runtime`` from now on; return the one before it, which is not closed."""
    return _own.replace(runtime)


def shutdown() -> None:
    """Cancel every ``Splice`` and ``Relay`` of this process, and end the package's threads.

    The done callbacks are called first, and this function waits until they have returned. Slow
    readers of sockets that a ``Relay`` closes get one more second in all (``linger``). It runs by
    itself when the interpreter exits. Splices and relays can be made afterwards; they start new
    threads. A done callback may call this function too: it then waits for all callbacks but that
    one, whose thread ends after it.

    Raises:
        RuntimeError: called on one of the package's own threads, other than by a done callback.
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
            closed.finish_callbacks()  # the callback that closed it may still run
            with suppress(ValueError):
                _closing.remove(closed)


_own = PerProcess(
    lambda: Runtime(SystemPlatform(), forced_mover()), leave=lambda made: made.abandon()
)
#: Runtimes that were closed, and whose threads may not all have ended.
_closing: list[Runtime] = []
in_forked_child(_closing.clear)
atexit.register(shutdown)
