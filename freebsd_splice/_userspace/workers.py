"""The userspace engine: a few worker threads that move the bytes of every flow.

It mirrors the kernel's design (F6): one worker per CPU, started on first use, a flow belongs to
one of them.  An idle flow costs nothing: no wake-up, no pipe, no buffer.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .._platform.interface import Endpoint, Platform, Poller, Readiness, Runner
from .flow import UserspaceFlow
from .movers import Mover, Supplies

logger = logging.getLogger("freebsd_splice")


class Engine:
    """The workers of one platform."""

    def __init__(self, platform: Platform, mover: str | None = None) -> None:
        self._platform = platform
        self._mover = mover
        self._cpus = platform.cpus()
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._turn = itertools.count()
        self._closed = False

    def flows(self, count: int) -> list[UserspaceFlow]:
        """That many new flows, on the worker whose turn it is.

        The two directions of a pair share a worker.  Dealt out singly, all the pairs' busy
        directions would meet on one worker and their quiet ones on another.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("freebsd_splice was shut down while a splice was being made")
            if len(self._workers) < self._cpus:
                try:
                    self._add_worker()
                except (OSError, RuntimeError):  # no descriptors, no thread
                    if not self._workers:
                        raise
            worker = self._workers[next(self._turn) % len(self._workers)]
        return [UserspaceFlow(worker) for _ in range(count)]

    def start(self) -> None:
        """Have one worker, for flows that must not fail for want of one."""
        with self._lock:
            if not self._workers:
                self._add_worker()

    def close(self) -> None:
        """End the workers.  Every flow must have been stopped before."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.close()
            self._workers.clear()

    def _add_worker(self) -> None:
        name = f"freebsd-splice-worker-{len(self._workers)}"
        self._workers.append(Worker(self._platform, self._mover, name))


class Worker:
    """A thread that waits for sockets, and gives each flow that can move a turn.

    Its flows know it as a ``FlowWorker``.
    """

    def __init__(self, platform: Platform, mover: str | None, name: str) -> None:
        self.platform = platform
        self._supplies = Supplies(platform, mover)
        self._poller: Poller = platform.poller()
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._ready: deque[UserspaceFlow] = deque()
        self._closing = False
        try:
            self._runner: Runner = platform.run(self.step, name)
        except BaseException:
            self._poller.close()
            raise

    def step(self) -> bool:
        """Wait until some flow can move, and give each such flow one turn."""
        failed_drains = []
        for descriptor, ready in self._poller.wait(0 if self._ready else None):
            failed_drains += self._report(descriptor, ready)
        # One turn each, in order of arrival: whoever has more to move goes to the back, behind
        # those that become ready meanwhile.
        for _ in range(len(self._ready)):
            flow = self._ready.popleft()
            flow.queued = False
            with _logged():
                if flow.turn():
                    self._queue(flow)
        # After the turns: a socket that fails is often a source as well, and as that it says
        # first what came before the failure.
        for flow in failed_drains:
            with _logged():
                flow.drain_failed()
        return not self._closing

    def mover(self, *, copy: bool = False) -> Mover:
        return self._supplies.mover(copy=copy)

    def expect(self, flow: UserspaceFlow, *, read: bool, write: bool) -> None:
        with self._lock:
            source = self._watched.setdefault(flow.source.fileno(), _Watched(flow.source))
            drain = self._watched.setdefault(flow.drain.fileno(), _Watched(flow.drain))
            source.reader = flow if read else None
            drain.writer = flow if write else None
            drain.guard = flow
            self._apply(source)
            self._apply(drain)

    def quieten(self, endpoint: Endpoint) -> None:
        with self._lock:
            if endpoint.fileno() in self._watched:
                self._poller.quieten(endpoint)

    def release(self, flow: UserspaceFlow) -> None:
        with self._lock:
            source = self._watched.get(flow.source.fileno())
            if source is not None and source.reader is flow:
                source.reader = None
                self._apply(source)
            drain = self._watched.get(flow.drain.fileno())
            if drain is not None and flow in (drain.guard, drain.writer):
                drain.guard = drain.writer = None
                self._apply(drain)

    def close(self) -> None:
        self._closing = True
        self._poller.wake()
        self._runner.join()
        self._poller.close()
        self._supplies.close()

    def _queue(self, flow: UserspaceFlow) -> None:
        if not flow.queued:
            flow.queued = True
            self._ready.append(flow)

    def _apply(self, watched: _Watched) -> None:
        read = Readiness.READ if watched.reader else Readiness.NONE
        write = Readiness.WRITE if watched.writer else Readiness.NONE
        if not (read or write or watched.guard):
            # A socket that failed reports so as long as it is watched: nobody here would hear it.
            del self._watched[watched.descriptor]
            if watched.applied is not None:
                self._poller.forget(watched.endpoint)
        elif watched.applied != read | write:
            self._poller.watch(watched.endpoint, read | write)
            watched.applied = read | write

    def _report(self, descriptor: int, ready: Readiness) -> list[UserspaceFlow]:
        """Queue who can move now; give back whose drain has failed."""
        with self._lock:
            watched = self._watched.get(descriptor)
            if watched is None:
                return []  # released since the poller saw it
            reader, writer, guard = watched.reader, watched.writer, watched.guard
        failed = bool(ready & (Readiness.HANGUP | Readiness.ERROR))
        if failed and not ready & Readiness.HANGUP and not _has_failed(reader, writer, guard):
            # A time stamp in the error queue, for instance: it would be reported for ever.  It is
            # its owner's to read.
            failed = False
            if not ready & (Readiness.READ | Readiness.WRITE):
                self.quieten(watched.endpoint)
        if reader and (failed or ready & Readiness.READ):
            self._queue(reader)
        if writer and (failed or ready & Readiness.WRITE):
            self._queue(writer)
        if guard and failed:
            return [guard]
        return []


def _has_failed(
    reader: UserspaceFlow | None, writer: UserspaceFlow | None, guard: UserspaceFlow | None
) -> bool:
    flow = writer or guard
    return flow.drain_has_failed() if flow else reader is not None and reader.source_has_failed()


@contextmanager
def _logged() -> Iterator[None]:
    """What a callback of the program's lets through, ``sys.exit()`` even, ends no worker."""
    try:
        yield
    except BaseException:
        logger.exception("ending a splice failed")


class _Watched:
    """One socket in the poller: at most one flow reads it, and one writes it."""

    __slots__ = ("applied", "descriptor", "endpoint", "guard", "reader", "writer")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.descriptor = endpoint.fileno()
        self.reader: UserspaceFlow | None = None
        self.writer: UserspaceFlow | None = None
        self.guard: UserspaceFlow | None = None
        self.applied: Readiness | None = None
