"""Deleting a kqueue's filters, so that none of them is left."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from .shortages import in_spite_of_shortages

__all__ = ["delete_filters"]


def delete_filters(kqueue: Any, module: Any, filters: Iterable[tuple[int, int]]) -> None:
    """Delete those filters, whether or not each is there, and although something may be short.

    Args:
        kqueue: the kqueue object.
        module: the module with the constants.
        filters: a descriptor and a filter each.
    """
    changes = [module.kevent(number, which, module.KQ_EV_DELETE) for number, which in filters]
    try:
        kqueue.control(changes, 0, 0)
    except OSError:  # kevent(2): the changes before the one that failed were made
        for change in changes:
            with suppress(OSError):  # it was deleted, or its descriptor closed, which deletes it
                in_spite_of_shortages(partial(kqueue.control, [change], 0, 0))
