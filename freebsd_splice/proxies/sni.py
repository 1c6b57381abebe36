"""The TLS proxy: joins each client to a target by the name that it asks for, and reads no more.

TLS goes through it from end to end: it has no key and no certificate.  ::

    server = ProxyServer(by_server_name(Routes.load("/etc/proxy.toml")))
    server.listen(Address("", 443))
    asyncio.run(server.run())
"""

from __future__ import annotations

import errno
import socket

from ._addresses import Address
from ._client_hello import ClientHello, HelloReader, MalformedError
from ._connecting import TargetError
from ._handshake import HandshakeError
from ._routes import Routes
from ._server import Client, OpenTarget
from ._targets import RETRY_AFTER, Targets

#: Alerts (RFC 8446, 6.2), as fatal ones, in records of TLS 1.2 as any client reads them.
_DECODE_ERROR, _INTERNAL_ERROR, _UNRECOGNIZED_NAME = (
    bytes((21, 3, 3, 0, 2, 2, alert)) for alert in (50, 80, 112)
)

#: How many of a client's protocols are in the log.
_MOST_NAMED = 4


def by_server_name(routes: Routes, *, retry_after: float = RETRY_AFTER) -> OpenTarget:
    """What a ``ProxyServer`` needs to send each client to the target of its server name.

    Of several targets each client gets the next; one that can't be connected to is skipped for
    ``retry_after`` seconds.
    """
    known: dict[tuple[Address, ...], Targets] = {}

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        hello = await _read_hello(client)
        client.server_name = hello.server_name
        addresses = routes.find(hello)
        if addresses is None:
            await client.handshake.refuse(_UNRECOGNIZED_NAME)
            raise HandshakeError(errno.EACCES, f"no route for {_describe(hello)}")
        targets = known.setdefault(addresses, Targets(addresses, retry_after))
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


def _describe(hello: ClientHello) -> str:
    name = "a client without a server name" if hello.server_name is None else hello.server_name
    if not hello.protocols:
        return name
    # Any bytes are a protocol's name.
    named = ", ".join(ascii(protocol) for protocol in hello.protocols[:_MOST_NAMED])
    others = len(hello.protocols) - _MOST_NAMED
    return f"{name} with {named} and {others} more" if others > 0 else f"{name} with {named}"
