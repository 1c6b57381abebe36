"""The base class of ``Splice`` and ``Relay``: an operation runs by itself, and ends once."""

from __future__ import annotations

import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._platform.interface import Event, Notice
from ._platform.threads import SignalMask, signal_mask, with_signal_mask
from ._runtime import Runtime

logger = logging.getLogger("freebsd_splice")

OutcomeT = TypeVar("OutcomeT")
Self = TypeVar("Self", bound="Operation[Any]")


class Operation(ABC, Generic[OutcomeT]):
    """A splice or relay that is under way, and ends with an outcome."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._is_over = False
        self._over: Event | None = None  # made for the first who waits
        self._state = threading.Lock()
        self._outcome: OutcomeT | None = None
        self._listeners: list[Callable[[], object]] = []
        #: Each with the signals that were blocked in the thread that added it.
        self._callbacks: deque[tuple[Callable[[Any], object], SignalMask]] = deque()
        self._calling = False  # a thread for callbacks has them, until none is left
        self._notice: Notice | None = None

    @property
    def done(self) -> bool:
        """Whether the operation is over. Its outcome is then what ``wait()`` returns at once."""
        return self._is_over

    def wait(self, timeout: float | None = None) -> OutcomeT:
        """Wait until the operation is over, and return its outcome.

        Args:
            timeout: seconds to wait at most; None: until the end. Only the waiting is limited: the
                operation goes on after a TimeoutError. The constructor's ``timeout`` ends it.

        Raises:
            TimeoutError: the operation is not over after ``timeout`` seconds.
            RuntimeError: this process was forked from the one that made the operation.
        """
        self._check_process()
        if not self._wait_until_over(timeout):
            raise TimeoutError(f"{self!r} is not over after {timeout} seconds; it goes on")
        assert self._outcome is not None
        return self._outcome

    def cancel(self) -> OutcomeT:
        """End the operation now, and return its outcome, which says how far it came.

        No byte is in flight between the two sockets any more when this returns. An operation that
        is over already keeps the outcome that it has. Leaving a ``with`` block cancels as well.

        Raises:
            RuntimeError: this process was forked from the one that made the operation.
        """
        self._check_process()
        self._stop()
        return self.wait()

    def fileno(self) -> int:
        """Return a descriptor that becomes readable at the end: for select, poll, any event loop.

        Wait for it to be readable, then call ``wait()``; don't read from the descriptor, and don't
        close it. It is made by the first call, and closed by leaving the ``with`` block or together
        with this object.

        Raises:
            OSError: EMFILE: too many descriptors are open.
            RuntimeError: this process was forked from the one that made the operation.
        """
        self._check_process()
        with self._state:
            if self._notice is None:
                self._notice = self._runtime.platform.notice()
                weakref.finalize(self, self._notice.close)
                if self._outcome is not None:
                    self._notice.give()
            return self._notice.fileno()

    def add_done_callback(self: Self, callback: Callable[[Self], object]) -> None:
        """Call ``callback(self)`` once the operation is over.

        The callbacks of one splice or relay are called one after another, in the order in which
        they were added, on a thread that the package keeps for callbacks alone. So a callback may
        wait, for other splices as well, make new ones, start processes, and call ``shutdown``. An
        exception that it raises is logged. While it runs, its thread blocks the signals that were
        blocked in the thread that added it. While one callback takes long, the callbacks of other
        splices and relays are called on further threads.

        Where the operation is over already, and none of its callbacks is left to be called, this
        method calls the callback itself, before it returns.

        Args:
            callback: takes one argument, the splice or relay. Its ``wait()`` returns at once.

        Raises:
            RuntimeError: this process was forked from the one that made the operation.
        """
        self._check_process()
        with self._state:
            if self._outcome is None or self._calling:
                self._callbacks.append((callback, signal_mask()))
                return
        try:
            callback(self)
        except Exception:
            self._log_failure()

    def when_over(self, tell: Callable[[], object]) -> None:
        """Call ``tell()`` at the end, on the thread that finds it, or at once if it is over.

        For the package's own use: ``tell`` must not wait and must not raise.
        """
        with self._state:
            if self._outcome is None:
                self._listeners.append(tell)
                return
        tell()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel the operation, and close the descriptor that ``fileno`` made."""
        self.cancel()
        if self._notice is not None:
            self._notice.close()

    def end_soon(self) -> None:
        """Begin what ``cancel`` does, and don't wait for the end. For the package's own use."""
        self._runtime.run_blocking(self._stop)

    def end_for_shutdown(self) -> None:
        """Cancel it, even while it is still being made, and wait. For the package's own use."""
        self._stop()
        self._wait_until_over(None)

    def _wait_until_over(self, timeout: float | None) -> bool:
        with self._state:
            if self._is_over:
                return True
            if self._over is None:
                self._over = self._runtime.platform.event()
            over = self._over
        return over.wait(timeout)

    def _say_over(self) -> None:
        """With ``_state``."""
        self._is_over = True
        if self._over is not None:
            self._over.set()

    def _not_made(self) -> None:
        """Let nobody wait for this operation: its constructor fails."""
        self._runtime.discard(self)
        with self._state:
            self._say_over()

    @abstractmethod
    def _stop(self) -> None:
        """Have the operation end. Its outcome may be stored later, on another thread."""

    def _settle(self, outcome: OutcomeT) -> None:
        """Store the outcome and notify every waiter. The sockets have been given back before."""
        with self._state:
            self._outcome = outcome
            listeners, self._listeners = self._listeners, []
            if self._callbacks:
                self._calling = True
                # First: a shutdown that has waited for this end then waits for the callbacks too.
                self._runtime.call_back(self._make_callbacks)
            # Before the notice: whoever wakes up because of it must find the operation over.
            self._say_over()
            if self._notice is not None:
                self._notice.give()
        self._runtime.discard(self)
        for tell in listeners:
            tell()

    def _make_callbacks(self) -> None:
        """Call the callbacks one after another, on a thread for callbacks."""
        # A callback may fork: the callbacks after it are left to the parent process.
        while not self._runtime.inherited:
            with self._state:  # ``_settle`` holds it until ``done`` is true
                if not self._callbacks:
                    self._calling = False
                    return
                callback, mask = self._callbacks.popleft()
            try:
                with with_signal_mask(mask):
                    callback(self)
            except BaseException:  # even SystemExit: the thread has other callbacks to call
                self._log_failure()

    def _log_failure(self) -> None:
        logger.exception("a done callback of %r failed", self)

    def _check_process(self) -> None:
        if self._runtime.inherited:
            raise RuntimeError(
                f"{self!r} goes on in the process that made it; a forked child has no part in it"
            )
