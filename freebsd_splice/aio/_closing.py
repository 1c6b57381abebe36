"""Before a copied side is closed: what its writer holds was counted, and must reach its peer."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

#: Seconds in which a peer has to take something of what is held for it.
STANDSTILL_SECONDS = 10.0

#: Seconds between two looks: no transport says when the last of it has gone.
_LOOK_SECONDS = 0.005


class Held(Protocol):
    """A side, as far as this goes."""

    @property
    def pending(self) -> int: ...

    @property
    def is_lost(self) -> bool: ...


async def flush_before_closing(side: Held, *, looks: int) -> None:
    """Wait until nothing is held, in so many looks, or nobody takes it any more.

    Closing isn't enough for TLS: asyncio gives its close 30 s in all, and drops the rest.
    """
    held, changed, empty = -1, monotonic(), 0
    while not side.is_lost:
        pending = side.pending
        empty = 0 if pending else empty + 1
        if empty == looks:
            return
        now = monotonic()
        if pending != held:
            held, changed = pending, now
        elif now >= changed + STANDSTILL_SECONDS:
            return
        await asyncio.sleep(_LOOK_SECONDS)
