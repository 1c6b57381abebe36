"""The userspace engine: a few worker threads that move the bytes of every flow.

It mirrors the kernel's design (F6: one kernel thread per CPU, and each splice stays on one of
them): one worker per CPU, started on first use, and each flow belongs to one worker. An idle flow
costs nothing: no wake-up, no pipe, no buffer.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from .._backend import COPY
from .._platform.interface import Endpoint, Platform, Poller, Readiness, Runner
from .._platform.shortages import in_spite_of_shortages
from .flow import MUCH_BYTES, UserspaceFlow
from .movers import Mover, Supplies

_READ, _WRITE, _HANGUP = int(Readiness.READ), int(Readiness.WRITE), int(Readiness.HANGUP)
_FAILURE = _HANGUP | int(Readiness.ERROR)
#: What to watch a socket for, indexed by whether a flow reads it and whether a flow writes it.
_INTERESTS = (
    (Readiness.NONE, Readiness.WRITE),
    (Readiness.READ, Readiness.READ | Readiness.WRITE),
)

#: What a socket may be watched for after a call that has failed: no interest is like it.
_UNKNOWN = ~Readiness.NONE

#: Once this many sockets are reported at a time, a local worker is busy: it then serves its flows
#: for up to ``_ROUNDS`` rounds before the event loop's other work.
_BUSY, _ROUNDS = 4, 4

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

    def local(self) -> LocalWorker | None:
        """Return a worker on the caller's thread, or None where pollers can't be nested."""
        worker = LocalWorker(self._platform, self._mover)
        if worker.fileno() >= 0:
            return worker
        worker.close()
        return None

    def flows(self, count: int, local: LocalWorker | None = None) -> list[UserspaceFlow]:
        """Return ``count`` new flows, all for the next worker in turn.

        With ``local`` they begin on that worker, and move to the next one in turn when busy.

        The two directions of a pair share a worker. If directions were dealt out singly, all the
        pairs' busy directions would meet on one worker and their quiet ones on another.

        Raises:
            RuntimeError: the engine was closed; or no thread could be started for the first worker.
            OSError: no descriptors were left for the first worker.
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
        return [UserspaceFlow(local or worker, worker) for _ in range(count)]

    def copies_first(self) -> bool:
        """Return whether flows begin with a copy: no other mover is demanded."""
        return self._mover in (None, COPY)

    def start(self) -> None:
        """Make sure that one worker exists, for flows that must not fail for lack of a worker."""
        with self._lock:
            if not self._workers:
                self._add_worker()

    def close(self) -> None:
        """End the workers. Every flow must have been stopped before."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.close()
            self._workers.clear()

    def _add_worker(self) -> None:
        name = f"freebsd-splice-worker-{len(self._workers)}"
        self._workers.append(Worker(self._platform, self._mover, name))


class Worker:
    """A thread that waits for sockets, and gives a turn to each flow that can move bytes.

    Flows see it through the ``FlowWorker`` protocol.
    """

    #: Whether flows are started here on the same thread that gives them their turns.
    is_local = False

    #: Exceptions from a flow that must not end the thread: even SystemExit from a user's callback.
    survived: type[BaseException] = BaseException

    def __init__(self, platform: Platform, mover: str | None, name: str | None) -> None:
        self.platform = platform
        self._supplies = Supplies(platform, mover)
        self.message_buffer = self._supplies.scratch[:MUCH_BYTES]
        self._poller: Poller = platform.poller()
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        #: Who is told of a descriptor that no flow has (a local worker's), and who is told last.
        self._told: dict[int, Callable[[Readiness], object]] = {}
        self._told_last: dict[int, Callable[[], object]] = {}
        self._ready: deque[UserspaceFlow] = deque()
        self._closing = False
        self._runner: Runner | None = None
        if name is not None:
            try:
                self._runner = platform.run(self.step, name)
            except BaseException:
                self._poller.close()
                raise

    def step(self) -> bool:
        """Wait until a flow can move bytes, and give each such flow one turn; False: closing."""
        self._serve(self._poller.wait(0 if self._ready else None))
        return not self._closing

    def _serve(self, reported: list[tuple[int, Readiness]]) -> None:
        failed_drains = []
        last = []
        for descriptor, ready in reported:
            tell = self._told.get(descriptor)
            if tell is not None:
                try:
                    tell(ready)
                except self.survived:
                    _log_failure()
                continue
            if descriptor in self._told_last:
                last.append(self._told_last[descriptor])
                continue
            if ready is Readiness.READ:
                watched = self._watched.get(descriptor)
                reader = watched.reader if watched else None
                if reader and reader.takes_messages and not reader.queued:
                    self._give_turn(reader)  # the most common kind of turn: at once
                    continue
            failed_drains += self._report(descriptor, ready)
        # One turn each, in order of arrival. A flow that has more to move goes to the back of the
        # queue, after those that became ready meanwhile.
        for _ in range(len(self._ready)):
            flow = self._ready.popleft()
            flow.queued = False
            self._give_turn(flow)
        # Failed drains come after the turns: a socket that fails is often a source as well, and
        # the bytes that arrived there before the failure must be read first.
        for flow in failed_drains:
            try:
                flow.drain_failed()
            except self.survived:
                _log_failure()
        # These make descriptors. A number that was closed meanwhile can come back in them, and a
        # report that is older must not be taken for one of theirs.
        for call in last:
            try:
                call()
            except self.survived:
                _log_failure()

    def _give_turn(self, flow: UserspaceFlow) -> None:
        try:
            if flow.turn():
                self._queue(flow)
        except self.survived:
            _log_failure()

    def mover(self, *, copy: bool = False, busy: bool = False) -> Mover:
        return self._supplies.mover(copy=copy, busy=busy)

    def expect(self, flow: UserspaceFlow, *, read: bool, write: bool) -> None:
        with self._lock:
            source, drain = self._watch(flow.source), self._watch(flow.drain)
            source.reader = flow if read else None
            flow.reads_until_empty = source.is_quiet
            drain.writer = flow if write else None
            drain.guard = flow
            self._apply(source)
            self._apply(drain)

    def quieten(self, endpoint: Endpoint) -> None:
        with self._lock:
            watched = self._watched.get(endpoint.fileno())
            if watched is not None:
                watched.is_quiet = True
                if watched.reader is not None:
                    watched.reader.reads_until_empty = True
                in_spite_of_shortages(partial(self._poller.quieten, endpoint))

    def release(self, flow: UserspaceFlow) -> None:
        with self._lock:
            source = self._watched.get(flow.source.fileno())
            if source is not None:
                if source.reader is flow:
                    source.reader = None
                in_spite_of_shortages(partial(self._apply, source))
            drain = self._watched.get(flow.drain.fileno())
            if drain is not None:
                if flow in (drain.guard, drain.writer):
                    drain.guard = drain.writer = None
                in_spite_of_shortages(partial(self._apply, drain))

    @property
    def is_closed(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._poller.wake()
        if self._runner is not None:
            self._runner.join()
        self._poller.close()
        self._supplies.close()
        self.message_buffer = self._supplies.scratch

    def _queue(self, flow: UserspaceFlow) -> None:
        if not flow.queued:
            flow.queued = True
            self._ready.append(flow)

    def _watch(self, endpoint: Endpoint) -> _Watched:
        descriptor = endpoint.fileno()
        watched = self._watched.get(descriptor)
        if watched is None:
            watched = self._watched[descriptor] = _Watched(endpoint, descriptor)
        return watched

    def _apply(self, watched: _Watched) -> None:
        """Have the socket watched for what its flows want. After a failure, call it again."""
        interest = _INTERESTS[watched.reader is not None][watched.writer is not None]
        if not (interest or watched.guard):
            # A failed socket is reported for as long as it is watched, and no flow would act on it.
            del self._watched[watched.descriptor]
            if watched.applied is not None:
                self._poller.forget(watched.endpoint)
        elif watched.applied is not interest:
            watched.applied = _UNKNOWN
            self._poller.watch(watched.endpoint, interest)
            watched.applied = interest

    def _report(self, descriptor: int, ready: Readiness) -> list[UserspaceFlow]:
        """Queue the flows that can move now; return the flow whose drain has failed, if any."""
        with self._lock:
            watched = self._watched.get(descriptor)
            if watched is None:
                return []  # released since the poller saw it
            reader, writer, guard = watched.reader, watched.writer, watched.guard
        shown = int(ready)  # operators of flags are slow
        failed = bool(shown & _FAILURE)
        if failed and not shown & _HANGUP and not _has_failed(reader, writer, guard):
            # The report is for instance of a time stamp in the error queue. That would be reported
            # for ever, and only the socket's owner may read it.
            failed = False
            if not shown & (_READ | _WRITE):
                self.quieten(watched.endpoint)
        if reader and (failed or shown & _READ):
            self._queue(reader)
        if writer and (failed or shown & _WRITE):
            self._queue(writer)
        if guard and failed:
            return [guard]
        return []


class LocalWorker(Worker):
    """A worker without a thread of its own, for an event loop.

    The loop calls ``turn`` when ``fileno()`` is readable. The loop's own thread moves the bytes of
    the flows that are started here. It doesn't have to wake another thread or wait for one, and
    that is most of the cost of a short connection or a short message. A flow with much to move
    goes to a worker that has a thread.
    """

    is_local = True

    #: Not BaseException: what a signal handler raises on the loop's thread (KeyboardInterrupt) is
    #: for the program to handle.
    survived = Exception

    def __init__(self, platform: Platform, mover: str | None) -> None:
        super().__init__(platform, mover, None)
        self.is_at_work = False  # just now, on the loop's thread
        self.reported = 0  # how many sockets, to be dealt with in this round

    def fileno(self) -> int:
        """Return a descriptor that is readable while a flow can move, or -1 if there is none."""
        return self._poller.fileno()

    def tell(
        self, endpoint: Endpoint, interest: Readiness, call: Callable[[Readiness], object]
    ) -> None:
        """Call ``call`` with what the poller reports of a socket that no flow has.

        Raises:
            OSError: the poller has no room.
        """
        self._poller.watch(endpoint, interest)
        self._told[endpoint.fileno()] = call

    def change(self, endpoint: Endpoint, interest: Readiness) -> None:
        """Have another interest in a socket that ``tell`` was called for."""
        in_spite_of_shortages(partial(self._poller.watch, endpoint, interest))

    def tell_no_more(self, endpoint: Endpoint) -> None:
        """Undo ``tell``, before the socket is closed or a flow has it."""
        if self._told.pop(endpoint.fileno(), None) is not None:
            self._poller.forget(endpoint)

    def listen(self, descriptor: int, call: Callable[[], object]) -> None:
        """Call ``call`` while ``descriptor`` can be read, after everything else that is reported.

        It is a listening socket, or another poller. ``call`` may make descriptors.
        """
        self._poller.listen(descriptor)
        self._told_last[descriptor] = call

    def unlisten(self, descriptor: int) -> None:
        """Undo ``listen``."""
        if self._told_last.pop(descriptor, None) is not None:
            self._poller.unlisten(descriptor)

    def turn(self, timeout: float | None = 0) -> bool:
        """Give a turn to each flow that can move; return whether any could continue at once.

        Args:
            timeout: seconds to wait for something to be reported, where no flow can move; None:
                for ever.
        """
        reported = self._poller.wait(0 if self._ready else timeout)
        self.is_at_work = True
        try:
            for _ in range(_ROUNDS):
                self.reported = len(reported)
                self._serve(reported)
                # When many flows are busy, more have become ready meanwhile, and looking again is
                # faster than a round of the loop. When few are, the next message comes too late
                # for another look to find it.
                if len(reported) < _BUSY:
                    break
                reported = self._poller.wait(0)
        finally:
            self.is_at_work = False
        return bool(self._ready)


def _has_failed(
    reader: UserspaceFlow | None, writer: UserspaceFlow | None, guard: UserspaceFlow | None
) -> bool:
    flow = writer or guard
    return flow.drain_has_failed() if flow else reader is not None and reader.source_has_failed()


def _log_failure() -> None:
    logger.exception("a worker's call has failed")


class _Watched:
    """One socket in the poller: at most one flow reads it, and at most one writes it."""

    __slots__ = ("applied", "descriptor", "endpoint", "guard", "is_quiet", "reader", "writer")

    def __init__(self, endpoint: Endpoint, descriptor: int) -> None:
        self.endpoint = endpoint
        self.descriptor = descriptor
        self.reader: UserspaceFlow | None = None
        self.writer: UserspaceFlow | None = None
        self.guard: UserspaceFlow | None = None
        self.applied: Readiness | None = None
        self.is_quiet = False
