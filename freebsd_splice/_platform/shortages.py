"""Calls that must not fail because the system is short of memory for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .._errors import SHORTAGES

__all__ = ["in_spite_of_shortages", "nothing_while_short", "raise_if_short"]

T = TypeVar("T")
U = TypeVar("U")

#: Seconds between two attempts. Whoever waits in such a call wants memory for one small thing.
_PAUSE = 0.01


def in_spite_of_shortages(call: Callable[[], T]) -> T:
    """Return what ``call`` returns; make it again for as long as something is short.

    For calls whose failure nobody could make up for: the wait of a thread that others rely on, its
    wake-up, and reading what has been delivered already.
    """
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
        time.sleep(_PAUSE)


def raise_if_short(error: OSError) -> None:
    """Raise ``error`` if it is a shortage's: a question was not answered, not even with no."""
    if error.errno in SHORTAGES:
        raise error


def nothing_while_short(call: Callable[[], list[U]]) -> list[U]:
    """Return what ``call`` returns; if something is short, an empty list after a pause.

    For waits whose caller has other things to do in time.
    """
    try:
        return call()
    except OSError as error:
        if error.errno not in SHORTAGES:
            raise
    time.sleep(_PAUSE)
    return []
