"""What ``Splice`` and ``Relay`` have in common: they run by themselves, and end once."""

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
    """Something under way that ends with an outcome."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._is_over = False
        self._over: Event | None = None  # made for the first who waits
        self._state = threading.Lock()
        self._outcome: OutcomeT | None = None
        self._listeners: list[Callable[[], object]] = []
        #: Each with what the thread blocked that added it.
        self._callbacks: deque[tuple[Callable[[Any], object], SignalMask]] = deque()
        self._calling = False  # some thread is to call them, until none is left
        self._notice: Notice | None = None

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._is_over

    def wait(self, timeout: float | None = None) -> OutcomeT:
        """Wait until it is over, for at most ``timeout`` seconds.

        Raises TimeoutError where it isn't over by then; it goes on all the same.
        """
        self._check_process()
        if not self._wait_until_over(timeout):
            raise TimeoutError(f"{self!r} is not over after {timeout} seconds; it goes on")
        assert self._outcome is not None
        return self._outcome

    def cancel(self) -> OutcomeT:
        """End it now, with nothing in flight any more, and say how far it came.

        What is over already keeps its outcome.
        """
        self._check_process()
        self._stop()
        return self.wait()

    def fileno(self) -> int:
        """A descriptor that becomes readable when it is over: for select, poll, any event loop.

        Made when it is first asked for, closed by leaving the ``with`` block or together with this
        object.  Nothing is to be read from it.  Raises OSError (EMFILE) where there is none left.
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
        """Call ``callback(self)`` when it is over.

        The callbacks of one splice or relay are called one after another, in the order in which
        they were added, on a thread that the package keeps for callbacks alone: they may wait, for
        other splices as well, make new ones, start processes, and call ``shutdown``; what they
        raise is logged.  That thread takes the signals that the thread took which added the
        callback.  While one callback takes long, those of other splices are called on further
        threads.

        Where it is over already, and no callback is left to be called, it is called here and now.
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
        """Call ``tell()`` when it is over, here and now or on whichever thread comes upon the end.

        For the package's own code, that doesn't wait and doesn't raise.
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
        self.cancel()
        if self._notice is not None:
            self._notice.close()

    def end_soon(self) -> None:
        """As ``cancel``, for a thread that must not wait: the end comes by itself."""
        self._runtime.run_blocking(self._stop)

    def end_for_shutdown(self) -> None:
        """Cancel it, also while it is still being made, and wait for that."""
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
        """The constructor fails: nobody may wait for this one."""
        self._runtime.discard(self)
        with self._state:
            self._say_over()

    @abstractmethod
    def _stop(self) -> None:
        """Bring the end about."""

    def _settle(self, outcome: OutcomeT) -> None:
        """It is over: tell everybody.  All that was borrowed has been given back."""
        with self._state:
            self._outcome = outcome
            listeners, self._listeners = self._listeners, []
            if self._callbacks:
                self._calling = True
                # First: a shutdown that has waited for this end then waits for the callbacks too.
                self._runtime.call_back(self._make_callbacks)
            # Before the notice: who is told by it finds it over.
            self._say_over()
            if self._notice is not None:
                self._notice.give()
        self._runtime.discard(self)
        for tell in listeners:
            tell()

    def _make_callbacks(self) -> None:
        """On a thread for callbacks."""
        while not self._runtime.inherited:  # a callback may fork: the rest is its parent's
            with self._state:  # which is held until it is over
                if not self._callbacks:
                    self._calling = False
                    return
                callback, mask = self._callbacks.popleft()
            try:
                with with_signal_mask(mask):
                    callback(self)
            except BaseException:  # ``sys.exit()`` even: others are to be called on this thread
                self._log_failure()

    def _log_failure(self) -> None:
        logger.exception("a done callback of %r failed", self)

    def _check_process(self) -> None:
        if self._runtime.inherited:
            raise RuntimeError(
                f"{self!r} goes on in the process that made it; a forked child has no part in it"
            )
