"""What a process has once, and what a forked child has none of."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .threads import check_unpatched

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Something with threads of its own, made when this process first needs it.

    A forked child has no part in its parent's: it closes its copies (``leave``) and makes its own.
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
        #: The one there is, which may be alive no more.
        self.made: T | None = None
        in_forked_child(self._forget)

    def get(self) -> T:
        """The one there is, or a new one.

        Raises RuntimeError where gevent has taken from the standard library what threads are made
        of, and what making it raises.
        """
        with self._lock:
            if self.made is None or not self._alive(self.made):
                check_unpatched()
                self.made = self._make()
            return self.made

    def replace(self, made: T | None) -> T | None:
        """Have ``made`` be the one, or none; gives back the one before, which is not ended."""
        with self._lock:
            before, self.made = self.made, made
            return before

    def _forget(self) -> None:
        self._lock = threading.Lock()  # a thread that isn't here may have held it
        made, self.made = self.made, None
        if made is not None:
            self._leave(made)


def in_forked_child(call: Callable[[], object]) -> None:
    """Have ``call`` made in every child that is forked from now on, before anything else there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
