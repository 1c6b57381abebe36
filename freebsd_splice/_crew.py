"""Threads for calls that may have to wait: the watcher and the engine's workers never do.

Ending a splice in the kernel sleeps until its worker has let go, and reading its count waits for
the socket's lock (F24, F34).  Where somebody holds that lock for long, the call hangs, and only
the flow that it was made for may hang with it.
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

    def __init__(self, port: Port, watcher: Watcher) -> None:
        self._port = port
        self._watcher = watcher
        self._lock = threading.Lock()
        self._mailbox = port.mailbox()
        self._runners: dict[int, Runner] = {}
        self._started = 0
        self._waiting = 0  # calls that no thread has taken yet
        self._busy = 0
        self._taken = 0
        self._watching = False
        self._closing = False

    def submit(self, call: Callable[[], object]) -> None:
        """Have ``call`` made soon, by some thread of the crew's."""
        self._mailbox.put(call)
        with self._lock:
            self._waiting += 1
            if self._waiting > len(self._runners) - self._busy and not self._closing:
                if len(self._runners) < USUAL:
                    self._start_one()
                elif not self._watching:
                    self._watch()

    def close(self) -> None:
        """Make the calls that are waiting, then end the threads."""
        with self._lock:
            self._closing = True
            runners = list(self._runners.values())
        for _ in runners:
            self._mailbox.put(_last)
        for runner in runners:
            runner.join()

    def _start_one(self) -> None:
        number = self._started
        self._started += 1
        try:
            self._runners[number] = self._port.run(
                partial(self._step, number), f"freebsd-splice-crew-{number}"
            )
        except RuntimeError:  # no thread is to be had now: the calls wait, and this is tried again
            logger.exception("a thread of the crew can't be started")
            if not self._watching:
                self._watch()

    def _step(self, number: int) -> bool:
        call = self._mailbox.take(IDLE_SECONDS)
        with self._lock:
            if call is None and self._waiting:
                return True  # it was put there in this very moment
            if call is None or call is _last:
                self._runners.pop(number, None)
                return False
            self._waiting -= 1
            self._taken += 1
            self._busy += 1
        try:
            call()
        except BaseException:  # a callback of the program's, ``sys.exit()`` even, ends no thread
            logger.exception("ending a splice failed")
        finally:
            with self._lock:
                self._busy -= 1
        return True

    def _watch(self) -> None:
        self._watching = True
        self._watcher.after(STUCK_SECONDS, partial(self._look, self._taken))

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
