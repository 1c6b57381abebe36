"""How much clients may take of a proxy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ._addresses import SocketAddress


@dataclass(frozen=True)
class Limits:
    """How much clients may take of one ``ProxyServer``; each worker process has its own limits.

    Attributes:
        connections (int): live connections, 10,000 unless given (``--max-connections``). While
            there are that many, further clients wait in the system's queue. Each listening socket
            beyond the first may let one more in.
        per_client (int): live connections of one client, 2,000 unless given
            (``--max-per-client``). A client is an IPv4 address, or an IPv6 network of 64 bits,
            which is what one subscriber has; at a Unix socket it is the user of the process that
            connects. Further connections are closed at once.
        handshake_timeout (float): seconds from the accepting to the end of the handshake, 10 unless
            given (``--handshake-timeout``).
        handshake_bytes (int): bytes that a client may send during the handshake, 16,384 unless
            given (``--handshake-size``). A ClientHello with post-quantum keys has some 1,800; a
            request of HTTP or SOCKS is mostly shorter.

    Example::

        ProxyServer(open_target, limits=Limits(per_client=50, handshake_timeout=5))
    """

    connections: int = 10_000
    per_client: int = 2_000
    handshake_timeout: float = 10.0
    handshake_bytes: int = 16_384


class Occupancy:
    """Counts the live connections of each client."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._live: dict[str, int] = {}

    def enter(self, address: SocketAddress) -> str | None:
        """Count one more connection, and return the name to ``leave`` with.

        None: the client has too many already.
        """
        client = client_of(address)
        live = self._live.get(client, 0)
        if live >= self._most and client:
            return None
        self._live[client] = live + 1
        return client

    def leave(self, client: str) -> None:
        self._live[client] -= 1
        if not self._live[client]:
            del self._live[client]  # else clients that came once would be remembered for ever


def client_of(address: SocketAddress) -> str:
    """Return the name that a client is counted under; "" where its address is unknown."""
    if not address:
        return ""
    if type(address) is not tuple:  # a ``UnixPeer``: all connections of a user are one client's
        return str(address)
    if ":" not in address[0]:  # IPv4, in numbers as the system gives them
        return str(address[0])
    parsed = ipaddress.IPv6Address(address[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
