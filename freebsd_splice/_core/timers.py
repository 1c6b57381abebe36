"""The watcher thread and its heap of timers, for every wait but those of the engine's workers."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable

from .._platform.interface import Endpoint, Platform, Poller, Readiness, Runner

logger = logging.getLogger("freebsd_splice")


class Timer:
    """A call that is due at a certain time."""

    __slots__ = ("_timers", "call", "when")

    def __init__(self, timers: Timers, when: float, call: Callable[[], object]) -> None:
        self._timers = timers
        self.when = when
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Don't run the call, unless it is running already."""
        if self.call is not None:
            self.call = None
            self._timers.forget_one()


class Timers:
    """The heap of timers, and the watcher: a thread that sleeps until the first timer is due.

    The watcher also waits for the kernel's events (``listen``). It runs all calls on its own
    thread, so no call may block: the others would wait for it.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._cancelled = 0
        self._sleeps_until = float("-inf")  # awake: the watcher looks at the heap before it sleeps
        self._listeners: dict[int, Callable[[], object]] = {}
        self._poller: Poller | None = None
        self._runner: Runner | None = None
        self._closing = False

    def after(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Run ``call`` once ``seconds`` have passed, never earlier."""
        with self._lock:
            if self._poller is None:
                self._start()
            timer = Timer(self, self._platform.now() + seconds, call)
            heapq.heappush(self._heap, (timer.when, next(self._order), timer))
            if self._poller is not None and timer.when < self._sleeps_until:
                self._sleeps_until = float("-inf")
                self._poller.wake()
        return timer

    def begin(self) -> None:
        """Have the watcher, for what must not fail later for want of its thread."""
        with self._lock:
            if self._poller is None:
                self._start()

    def listen(self, endpoint: Endpoint, call: Callable[[], object]) -> None:
        """Run ``call`` whenever ``endpoint`` can be read; the call must read it empty."""
        with self._lock:
            if self._poller is None:
                self._start()
            assert self._poller is not None
            self._listeners[endpoint.fileno()] = call
            self._poller.watch(endpoint, Readiness.READ)

    def forget_one(self) -> None:
        """Count a cancelled timer; drop them all where most are: they may be due in hours."""
        with self._lock:
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled > len(self._heap) // 2:
                self._heap = [entry for entry in self._heap if entry[2].call is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def _start(self) -> None:
        if self._closing:
            raise RuntimeError("freebsd_splice was shut down while a splice was being made")
        self._poller = self._platform.poller(few=True)
        try:
            self._runner = self._platform.run(self.step, "freebsd-splice-watcher")
        except BaseException:
            self._poller.close()
            self._poller = None
            raise

    def step(self) -> bool:
        """Run the calls that are due, then sleep until the next is due or an event comes."""
        poller = self._poller
        if poller is None:
            return False  # closed
        for timer in self._take_due():
            call, timer.call = timer.call, None
            if call is not None:
                _make(call)
        for descriptor, _ in poller.wait(self._time_to_sleep()):
            _make(self._listeners[descriptor])
        return not self._closing

    def close(self) -> None:
        """End the watcher. The calls that are still in the heap are never run."""
        with self._lock:
            self._closing = True
            poller, runner = self._poller, self._runner
            self._poller = self._runner = None
        if poller is not None and runner is not None:
            poller.wake()
            runner.join()
            poller.close()

    def _take_due(self) -> list[Timer]:
        due = []
        with self._lock:
            self._sleeps_until = float("-inf")
            now = self._platform.now()
            while self._heap and self._heap[0][0] <= now:
                timer = heapq.heappop(self._heap)[2]
                if timer.call is None:
                    self._cancelled -= 1
                else:
                    due.append(timer)
        return due

    def _time_to_sleep(self) -> float | None:
        with self._lock:
            while self._heap and self._heap[0][2].call is None:
                heapq.heappop(self._heap)
                self._cancelled -= 1
            if not self._heap:
                self._sleeps_until = float("inf")
                return None
            self._sleeps_until = self._heap[0][0]
            return max(0.0, self._sleeps_until - self._platform.now())


def _make(call: Callable[[], object]) -> None:
    try:
        call()
    except BaseException:  # the other calls must still be run
        logger.exception("a call on the watcher thread failed")
