"""Addresses: how they are written, what they resolve to, how they are shown."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any, NamedTuple

#: An address as ``socket.bind`` and ``socket.connect`` take it: (host, port), and two more numbers
#: for IPv6. A Unix socket has a path (a string) in its place, and a client there a ``UnixPeer``.
SocketAddress = tuple[Any, ...]

#: Bytes of the longest path of a Unix socket: sun_path, and a NUL behind it (unix(7), unix(4)).
_LONGEST_PATH = 107 if sys.platform == "linux" else 103


class Address(NamedTuple):
    """A host and a port, as they are written: no name has been looked up.

    ``str(address)`` is ``host:port``, with an IPv6 address in brackets.

    Attributes:
        host (str): a name or a numeric address, without brackets. "" stands for every address of
            this machine, and can be listened on alone.
        port (int): from 0 to 65535. Port 0 asks the system for a free one, and can be listened on
            alone.

    Example::

        Address("www.example.org", 443)
        Address("::1", 8080)
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(Address):
    """The path of a Unix socket, in the place of a host and a port.

    It can be listened on and connected to as any other address. ``str(address)`` is
    ``unix:/run/app.sock``. ``host`` is the path, ``port`` is 0.

    Args:
        path: where the socket's file is.

    Example::

        UnixAddress("/run/app.sock")
    """

    __slots__ = ()

    def __new__(cls, path: str) -> UnixAddress:
        return super().__new__(cls, path, 0)

    def __str__(self) -> str:
        return f"unix:{self.host}"


class Resolved(NamedTuple):
    """One of the addresses that a name stands for.

    ``str(resolved)`` is ``192.0.2.7:80`` or ``[2001:db8::1]:80``.

    Attributes:
        family (int): ``socket.AF_INET`` or ``socket.AF_INET6``.
        address: as ``socket.connect`` takes it: (host, port), and two more numbers for IPv6.
    """

    family: int
    address: SocketAddress

    def __str__(self) -> str:
        return show(self.address)


def parse_listen(text: str) -> Address:
    """Return what is written as ``host:port``, ``[v6]:port``, ``:port``, a port or ``unix:/path``.

    ``:port`` is every address of this machine, a port alone one of 127.0.0.1. Port 0 asks the
    system for a free one.

    Raises:
        ValueError: the message says what is wrong.
    """
    return _unix_address(text) or _parse(_with_host(text))


def parse_target(text: str) -> Address:
    """Return what is written as ``host:port``, ``[v6]:port``, ``port`` or ``unix:/path``.

    A port alone is one of 127.0.0.1.

    Raises:
        ValueError: the message says what is wrong.
    """
    return _unix_address(text) or parse_authority(_with_host(text))


def parse_authority(text: str) -> Address:
    """Return what is written as ``host:port`` or ``[v6]:port``, as clients write it.

    No client can ask for a Unix socket: those are this machine's own.

    Raises:
        ValueError: the message says what is wrong.
    """
    address = _parse(text)
    if not address.host:
        raise ValueError(f"{text!r} has no host to connect to: write host:port")
    if not address.port:
        raise ValueError(f"{text!r}: nothing can be connected to at port 0")
    return address


def show(address: SocketAddress | str | bytes | None) -> str:
    """Return the address as text: ``127.0.0.1:80``, ``[fe80::1%eth0]:80`` or ``unix:/path``.

    "unknown" stands for a missing address: some systems have none for a client that has reset its
    connection already.
    """
    if not address:
        return "unknown"
    if isinstance(address, (str, bytes)):  # where a Unix socket is; Linux has names in bytes too
        return f"unix:{os.fsdecode(address)}"
    if type(address) is not tuple:  # a ``UnixPeer``
        return str(address)
    if len(address) == 2 and ":" not in address[0]:  # IPv4, and in numbers already
        return f"{address[0]}:{address[1]}"
    flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    host, port = socket.getnameinfo(address, flags)
    return str(Address(host, int(port)))


def look_up(address: Address, flags: int = 0) -> list[Resolved]:
    """Return all addresses that a name stands for, in the system's order.

    An IPv4-mapped address (``::ffff:192.0.2.1``) is returned as the IPv4 address that it is:
    FreeBSD and OpenBSD connect no IPv6 socket to it, and no system binds an IPv6-only socket to it.

    Blocks until the name servers have answered.

    Args:
        address: the host and port.
        flags: those of ``getaddrinfo``.

    Raises:
        socket.gaierror: the look-up failed.
        UnicodeError: the host is not a valid host name.
    """
    found = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags
    )
    resolved = (_unmapped(Resolved(family, where)) for family, _, _, _, where in found)
    return list(dict.fromkeys(resolved))


def _unmapped(resolved: Resolved) -> Resolved:
    host, port = resolved.address[:2]
    if ":" not in host:
        return resolved
    # IPv4-compatible addresses (``::192.0.2.1``) and those of translators are IPv6 addresses.
    mapped = ipaddress.IPv6Address(host).ipv4_mapped
    return resolved if mapped is None else Resolved(socket.AF_INET, (str(mapped), port))


def _unix_address(text: str) -> UnixAddress | None:
    """Return what is written as ``unix:/path``, as nginx has it; None where it is something else.

    A host can have the name "unix": what follows its colon is a number then.
    """
    if text.startswith(("/", "unix@")):
        raise ValueError(f"{text!r}: write the path of a Unix socket as unix:/path")
    kind, _, path = text.partition(":")
    if kind != "unix" or path.isdecimal():
        return None
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(f"{text!r}: write the whole path of the Unix socket, as unix:/path")
    if "\0" in path:
        raise ValueError(f"{text!r}: a path has no NUL")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(f"{text!r}: the path of a Unix socket has {_LONGEST_PATH} bytes at most")
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError(f"{text!r}: Python has no Unix sockets on this system")
    return UnixAddress(path)


def _with_host(text: str) -> str:
    return f"127.0.0.1:{text}" if text.isdecimal() else text


def _parse(text: str) -> Address:
    if "://" in text:
        raise ValueError(f"{text!r}: not a URL: write host:port")
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or set(host) & set("[] "):
        raise ValueError(f"{text!r} is not an address: write host:port or [v6]:port")
    if bracketed and ":" not in host:
        raise ValueError(f"{text!r}: there is no IPv6 address between the brackets")
    if ":" in host and not bracketed:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [::1]:8080")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"{text!r}: the port must be a number from 0 to 65535")
    return Address(host, int(port))
