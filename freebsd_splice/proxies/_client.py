"""A client, as the function that opens its target is given it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from .. import Relay
from ._addresses import Address, SocketAddress, show
from ._connecting import Prepare, Refusal, Spare
from ._handshake import Handshake
from ._limits import client_of

if TYPE_CHECKING:
    from ._server import ProxyServer


class Client:
    """An accepted client, as a proxy's ``open_target`` is given it."""

    def __init__(
        self,
        server: ProxyServer,
        sock: socket.socket,
        address: SocketAddress,
        handshake: Handshake,
        spare: Spare,
    ) -> None:
        #: Non-blocking; the server closes it.
        self.socket = sock
        self.address = address
        #: Its address, as the log shows it.
        self.name = show(address)
        #: Who it counts as, for limits and turns: an IPv4 address or an IPv6 network.
        self.counts_as = client_of(address)
        #: For what it says before its bytes are only passed on.
        self.handshake = handshake
        self.target: socket.socket | None = None
        self.relay: Relay | None = None
        self.spare = spare
        self._server = server

    async def dial(
        self,
        address: Address,
        *,
        refusal: Refusal = lambda resolved: None,
        prepare: Prepare = lambda sock, resolved: None,
    ) -> socket.socket:
        """Connect to the first address of the name that answers, within ``connect_timeout``.

        ``refusal`` says of each address why nobody may connect to it, or None; ``prepare`` is given
        each socket before it connects.  While there are too few descriptors, it waits for some: the
        whole never takes more than twice ``connect_timeout``.  Raises TargetError;
        RefusedTargetError where all addresses are refused.
        """
        with self.handshake.suspended(), self.handshake.during(f"while connecting to {address}"):
            return await self._server.dial_for(self, address, refusal, prepare)


#: Connect to where this client wants to go.  The second part is what has been read already and
#: must go first: (from the client, from the target).  An OSError is logged, the client closed.
OpenTarget = Callable[[Client], Awaitable[tuple[socket.socket, tuple[bytes, bytes]]]]
