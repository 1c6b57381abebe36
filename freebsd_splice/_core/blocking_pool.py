"""A pool of threads for calls that may have to wait: the watcher and the engine's workers never do.

Ending a splice in the kernel sleeps until the kernel's worker has let go (F34), and reading its
count waits for the socket's lock, which a blocking call elsewhere can hold (F24). Where somebody
holds that lock for long, the call hangs, and only the flow that it was made for may hang with it.
Done callbacks, which may do what they like, have a pool of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from .._platform.interface import Event, Platform, Runner
from .timers import Timers

logger = logging.getLogger("freebsd_splice")

#: The number of threads that serve all flows, as long as none of them hangs.
USUAL = 2
#: Seconds in which no thread takes a call, after which the waiting calls get one more thread.
STUCK_SECONDS = 0.05
#: Seconds after which a thread without a call to run ends.
IDLE_SECONDS = 10.0


class BlockingPool:
    """A few threads, started when there are calls to run, and more of them while some hang."""

    def __init__(self, platform: Platform, timers: Timers, name: str = "blocking") -> None:
        self._platform = platform
        self._timers = timers
        self._name = f"freebsd-splice-{name}"
        self._lock = threading.Lock()
        self._mailbox = platform.mailbox()
        self._runners: dict[int, Runner] = {}
        self._started = 0
        self._waiting = 0  # calls that no thread has taken yet
        self._busy: list[tuple[int, int]] = []  # (thread, runner's number) of each running call
        self._taken = 0
        self._watching = False
        self._refused = False  # whether the system refused the last thread that was asked for
        self._closing = self._is_about_to_close = False
        self._ended: list[Runner] = []  # those that ended since the pool began to close
        self._changes: list[Event] = []  # close() waits for them
        self._inherited = False

    def submit(self, call: Callable[[], object]) -> None:
        """Run ``call`` soon, on one of the pool's threads. Never raises."""
        self._mailbox.put(call)
        with self._lock:
            self._waiting += 1
            if self._waiting > len(self._runners) - len(self._busy):
                if len(self._runners) < USUAL:
                    self._start_one()
                elif not self._watching:
                    self._watch()

    def is_calling(self) -> bool:
        """Return whether this thread is running one of the calls."""
        this_thread = threading.get_ident()
        with self._lock:
            return any(thread == this_thread for thread, _ in self._busy)

    def expect_close(self) -> None:
        """Log no missing threads from now on: ``close`` runs the calls itself where it has to."""
        self._is_about_to_close = True

    def close(self) -> None:
        """Run the calls that are waiting, then end the threads.

        Calls may wait for each other, so more threads are started as long as some calls wait. Where
        the system refuses a thread, as at some interpreters' exit, this thread runs the calls.
        Called from one of the calls, this method doesn't wait for the thread of that call, which
        ends by itself.
        """
        own = self._begin_close()
        self._mailbox.put(_last)
        while (change := self._next_change(own)) is not None:
            if own or not self._lend_a_hand():
                change.wait(None)
        for runner in list(self._ended):
            runner.join()
        if not own:  # calls that got no thread
            while (call := self._mailbox.take(0)) is not None:
                self._make(call)

    def abandon(self) -> None:
        """Run no more calls: this is a forked child, perhaps forked by one of the calls."""
        self._lock = threading.Lock()  # a thread that exists in the parent alone may have held it
        self._inherited = True

    def _start_one(self) -> None:
        number = self._started
        self._started += 1
        try:
            self._runners[number] = self._platform.run(
                partial(self._step, number), f"{self._name}-{number}"
            )
        except RuntimeError as error:  # the system refuses a thread now: the calls wait, try again
            if not self._refused and not self._is_about_to_close:
                logger.error("no %s thread can be started; its calls wait: %s", self._name, error)
            self._refused = True
            self._changed()
            if not self._watching:
                self._watch()
        else:
            self._refused = False

    def _begin_close(self) -> list[int]:
        """Note that the pool closes; return the number of the runner that this is called on."""
        this_thread = threading.get_ident()
        with self._lock:
            self._closing = self._is_about_to_close = True
            if self._waiting and not self._watching:
                self._watch()
            return [number for thread, number in self._busy if thread == this_thread]

    def _next_change(self, own: list[int]) -> Event | None:
        """Return an event for the next thread that ends or can't be started.

        None: the pool has no thread besides this one.
        """
        with self._lock:
            if all(number in own for number in self._runners):
                return None
            change = self._platform.event()
            self._changes.append(change)
            return change

    def _changed(self) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            change.set()

    def _lend_a_hand(self) -> bool:
        """Run one waiting call on this thread, where the system refuses a thread for it."""
        with self._lock:
            if not (self._refused and self._waiting):
                return False
        call = self._mailbox.take(0)
        if call is _last:
            self._mailbox.put(_last)  # after the calls that came in the meantime
        elif call is not None:
            with self._lock:
                self._waiting -= 1
                self._taken += 1
            self._make(call)
        return True

    def _step(self, number: int) -> bool:
        call = self._mailbox.take(0 if self._closing else IDLE_SECONDS)
        making = threading.get_ident(), number
        with self._lock:
            if call is None or call is _last:
                if not self._waiting:
                    return self._leave(number)
                if call is _last:
                    self._mailbox.put(_last)  # after the calls that came in the meantime
                return True  # where the call is None, one was put there at this very moment
            self._waiting -= 1
            self._taken += 1
            self._busy.append(making)
        try:
            self._make(call)
        finally:
            with self._lock:
                self._busy.remove(making)
        return not self._inherited

    def _leave(self, number: int) -> bool:
        """End this thread; while the pool closes, have the others end as well."""
        runner = self._runners.pop(number)
        if self._closing:
            self._ended.append(runner)
            self._mailbox.put(_last)
        self._changed()
        return False

    def _make(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException:  # even SystemExit, raised by a user's close(), must not end a thread
            logger.exception("ending a splice failed")

    def _watch(self) -> None:
        try:
            self._timers.after(STUCK_SECONDS, partial(self._look, self._taken))
        except (OSError, RuntimeError) as error:  # no descriptor: the next call tries it again
            if not self._is_about_to_close:
                logger.error("%s: calls wait until the next is submitted: %s", self._name, error)
        else:
            self._watching = True

    def _look(self, taken: int) -> None:
        """Start a thread if no call was taken since: then all of the threads hang."""
        with self._lock:
            self._watching = False
            if self._waiting:
                if self._taken == taken:
                    self._start_one()
                if not self._watching:
                    self._watch()


def _last() -> None:
    """End the thread that takes this call."""
