"""Connecting for the clients of a server, which wait while descriptors are short."""

from __future__ import annotations

import asyncio
import socket

from ._addresses import Address, Resolved
from ._connecting import (
    Dialer,
    LookUp,
    Prepare,
    Refusal,
    ReservedDescriptors,
    StarvedError,
    TargetError,
    reason_of,
    set_buffers,
)
from ._pausing import Shortage

#: Descriptors that a connection needs besides its client's and its target's.
_NEEDED_TO_JOIN = 0


class Dialing:
    """Connects for the clients of one server.

    Args:
        timeout: seconds for one attempt, with all addresses of a name.
        buffer_size: as for ``ProxyServer``.
        shortage: lets a client wait for descriptors.
    """

    def __init__(self, timeout: float, buffer_size: int | None, shortage: Shortage) -> None:
        self._timeout = timeout
        self._buffer_size = buffer_size
        self._shortage = shortage
        self._dialer = Dialer(timeout)

    async def dial(
        self,
        reserved: ReservedDescriptors,
        counts_as: str,
        address: Address,
        refusal: Refusal,
        prepare: Prepare,
        look_up: LookUp | None,
    ) -> socket.socket:
        """Connect for a client, as ``Client.dial`` says.

        An attempt that meets a shortage is repeated after a while. Each attempt has ``timeout``,
        and the last begins no later than that after the first; StarvedError is raised then.
        """
        loop = asyncio.get_running_loop()
        last_begins = loop.time() + self._timeout

        def make_ready(sock: socket.socket, resolved: Resolved) -> None:
            set_buffers(sock, self._buffer_size)
            prepare(sock, resolved)

        while True:
            try:
                return await self._dialer.dial(
                    address,
                    refusal=refusal,
                    prepare=make_ready,
                    before_socket=lambda: reserved.keep(_NEEDED_TO_JOIN),
                    client=counts_as,
                    look_up=look_up,
                )
            except TargetError:
                raise
            except OSError as error:
                await self._shortage.wait_after(error, last_begins - loop.time())
                if loop.time() >= last_begins:
                    raise StarvedError(address, reason_of(error)) from error
