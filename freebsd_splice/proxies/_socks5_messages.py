"""The messages of SOCKS 5 (RFC 1928) and its user names and passwords (RFC 1929), as bytes.

Each ``read_`` function takes the bytes that have arrived so far. It returns what they say and how
many bytes that took, or None where more must arrive. It raises MalformedError at the first byte
that no client would send.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from enum import IntEnum
from typing import NamedTuple

from ._addresses import Address, SocketAddress

#: Methods of authentication: a client offers some, and the server chooses one.
NO_AUTHENTICATION = 0
CREDENTIALS = 2
NO_ACCEPTABLE_METHOD = 0xFF

#: The command of a request; the others are BIND (2) and UDP ASSOCIATE (3).
CONNECT = 1

_VERSION = 5
_CREDENTIALS_VERSION = 1
_TLS_HANDSHAKE = 0x16

_IPV4, _NAME, _IPV6 = 1, 3, 4


class Reply(IntEnum):
    """The code in the answer to a request."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class MalformedError(ValueError):
    """The bytes are not such a message.

    ``reply`` is the code that the client is answered with; None where the protocol has none.
    """

    def __init__(self, message: str, reply: Reply | None = None) -> None:
        super().__init__(message)
        self.reply = reply


class Request(NamedTuple):
    """A client's request."""

    #: CONNECT, or any other number that the client has sent.
    command: int
    address: Address


def read_greeting(data: bytes) -> tuple[frozenset[int], int] | None:
    """Read the methods that the client offers."""
    _check_version(data)
    if len(data) < 2:
        return None
    if not data[1]:
        raise MalformedError("the client offers no method at all")
    end = 2 + data[1]
    return (frozenset(data[2:end]), end) if len(data) >= end else None


def read_credentials(data: bytes) -> tuple[str, str, int] | None:
    """Read the user and the password; either can be empty, and have any characters."""
    if data and data[0] != _CREDENTIALS_VERSION:
        raise MalformedError(f"version {data[0]} of user name and password, not 1")
    user = _counted_text(data, 1)
    if user is None:
        return None
    password = _counted_text(data, user[1])
    return None if password is None else (user[0], *password)


def read_request(data: bytes) -> tuple[Request, int] | None:
    """Read the command and its target; a name is as the client wrote it, in printable ASCII."""
    _check_version(data)
    if len(data) > 2 and data[2]:
        raise MalformedError("the reserved byte is not 0", Reply.GENERAL_FAILURE)
    found = _read_host(data)
    if found is None:
        return None
    host, end = found
    if len(data) < end + 2:
        return None
    port = int.from_bytes(data[end : end + 2], "big")
    if data[1] == CONNECT and not port:
        raise MalformedError("nothing can be connected to at port 0", Reply.GENERAL_FAILURE)
    return Request(data[1], Address(host, port)), end + 2


def method_reply(method: int) -> bytes:
    """Return the answer to a greeting."""
    return bytes([_VERSION, method])


def credentials_reply(ok: bool) -> bytes:
    """Return the answer to credentials; the server must close the connection after a refusal."""
    return bytes([_CREDENTIALS_VERSION, 0 if ok else 1])


def reply(code: Reply, bound: SocketAddress | None) -> bytes:
    """Return the answer to a request, with the proxy's own address towards the target."""
    host, port = bound[:2] if bound else ("0.0.0.0", 0)
    address = ipaddress.ip_address(host)
    kind = _IPV4 if address.version == 4 else _IPV6
    return bytes([_VERSION, code, 0, kind]) + address.packed + struct.pack("!H", port)


def reply_for(error: OSError) -> Reply:
    """Return the code that tells a client why there is no connection to its target."""
    return _REPLIES.get(error.errno or 0, Reply.GENERAL_FAILURE)


_REPLIES = {
    errno.ECONNREFUSED: Reply.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    # TTL_EXPIRED is about hops; a host that doesn't answer is out of reach.
    errno.ETIMEDOUT: Reply.HOST_UNREACHABLE,
    errno.EACCES: Reply.NOT_ALLOWED,
}


def _check_version(data: bytes) -> None:
    if not data or data[0] == _VERSION:
        return
    if data[0] == 4:
        raise MalformedError("the client speaks SOCKS 4, not SOCKS 5")
    if data[0] == _TLS_HANDSHAKE:
        raise MalformedError("the client speaks TLS, it seems, not SOCKS 5")
    if data[:1].isalpha():
        raise MalformedError("the client speaks HTTP, it seems, not SOCKS 5")
    raise MalformedError(f"the client doesn't speak SOCKS 5: its first byte is {data[0]}")


def _counted_text(data: bytes, start: int) -> tuple[str, int] | None:
    """Read text that follows a byte with its length; return it with the position of its end."""
    if len(data) <= start:
        return None
    end = start + 1 + data[start]
    if len(data) < end:
        return None
    try:
        return data[start + 1 : end].decode(), end
    except UnicodeDecodeError:
        raise MalformedError("the user or the password is not UTF-8") from None


def _read_host(data: bytes) -> tuple[str, int] | None:
    """Read the host of a request; return it with the position of its end."""
    if len(data) < 4:
        return None
    if data[3] == _NAME:
        return _read_name(data)
    if data[3] not in (_IPV4, _IPV6):
        reason = f"there is no address type {data[3]}"
        raise MalformedError(reason, Reply.ADDRESS_TYPE_NOT_SUPPORTED)
    end = 4 + (4 if data[3] == _IPV4 else 16)
    return (str(ipaddress.ip_address(data[4:end])), end) if len(data) >= end else None


def _read_name(data: bytes) -> tuple[str, int] | None:
    if len(data) < 5:
        return None
    if not data[4]:
        raise MalformedError("the name of the target is empty", Reply.GENERAL_FAILURE)
    end = 5 + data[4]
    name = data[5:end]
    # A space isn't allowed: such a name isn't valid, and would read like two names in the log.
    if not all(0x21 <= byte <= 0x7E for byte in name):
        reason = "the name of the target has bytes that no name has"
        raise MalformedError(reason, Reply.GENERAL_FAILURE)
    return (name.decode("ascii"), end) if len(data) >= end else None
