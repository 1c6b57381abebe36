"""Before a side is closed: what its writer and its socket hold was counted, and must arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from time import monotonic
from typing import Protocol

from .._pair_policy import Closing, Delivery

#: How often a side has to be found empty before it is reset: no transport says exactly when the
#: last of it has gone to the socket.
_LOOKS_BEFORE_RESET = 3
_SECONDS_BETWEEN = 0.005

#: Seconds that closing takes at most where nothing has to be waited for.
_A_MOMENT = 0.1


class Held(Protocol):
    """A side, as far as this goes."""

    @property
    def pending(self) -> int: ...

    @property
    def is_lost(self) -> bool: ...

    def undelivered(self) -> int | None: ...


async def deliver(side: Held, how: Closing, linger: float) -> int | None:
    """Wait until the side can be closed, or its peer has taken nothing for ``linger`` seconds.

    Gives the bytes that may not have arrived; None: the system doesn't tell. Closing alone isn't
    enough for what a TLS writer holds: asyncio gives its close 30 s in all, and drops the rest.
    """
    delivery, empty = Delivery(monotonic(), linger), 0
    while not side.is_lost:
        left = side.undelivered() if how.after_delivery else side.pending
        empty = 0 if left != 0 else empty + 1
        pause = delivery.look(monotonic(), left)
        if pause is None and (left != 0 or empty == (_LOOKS_BEFORE_RESET if how.reset else 1)):
            return delivery.unacknowledged
        await asyncio.sleep(pause or _SECONDS_BETWEEN)
    delivery.died(side.undelivered())
    return delivery.unacknowledged


async def go_on_behind(closing: Awaitable[object]) -> None:
    """Have that done by a task of its own, which goes on when its caller's is cancelled or over.

    Where nothing has to be waited for it is done when this returns, cancelled or not.
    """
    task = asyncio.ensure_future(closing)
    _behind.add(task)
    task.add_done_callback(_behind.discard)
    until = monotonic() + _A_MOMENT
    while not task.done() and (left := until - monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):  # its caller has been told already
            await asyncio.wait([task], timeout=left)


#: The loop itself keeps no task alive.
_behind: set[asyncio.Future[object]] = set()
