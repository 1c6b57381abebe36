"""What ``Splice`` and ``Relay`` have in common: they run by themselves, and end once."""

from __future__ import annotations

import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._port import Notice
from ._runtime import Runtime

logger = logging.getLogger("freebsd_splice")

OutcomeT = TypeVar("OutcomeT")
Self = TypeVar("Self", bound="Waitable[Any]")


class Waitable(ABC, Generic[OutcomeT]):
    """Something under way that ends with an outcome."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._over = runtime.port.event()
        self._state = threading.Lock()
        self._outcome: OutcomeT | None = None
        self._callbacks: list[Callable[[Any], object]] = []
        self._notice: Notice | None = None

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> OutcomeT:
        """Wait until it is over, for at most ``timeout`` seconds.

        Raises TimeoutError where it isn't over by then; it goes on all the same.
        """
        self._check_process()
        if not self._over.wait(timeout):
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
                self._notice = self._runtime.port.notice()
                weakref.finalize(self, self._notice.close)
                if self._outcome is not None:
                    self._notice.give()
            return self._notice.fileno()

    def add_done_callback(self: Self, callback: Callable[[Self], object]) -> None:
        """Call ``callback(self)`` when it is over: on a thread of the package's, where it must be
        quick and must not wait for other splices, or here and now where it is over already."""
        self._check_process()
        with self._state:
            if self._outcome is None:
                self._callbacks.append(callback)
                return
        self._call(callback)

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
        self._runtime.errand(self._stop)

    def end_for_shutdown(self) -> None:
        """Cancel it, also while it is still being made, and wait for that."""
        self._stop()
        self._over.wait()

    def _not_made(self) -> None:
        """The constructor fails: nobody may wait for this one."""
        self._runtime.discard(self)
        self._over.set()

    @abstractmethod
    def _stop(self) -> None:
        """Bring the end about."""

    def _settle(self, outcome: OutcomeT) -> None:
        """It is over: tell everybody.  All that was borrowed has been given back."""
        with self._state:
            self._outcome = outcome
            callbacks, self._callbacks = self._callbacks, []
            # First: who is told by the notice finds it over.
            self._over.set()
            if self._notice is not None:
                self._notice.give()
        self._runtime.discard(self)
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self)
        except Exception:  # the thread that came upon the end has other splices to serve
            logger.exception("a done callback of %r failed", self)

    def _check_process(self) -> None:
        if self._runtime.inherited:
            raise RuntimeError(
                f"{self!r} goes on in the process that made it; a forked child has no part in it"
            )
