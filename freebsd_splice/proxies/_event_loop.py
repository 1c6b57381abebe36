"""An event loop that waits in the poller of the flows, and has their bytes moved right there.

A loop of asyncio's can watch a worker's poller as it watches any descriptor, and that is how a
proxy runs on a loop of somebody else's. Each message then takes two waits, one of them nested, and
a callback of the loop's. Here it is the other way round: the worker's poller watches the loop's.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar

from .._platform.shortages import in_spite_of_shortages
from .._userspace.workers import LocalWorker

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """The selector of the loop, which waits in the poller of a worker as long as it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.worker: LocalWorker | None = None
        self._is_ready = False
        self.must_return = False  # the loop has something to do besides

    def has_descriptor(self) -> bool:
        """Return whether another poller can watch this one."""
        return hasattr(self, "fileno")

    def watched_by(self, worker: LocalWorker | None) -> None:
        if self.worker is not None:
            self.worker.unlisten(self._descriptor())
        self.worker = None  # who can't watch this one must not be waited in
        if worker is not None:
            worker.listen(self._descriptor(), self._has_something)
            self.worker = worker

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.worker is None:
            return super().select(timeout)
        # A round of the loop takes as long as a message. While flows alone have something to do,
        # there is none between two messages.
        self._is_ready = self.must_return = False
        until = None if timeout is None else time.monotonic() + timeout
        while timeout is None or timeout >= 0:
            self.worker.turn(timeout)
            if self._is_ready:
                return super().select(0)
            if self.must_return or timeout == 0:
                break
            timeout = None if until is None else until - time.monotonic()
        return []

    def _has_something(self) -> None:
        self._is_ready = True

    def _descriptor(self) -> int:
        return int(getattr(self, "fileno")())  # noqa: B009 - not every selector has it


class ProxyLoop(asyncio.SelectorEventLoop):
    """The event loop of the programs."""

    def __init__(self) -> None:
        #: All whose flows it moves; it waits in the poller of the last one.
        self.workers: list[LoopWorker] = []
        self._own_selector = _Selector()
        super().__init__(self._own_selector)

    # What a flow's end calls must not wait for something to be reported.

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: Unpack[Ts],
        context: Context | None = None,
    ) -> asyncio.Handle:
        self._own_selector.must_return = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: Unpack[Ts],
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._own_selector.must_return = True
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        self._own_selector.must_return = True
        super().stop()

    def serve(self, worker: LocalWorker) -> bool:
        """Wait in the worker's poller from now on; return whether that is possible."""
        if self._own_selector.worker is not None or not self._own_selector.has_descriptor():
            return False
        self._own_selector.watched_by(worker)
        return True

    def serve_no_more(self, worker: LocalWorker) -> None:
        """Undo ``serve``."""
        if self._own_selector.worker is worker:
            self._own_selector.watched_by(None)


class LoopWorker:
    """A worker whose flows the running loop moves, on its own thread.

    A ``ProxyLoop`` waits in the poller of the one that came last: that is the server which accepts
    clients, where others only finish what they have begun. It watches the others' pollers.
    """

    def __init__(self, worker: LocalWorker) -> None:
        self._worker = worker
        self._loop = loop = asyncio.get_running_loop()
        self._workers: list[LoopWorker] = loop.workers if isinstance(loop, ProxyLoop) else []
        self._workers.append(self)
        try:
            if len(self._workers) > 1:
                self._workers[-2]._step_back()
            self._step_forward()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the worker."""
        self._loop.remove_reader(self._worker.fileno())
        if isinstance(self._loop, ProxyLoop):
            self._loop.serve_no_more(self._worker)
        self._worker.close()
        was_last = self._workers[-1] is self
        self._workers.remove(self)
        if was_last and self._workers:
            in_spite_of_shortages(self._workers[-1]._step_forward)

    def _step_forward(self) -> None:
        # Two pollers can't watch each other.
        self._loop.remove_reader(self._worker.fileno())
        if not (isinstance(self._loop, ProxyLoop) and self._loop.serve(self._worker)):
            self._loop.add_reader(self._worker.fileno(), self._move)

    def _step_back(self) -> None:
        assert isinstance(self._loop, ProxyLoop)
        self._loop.serve_no_more(self._worker)
        self._loop.add_reader(self._worker.fileno(), self._move)
        self._loop.call_soon(self._move)  # its flows may be in the middle of something

    def _move(self) -> None:
        if not self._worker.is_closed and self._worker.turn():
            self._loop.call_soon(self._move)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Do what ``asyncio.run`` does, on such a loop."""
    if sys.platform == "win32":
        return asyncio.run(main)  # select(2) has no descriptor, and serves no subprocess
    if sys.platform == "darwin":
        # XNU counts how deep kqueues are nested, and never counts down: one that has watched
        # another can't be watched by it later (EINVAL), as a reload or a second proxy demands.
        return asyncio.run(main)
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=ProxyLoop) as runner:
            return runner.run(main)

    class Policy(asyncio.DefaultEventLoopPolicy):
        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            return ProxyLoop()

    asyncio.set_event_loop_policy(Policy())
    try:
        return asyncio.run(main)
    finally:
        asyncio.set_event_loop_policy(None)
