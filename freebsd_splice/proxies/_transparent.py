"""Connecting from somebody else's address: FreeBSD's IP_BINDANY (ip(4), ip6(4))."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys

from ._addresses import Resolved, SocketAddress
from ._connecting import Prepare

#: netinet/in.h and netinet6/in6.h.
IP_BINDANY, IPV6_BINDANY = 24, 64

#: Level and option that let a socket of the family be bound to any address.
_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_BINDANY),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_BINDANY),
}


def why_not_transparent() -> str | None:
    """Why this system can't do it; None: it can."""
    if not sys.platform.startswith("freebsd"):
        return "it takes IP_BINDANY, which FreeBSD alone has"
    if os.geteuid() != 0:
        return "IP_BINDANY takes root's privileges"
    return None


def bind_as(client: SocketAddress) -> Prepare:
    """Have the target see the client's address, on a port of the system's choice."""

    def prepare(sock: socket.socket, resolved: Resolved) -> None:
        if not client:  # it has reset already, and the system doesn't say who it was
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        family, address = _plain(client)
        if family != resolved.family:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        sock.setsockopt(*_OPTIONS[family], 1)
        sock.bind(address)

    return prepare


def _plain(client: SocketAddress) -> tuple[socket.AddressFamily, SocketAddress]:
    """Its family and its address, on any port; a listener for both families shows IPv4 as IPv6."""
    parsed = ipaddress.ip_address(client[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return socket.AF_INET, (client[0], 0)
    if parsed.ipv4_mapped is not None:
        return socket.AF_INET, (str(parsed.ipv4_mapped), 0)
    return socket.AF_INET6, (client[0], 0, *client[2:])
