"""Looking names up, for one event loop."""

from __future__ import annotations

import contextlib
import socket
from functools import partial

from .._threads import start as start_thread
from ._addresses import Address, Resolved, look_up
from ._turns import Turns

#: Look-ups under way at a time.  Clients choose the names, and those whose name servers don't
#: answer keep a thread for as long as the system tries.
MOST_LOOK_UPS = 64

#: Of these, those of one client.
MOST_OF_ONE_CLIENT = 8


class Resolver:
    """Looks names up in threads of its own: one for all who want the same name at a time.

    The loop's own ``getaddrinfo`` runs in threads that the end of the program waits for, however
    long a name server that has gone away keeps them.  Nobody waits for these.
    """

    def __init__(self) -> None:
        self._turns: Turns[Address, list[Resolved]] = Turns(
            MOST_LOOK_UPS, MOST_OF_ONE_CLIENT, partial(start_thread, name="look up")
        )

    async def look_up(self, address: Address, seconds: float, client: str = "") -> list[Resolved]:
        """All that it stands for.  ``client`` is whose turn it takes.

        Raises asyncio.TimeoutError, and what ``_addresses.look_up`` raises.
        """
        with contextlib.suppress(socket.gaierror, UnicodeError):
            return look_up(address, socket.AI_NUMERICHOST)
        return await self._turns.do(address, client, lambda: look_up(address), seconds)
