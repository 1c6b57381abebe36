"""Objects that a process has once, and that a forked child doesn't inherit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .threads import check_unpatched

T = TypeVar("T")


class PerProcess(Generic[T]):
    """An object with threads of its own, made when this process first needs it.

    A forked child can't use its parent's object: it closes its copies of the descriptors
    (``leave``) and makes an object of its own when it needs one.
    """

    def __init__(
        self,
        make: Callable[[], T],
        leave: Callable[[T], object],
        alive: Callable[[T], bool] = lambda made: True,
    ) -> None:
        self._make = make
        self._leave = leave
        self._alive = alive
        self._lock = threading.Lock()
        #: The object, if there is one; it may have ended.
        self.made: T | None = None
        in_forked_child(self._forget)

    def get(self) -> T:
        """Return the object; make a new one if there is none, or if it has ended.

        Raises:
            RuntimeError: gevent has patched modules that the package's threads need.
            Exception: whatever making the object raises.
        """
        made = self.made
        if made is not None and self._alive(made):  # the usual case, and often asked
            return made
        with self._lock:
            if self.made is None or not self._alive(self.made):
                check_unpatched()
                self.made = self._make()
            return self.made

    def replace(self, made: T | None) -> T | None:
        """Install ``made`` (None: nothing) and return the object before, without ending it."""
        with self._lock:
            before, self.made = self.made, made
            return before

    def _forget(self) -> None:
        self._lock = threading.Lock()  # a thread that the child lacks may have held the old one
        made, self.made = self.made, None
        if made is not None:
            self._leave(made)


def in_forked_child(call: Callable[[], object]) -> None:
    """Run ``call`` first thing in every child that is forked from now on."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
