"""Connecting from a client's own address: FreeBSD's IP_BINDANY (ip(4), ip6(4))."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys

from ._addresses import Resolved, SocketAddress
from ._connecting import Prepare
from ._unix_sockets import UnixPeer

#: From netinet/in.h and netinet6/in6.h.
IP_BINDANY, IPV6_BINDANY = 24, 64

#: For each family, the level and option that let a socket be bound to any address.
_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_BINDANY),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_BINDANY),
}


def why_not_transparent() -> str | None:
    """Return why this process can't connect from clients' addresses; None: it can."""
    if not sys.platform.startswith("freebsd"):
        return "it needs IP_BINDANY, which only FreeBSD has"
    if os.geteuid() != 0:
        return "IP_BINDANY needs root's privileges"
    return None


def bind_as(client: SocketAddress) -> Prepare:
    """Return a function that binds a socket to the client's address, on a free port."""

    def prepare(sock: socket.socket, resolved: Resolved) -> None:
        # The client has reset already, and the system doesn't know its address, or it is at a Unix
        # socket, and has none.
        if not client or isinstance(client, UnixPeer):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        family, address = _plain(client)
        if family != resolved.family:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        sock.setsockopt(*_OPTIONS[family], 1)
        sock.bind(address)

    return prepare


def _plain(client: SocketAddress) -> tuple[socket.AddressFamily, SocketAddress]:
    """Return the client's family and its address, on any port.

    A listening socket for both families shows an IPv4 address as an IPv6 one.
    """
    parsed = ipaddress.ip_address(client[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return socket.AF_INET, (client[0], 0)
    if parsed.ipv4_mapped is not None:
        return socket.AF_INET, (str(parsed.ipv4_mapped), 0)
    return socket.AF_INET6, (client[0], 0, *client[2:])
