"""Looking names up, for one event loop."""

from __future__ import annotations

import contextlib
import os
import socket
from functools import partial

from .._platform.threads import start as start_thread
from ._addresses import Address, Resolved, look_up
from ._fair_executor import FairExecutor

#: Look-ups under way at a time.  Clients choose the names, and those whose name servers don't
#: answer keep a thread for as long as the system tries.
MOST_LOOK_UPS = 64

#: Free descriptors with which a look-up that fails has not lacked any: it takes some four, and for
#: each client that is accepted some eleven are taken for a moment.
_ENOUGH = 20

#: Of these, those of one client.
MOST_OF_ONE_CLIENT = 8


class Resolver:
    """Looks names up in threads of its own: one for all who want the same name at a time.

    The loop's own ``getaddrinfo`` runs in threads that the end of the program waits for, however
    long a name server that has gone away keeps them.  Nobody waits for these.
    """

    def __init__(self) -> None:
        self._fair_executor: FairExecutor[Address, list[Resolved]] = FairExecutor(
            MOST_LOOK_UPS, MOST_OF_ONE_CLIENT, partial(start_thread, name="look up")
        )

    async def look_up(self, address: Address, seconds: float, client: str = "") -> list[Resolved]:
        """All that it stands for.  ``client`` is whose turn it takes.

        Raises asyncio.TimeoutError, OSError for lack of descriptors, and what
        ``_addresses.look_up`` raises.
        """
        with contextlib.suppress(socket.gaierror, UnicodeError):
            return look_up(address, socket.AI_NUMERICHOST)
        return await self._fair_executor.do(address, client, partial(_look_up, address), seconds)


def _look_up(address: Address) -> list[Resolved]:
    """In a thread.  Raises OSError (EMFILE, ENFILE) where there were no descriptors to do it with.

    The C library says then that there is no such name: it can't read its files, or ask anybody.
    """
    try:
        return look_up(address)
    except socket.gaierror:
        _check_descriptors()
        raise


def _check_descriptors() -> None:
    """Whether so many are free that a look-up can't have lacked any while others took theirs."""
    held: list[int] = list(os.pipe())
    try:
        while len(held) < _ENOUGH:
            held.append(os.dup(held[0]))
    finally:
        for descriptor in held:
            os.close(descriptor)
