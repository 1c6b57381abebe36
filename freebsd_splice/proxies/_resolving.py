"""Looking names up, for one event loop."""

from __future__ import annotations

import os
import socket
from functools import lru_cache, partial

from .._platform.threads import start as start_thread
from ._addresses import Address, Resolved, look_up
from ._fair_executor import FairExecutor

#: How many look-ups are under way at a time. Clients choose the names, and a name whose servers
#: don't answer keeps a thread for as long as the system tries.
MOST_LOOK_UPS = 64

#: How many of the look-ups under way may be one client's.
MOST_OF_ONE_CLIENT = 8

#: A failed look-up has not lacked descriptors where that many are free: it takes some four, and
#: each client that is accepted takes some eleven for a moment.
_ENOUGH = 20


class Resolver:
    """Looks names up in threads of its own: once for all who want the same name at a time.

    The loop's own ``getaddrinfo`` runs in threads that the end of the program waits for, however
    long a name server that doesn't answer keeps them. Nobody waits for the threads of this class.
    """

    def __init__(self) -> None:
        self._fair_executor: FairExecutor[Address, list[Resolved]] = FairExecutor(
            MOST_LOOK_UPS, MOST_OF_ONE_CLIENT, partial(start_thread, name="look up")
        )

    async def look_up(self, address: Address, seconds: float, client: str = "") -> list[Resolved]:
        """Return all addresses that a name stands for.

        Args:
            address: the host and port.
            seconds: how long to wait.
            client: whose turn the look-up takes.

        Raises:
            asyncio.TimeoutError: there was no answer within ``seconds``.
            OSError: there were too few descriptors (EMFILE, ENFILE) or threads (ENOMEM).
            socket.gaierror, UnicodeError: as ``_addresses.look_up``.
        """
        found = numeric(address)
        if found:
            return list(found)
        return await self._fair_executor.do(address, client, partial(_look_up, address), seconds)


@lru_cache(maxsize=1024)
def numeric(address: Address) -> tuple[Resolved, ...]:
    """Return what an address in numbers is, always; nothing for a name."""
    if "%" in address.host:  # an interface, whose number can change
        return ()
    try:
        return tuple(look_up(address, socket.AI_NUMERICHOST))
    except (socket.gaierror, UnicodeError):
        return ()


def _look_up(address: Address) -> list[Resolved]:
    """Look a name up, in a thread; raise OSError (EMFILE, ENFILE) where descriptors were short.

    The C library says then that there is no such name, or EBUSY as an error of the system (glibc):
    it can't read its files or ask a server.
    """
    try:
        return look_up(address)
    except OSError:
        check_descriptors()
        raise


def check_descriptors() -> None:
    """Raise OSError unless so many descriptors are free that a look-up can't have lacked any."""
    held: list[int] = list(os.pipe())
    try:
        while len(held) < _ENOUGH:
            held.append(os.dup(held[0]))
    finally:
        for descriptor in held:
            os.close(descriptor)
