"""The TLS proxy, which joins each client to a target by the server name that it asks for.

TLS goes through the proxy from end to end: it has no key and no certificate. Example::

    server = ProxyServer(by_server_name(Routes.load("/etc/proxy.toml")))
    server.listen(Address("", 443))
    asyncio.run(server.run())
"""

from __future__ import annotations

import errno
import socket

from ._client import Client, OpenTarget
from ._client_hello import ClientHello, HelloReader, MalformedError
from ._connecting import TargetError
from ._handshake import HandshakeError
from ._name_servers import NameServers, needed_for
from ._routes import Routes
from ._services import Target
from ._targets import RETRY_AFTER, Targets

#: Fatal alerts (RFC 8446, 6.2), in records of TLS 1.2, which all clients can read.
_DECODE_ERROR, _INTERNAL_ERROR, _UNRECOGNIZED_NAME = (
    bytes((21, 3, 3, 0, 2, 2, alert)) for alert in (50, 80, 112)
)

#: How many of a client's protocols the log names.
_MOST_NAMED = 4


def by_server_name(
    routes: Routes, *, retry_after: float = RETRY_AFTER, resolver: NameServers | None = None
) -> OpenTarget:
    """Return the function that makes a ``ProxyServer`` join TLS clients by server name.

    The proxy reads the ClientHello and nothing more, and passes it on as it came. A client without
    a route gets the alert ``unrecognized_name``. The log names the server name.

    Args:
        routes: the targets for each server name. Of several targets each client gets the next.
        retry_after: seconds for which a target that can't be connected to is skipped, where there
            are others.
        resolver: looks the targets up; None: the system looks names up, and ``NameServers()``
            services.

    Example::

        server = ProxyServer(by_server_name(Routes.load("/etc/sni.toml")))
        server.listen(Address("", 443))
        asyncio.run(server.run())          # until server.stop()
    """
    known: dict[tuple[Target, ...], Targets] = {}
    chosen = resolver or needed_for(routes.targets())

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        hello = await _read_hello(client)
        client.server_name = hello.server_name
        found = routes.find(hello)
        if found is None:
            await client.handshake.refuse(_UNRECOGNIZED_NAME)
            raise HandshakeError(errno.EACCES, f"no route for {_described(hello)}")
        targets = known.get(found)
        if targets is None:
            targets = known[found] = Targets(found, retry_after, chosen)
        try:
            target = await targets.dial(client)
        except TargetError:
            await client.handshake.refuse(_INTERNAL_ERROR)
            raise
        return target, (bytes(client.handshake.received), b"")

    return open_target


async def _read_hello(client: Client) -> ClientHello:
    try:
        return await client.handshake.read(HelloReader(client.handshake.largest).feed)
    except MalformedError as error:
        await client.handshake.refuse(_DECODE_ERROR)
        raise HandshakeError(errno.EPROTO, f"client did not begin TLS: {error}") from None


def _described(hello: ClientHello) -> str:
    """Return what no route is for, without the server name, which the log names anyway."""
    name = "a client without a server name" if hello.server_name is None else "this server name"
    if not hello.protocols:
        return name
    # A protocol's name can have any bytes.
    named = ", ".join(ascii(protocol) for protocol in hello.protocols[:_MOST_NAMED])
    others = len(hello.protocols) - _MOST_NAMED
    return f"{name} with {named} and {others} more" if others > 0 else f"{name} with {named}"
