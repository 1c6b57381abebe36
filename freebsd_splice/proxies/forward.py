"""The TCP forwarder: every client is joined to one target."""

from __future__ import annotations

import socket

from ._addresses import Address
from ._server import Client, ProxyServer


def forwarder(
    target: Address,
    *,
    connect_timeout: float = 10.0,
    idle_timeout: float | None = None,
    grace: float = 10.0,
    keepalive: bool = True,
) -> ProxyServer:
    """A server that joins every client to ``target``; ``ProxyServer`` says what the rest means.

    The name of the target is looked up anew for each connection, and its addresses are tried in
    turn.  ::

        server = forwarder(Address("backend.example", 80))
        server.listen(Address("", 8080))
        asyncio.run(server.run())
    """

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        return await client.dial(target), (b"", b"")

    return ProxyServer(
        open_target,
        connect_timeout=connect_timeout,
        idle_timeout=idle_timeout,
        grace=grace,
        keepalive=keepalive,
    )
