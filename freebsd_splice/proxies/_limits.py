"""What one client may take of a proxy."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass

from ._addresses import SocketAddress


@dataclass(frozen=True)
class Limits:
    """Of one ``ProxyServer``, which is one process: each worker has its own."""

    #: Live connections.  While there are so many, the next clients wait in the system's queue
    #: (each listening socket beyond the first may let one more in).
    connections: int = 10_000
    #: Live connections of one client: an IPv4 address, or an IPv6 network of 64 bits, which is
    #: what one subscriber has.  Further ones are closed at once.
    per_client: int = 2_000
    #: Seconds from the accepting to the end of what is said before bytes are only passed on.
    handshake_timeout: float = 10.0
    #: Bytes that a client may send for that: a ClientHello with keys against quantum computers has
    #: some 1,800, and a request of HTTP or SOCKS is shorter mostly.
    handshake_bytes: int = 16_384


class Occupancy:
    """How many live connections each client has."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._live: Counter[str] = Counter()

    def enter(self, address: SocketAddress) -> str | None:
        """One more of that client's; gives what to ``leave`` with, None where it has too many."""
        client = client_of(address)
        if self._live[client] >= self._most and client:
            return None
        self._live[client] += 1
        return client

    def leave(self, client: str) -> None:
        self._live[client] -= 1
        if not self._live[client]:
            del self._live[client]  # or those who came once would be remembered for ever


def client_of(address: SocketAddress) -> str:
    """Who is counted as one; "" where the system doesn't say who it is."""
    if not address:
        return ""
    if ":" not in address[0]:  # IPv4, in numbers as the system gives them
        return str(address[0])
    parsed = ipaddress.IPv6Address(address[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
