"""Threads for calls that may have to wait: the watcher and the engine's workers never do.

Ending a splice in the kernel sleeps until its worker has let go, and reading its count waits for
the socket's lock (F24, F34).  Where somebody holds that lock for long, the call hangs, and only
the flow that it was made for may hang with it.  Done callbacks, which may do what they like, have
a crew of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from ._port import Port, Runner
from ._watcher import Watcher

logger = logging.getLogger("freebsd_splice")

#: So many threads serve all flows, as long as none of them hangs.
USUAL = 2
#: Seconds without a call taken after which those that wait get one thread more.
STUCK_SECONDS = 0.05
#: Seconds after which a thread without anything to do ends.
IDLE_SECONDS = 10.0


class Crew:
    """A few threads, started when there is something to do, more of them while some hang."""

    def __init__(self, port: Port, watcher: Watcher, name: str = "crew") -> None:
        self._port = port
        self._watcher = watcher
        self._name = f"freebsd-splice-{name}"
        self._lock = threading.Lock()
        self._mailbox = port.mailbox()
        self._runners: dict[int, Runner] = {}
        self._started = 0
        self._waiting = 0  # calls that no thread has taken yet
        self._busy: list[tuple[int, int]] = []  # (thread, runner's number) of each call being made
        self._taken = 0
        self._watching = False
        self._refused = False  # the last thread that was asked for
        self._closing = False
        self._inherited = False

    def submit(self, call: Callable[[], object]) -> None:
        """Have ``call`` made soon, by some thread of the crew's.  Never raises."""
        self._mailbox.put(call)
        with self._lock:
            self._waiting += 1
            if self._waiting > len(self._runners) - len(self._busy) and not self._closing:
                if len(self._runners) < USUAL:
                    self._start_one()
                elif not self._watching:
                    self._watch()

    def is_calling(self) -> bool:
        """Whether this thread is making one of the calls."""
        this_thread = threading.get_ident()
        with self._lock:
            return any(thread == this_thread for thread, _ in self._busy)

    def close(self) -> None:
        """Have the calls made that are waiting, then end the threads.

        Within one of the calls it doesn't wait for that call's own thread, which ends by itself.
        """
        this_thread = threading.get_ident()
        with self._lock:
            self._closing = True
            runners = dict(self._runners)
            own = [number for thread, number in self._busy if thread == this_thread]
        for _ in runners:
            self._mailbox.put(_last)
        for number, runner in runners.items():
            if number not in own:
                runner.join()
        if not own:  # where no thread was to be had for them
            while (call := self._mailbox.take(0)) is not None:
                self._make(call)

    def abandon(self) -> None:
        """In a forked child, which may be within one of the calls: it makes no more of them."""
        self._lock = threading.Lock()  # a thread that isn't here may have held it
        self._inherited = True

    def _start_one(self) -> None:
        number = self._started
        self._started += 1
        try:
            self._runners[number] = self._port.run(
                partial(self._step, number), f"{self._name}-{number}"
            )
        except RuntimeError as error:  # none is to be had now: the calls wait, it is tried again
            if not self._refused:
                logger.error("%s can't be started, and calls wait for it: %s", self._name, error)
            self._refused = True
            if not self._watching:
                self._watch()
        else:
            self._refused = False

    def _step(self, number: int) -> bool:
        call = self._mailbox.take(IDLE_SECONDS)
        making = threading.get_ident(), number
        with self._lock:
            if call is None and self._waiting:
                return True  # it was put there in this very moment
            if call is None or call is _last:
                self._runners.pop(number, None)
                return False
            self._waiting -= 1
            self._taken += 1
            self._busy.append(making)
        try:
            self._make(call)
        finally:
            with self._lock:
                self._busy.remove(making)
        return not self._inherited

    def _make(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException:  # ``sys.exit()`` in the close of a caller's socket ends no thread
            logger.exception("ending a splice failed")

    def _watch(self) -> None:
        try:
            self._watcher.after(STUCK_SECONDS, partial(self._look, self._taken))
        except (OSError, RuntimeError) as error:  # no descriptor: the next call tries it again
            logger.error("the next call to %s is waited for: %s", self._name, error)
        else:
            self._watching = True

    def _look(self, taken: int) -> None:
        """Nobody has taken a call since?  Then all of the threads hang."""
        with self._lock:
            self._watching = False
            if self._waiting and not self._closing:
                if self._taken == taken:
                    self._start_one()
                if not self._watching:
                    self._watch()


def _last() -> None:
    """Ends the thread that takes it."""
