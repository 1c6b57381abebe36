"""The TCP forwarder: every client is joined to a target."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from ._addresses import Address, Resolved
from ._limits import Limits
from ._proxy_headers import Network
from ._proxy_protocol import Version
from ._server import Client, OpenTarget, ProxyServer
from ._targets import RETRY_AFTER, Targets
from ._transparent import bind_as


def forwarder(
    target: Address | Sequence[Address],
    *,
    retry_after: float = RETRY_AFTER,
    transparent: bool = False,
    connect_timeout: float = 10.0,
    idle_timeout: float | None = None,
    grace: float = 10.0,
    keepalive: bool = True,
    buffer_size: int | None = None,
    limits: Limits | None = None,
    accept_proxy: Iterable[str | Network] = (),
    send_proxy: Version | None = None,
) -> ProxyServer:
    """A server that joins every client to ``target``; ``ProxyServer`` says what the rest means.

    The name of the target is looked up anew for each connection, and its addresses are tried in
    turn.  Of several targets each connection gets the next; one that can't be connected to is
    skipped for ``retry_after`` seconds.  ``transparent`` connects from the client's own address
    (FreeBSD; see ``docs/forward.md``).  ::

        server = forwarder(Address("backend.example", 80))
        server.listen(Address("", 8080))
        asyncio.run(server.run())
    """
    addresses = [target] if isinstance(target, Address) else list(target)
    if not addresses or not all(isinstance(each, Address) for each in addresses):
        raise TypeError(f"target must be an Address or a list of them, not {target!r}")
    return ProxyServer(
        to_targets(addresses, retry_after=retry_after, transparent=transparent),
        connect_timeout=connect_timeout,
        idle_timeout=idle_timeout,
        grace=grace,
        keepalive=keepalive,
        buffer_size=buffer_size,
        limits=limits,
        accept_proxy=accept_proxy,
        send_proxy=send_proxy,
    )


def to_targets(
    addresses: Sequence[Address], *, retry_after: float = RETRY_AFTER, transparent: bool = False
) -> OpenTarget:
    """What a ``ProxyServer`` needs to be a forwarder."""
    targets = Targets(addresses, retry_after)

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        prepare = bind_as(client.address) if transparent else _as_it_is
        return await targets.dial(client, prepare=prepare), (b"", b"")

    return open_target


def _as_it_is(sock: socket.socket, resolved: Resolved) -> None: ...
