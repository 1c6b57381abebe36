"""Headers of the PROXY protocol, versions 1 and 2: read from bytes, and made.

The protocol is HAProxy's (``doc/proxy-protocol.txt`` in its sources): a proxy sends a header before
the bytes of a connection, which says for whom it has connected. Nothing in this module does I/O.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from functools import cache
from typing import Literal, NamedTuple, get_args

from ._addresses import SocketAddress, show
from ._log import quoted_unless_plain

#: Which of the two formats a header has: a line of text, or binary.
Version = Literal["v1", "v2"]
VERSIONS: tuple[Version, ...] = get_args(Version)

#: One end of a connection: an address as sockets have it, or the path of a Unix socket.
Endpoint = SocketAddress | bytes

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: The first bytes of a header, by which it is told from every usual protocol.
_TEXT_SIGNATURE = b"PROXY "
_BINARY_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

#: How many bytes show whether something begins with one of the two.
SIGNATURE_BYTES = len(_BINARY_SIGNATURE)

#: Bytes of the longest line, its end included.
_LONGEST_LINE = 107

#: Bytes of the longest binary header that is taken. The protocol has headers fit into 536, and
#: certificates in it some 2,000 (nginx takes as many as this).
LONGEST_HEADER = 4_096

_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

#: The fixed part of a binary header: signature, version and command, family and protocol, length.
_FIXED = struct.Struct("!12sBBH")
_VERSION_2 = 0x20
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _IPV4, _IPV6, _UNIX = range(4)
_STREAM, _DATAGRAM = 1, 2
_PORTS = struct.Struct("!HH")
_PATH_BYTES = 108

_FIELD_HEADER = struct.Struct("!BH")
_AUTHORITY, _CHECKSUM, _UNIQUE_ID = 0x02, 0x03, 0x05
_LONGEST_UNIQUE_ID = 128


class MalformedHeaderError(ValueError):
    """These bytes can't be a header; the text says why, in a few words and without quoting them."""


class ProxyHeader(NamedTuple):
    """What the sender of a PROXY header says about the connection that it has made.

    Attributes:
        version: the header's format, "v1" or "v2".
        source: where the client is: (host, port) for IPv4, (host, port, 0, 0) for IPv6, the path of
            a Unix socket as bytes. None where the sender does not know it (UNKNOWN), and where the
            sender has connected for itself (LOCAL), as for a health check.
        destination: where the client had connected to, in the same form.
        fields: the other fields of a v2 header (TLVs), as (type, value), in their order.
    """

    version: Version
    source: Endpoint | None = None
    destination: Endpoint | None = None
    fields: tuple[tuple[int, bytes], ...] = ()

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for (PP2_TYPE_AUTHORITY); None where not said."""
        value = self._first(_AUTHORITY)
        return None if value is None else value.decode()

    @property
    def unique_id(self) -> bytes | None:
        """What identifies the connection in all logs (PP2_TYPE_UNIQUE_ID); None where not said."""
        return self._first(_UNIQUE_ID)

    def _first(self, kind: int) -> bytes | None:
        return next((value for each, value in self.fields if each == kind), None)


def show_endpoint(endpoint: Endpoint) -> str:
    """Return ``192.0.2.1:80``, ``[2001:db8::1]:80`` or ``unix:/run/socket``.

    A path is in quotes where it could be mistaken for another part of a line of the log.
    """
    if isinstance(endpoint, bytes):
        return f"unix:{quoted_unless_plain(show_bytes(endpoint))}"
    return show(endpoint)


def show_bytes(data: bytes) -> str:
    """Return the text that they are, with escapes for what is none."""
    return data.decode(errors="backslashreplace")


def begins_header(data: bytes) -> bool | None:
    """Return whether a connection that begins with ``data`` begins with a header.

    None: more is needed. As soon as there are SIGNATURE_BYTES, the answer is True or False.
    """
    for signature in (_TEXT_SIGNATURE, _BINARY_SIGNATURE):
        if data.startswith(signature):
            return True
        if signature.startswith(data):
            return None
    return False


def read_header(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Return the header that ``data`` begins with, and how many bytes of ``data`` it has.

    None: the header is not complete; all of ``data`` belongs to it then.

    Raises:
        MalformedHeaderError: no header begins with this.
    """
    if data.startswith(_TEXT_SIGNATURE):
        return _read_text(data)
    if data.startswith(_BINARY_SIGNATURE):
        return _read_binary(data)
    if begins_header(data) is False:
        raise MalformedHeaderError("not a PROXY header")
    return None


def make_header(
    version: Version,
    source: Endpoint | None,
    destination: Endpoint | None,
    *,
    authority: str | None = None,
    unique_id: bytes | None = None,
) -> bytes:
    """Return a header.

    Args:
        version: "v1" or "v2".
        source: where the client is, as in ``ProxyHeader``.
        destination: where the client had connected to. Where one of the two is not known, or they
            are of different kinds, the header says that it knows neither.
        authority: the host name that the client asked for; v1 has no place for it.
        unique_id: up to 128 bytes that identify the connection; v1 has no place for it.
    """
    if version == "v1":
        return _make_text(_two_addresses(source, destination))
    fields = []
    if authority is not None:
        fields.append((_AUTHORITY, authority.encode()))
    if unique_id is not None:
        fields.append((_UNIQUE_ID, unique_id))
    return _make_binary(source, destination, fields)


# Version 1


def _read_text(data: bytes) -> tuple[ProxyHeader, int] | None:
    end = data.find(b"\n", 0, _LONGEST_LINE) + 1
    if not end:
        if len(data) >= _LONGEST_LINE:
            raise MalformedHeaderError("a line that is too long")
        return None
    line = data[:end]
    if not line.endswith(b"\r\n"):
        raise MalformedHeaderError("a line that does not end with CR LF")
    protocol, *said = line[len(_TEXT_SIGNATURE) : -2].split(b" ")
    if protocol == b"UNKNOWN":  # what follows in the line is to be ignored
        return ProxyHeader("v1"), end
    if protocol not in (b"TCP4", b"TCP6"):
        raise MalformedHeaderError("neither TCP4 nor TCP6 nor UNKNOWN")
    if len(said) != 4:
        raise MalformedHeaderError("not two addresses and two ports")
    source, destination = (
        _endpoint(_parse_address(address, protocol), _parse_port(port))
        for address, port in zip(said[:2], said[2:], strict=True)
    )
    return ProxyHeader("v1", source, destination), end


def _parse_address(text: bytes, protocol: bytes) -> _Address:
    try:
        if protocol == b"TCP4":
            return ipaddress.IPv4Address(text.decode("ascii"))
        if b"%" not in text:
            return ipaddress.IPv6Address(text.decode("ascii"))
    except ValueError:
        pass
    raise MalformedHeaderError(f"not an address of {protocol.decode()}")


def _parse_port(text: bytes) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise MalformedHeaderError("not a port")
    return int(text)


def _make_text(known: tuple[_Address, int, _Address, int] | None) -> bytes:
    if known is None:
        return b"PROXY UNKNOWN\r\n"
    source, source_port, destination, port = known
    return f"PROXY TCP{source.version} {source} {destination} {source_port} {port}\r\n".encode()


# Version 2


def _read_binary(data: bytes) -> tuple[ProxyHeader, int] | None:
    if len(data) > 12 and data[12] & 0xF0 != _VERSION_2:
        raise MalformedHeaderError("not version 2 of the binary format")
    if len(data) < _FIXED.size:
        return None
    _, command, kind, length = _FIXED.unpack_from(data)
    end = _FIXED.size + length
    if end > LONGEST_HEADER:
        raise MalformedHeaderError("a header that is too long")
    if len(data) < end:
        return None
    command &= 0x0F
    if command == _LOCAL:  # everything else in it is to be ignored
        return ProxyHeader("v2"), end
    if command != _PROXY:
        raise MalformedHeaderError("neither PROXY nor LOCAL")
    family, protocol = kind >> 4, kind & 0x0F
    if family > _UNIX or protocol > _DATAGRAM:
        raise MalformedHeaderError("not a kind of address")
    if _UNSPECIFIED in (family, protocol):
        return ProxyHeader("v2"), end
    block = data[_FIXED.size : end]
    source, destination, size = _read_endpoints(family, block)
    fields = _read_fields(block[size:])
    _check_fields(fields, data[:end], _FIXED.size + size)
    return ProxyHeader("v2", source, destination, tuple(fields)), end


def _read_endpoints(family: int, block: bytes) -> tuple[Endpoint, Endpoint, int]:
    """Return both, and how many bytes they have."""
    each = {_IPV4: 4, _IPV6: 16, _UNIX: _PATH_BYTES}[family]
    size = 2 * each + (0 if family == _UNIX else _PORTS.size)
    if len(block) < size:
        raise MalformedHeaderError("addresses cut short")
    first, second = block[:each], block[each : 2 * each]
    if family == _UNIX:
        return _path(first), _path(second), size
    ports = _PORTS.unpack_from(block, 2 * each)
    source, destination = (
        _endpoint(ipaddress.ip_address(packed), port)
        for packed, port in zip((first, second), ports, strict=True)
    )
    return source, destination, size


def _path(field: bytes) -> bytes:
    """Return a path; one that begins with NUL is a name of Linux's, which may have more of them."""
    return field.rstrip(b"\0") if field.startswith(b"\0") else field.partition(b"\0")[0]


def _read_fields(data: bytes) -> list[tuple[int, bytes]]:
    fields = []
    position = 0
    while position < len(data):
        start = position + _FIELD_HEADER.size
        if start > len(data):
            raise MalformedHeaderError("a field cut short")
        kind, length = _FIELD_HEADER.unpack_from(data, position)
        position = start + length
        if position > len(data):
            raise MalformedHeaderError("a field cut short")
        fields.append((kind, data[start:position]))
    return fields


def _check_fields(fields: list[tuple[int, bytes]], header: bytes, position: int) -> None:
    """Check what a receiver must, and what this package uses; ``position`` is the first field's."""
    for kind, value in fields:
        start = position + _FIELD_HEADER.size
        position = start + len(value)
        if kind == _AUTHORITY:
            _check_authority(value)
        elif kind == _UNIQUE_ID and len(value) > _LONGEST_UNIQUE_ID:
            raise MalformedHeaderError("a unique id that is too long")
        elif kind == _CHECKSUM:
            if len(value) != 4:
                raise MalformedHeaderError("a checksum that does not have 4 bytes")
            if crc32c(header[:start] + bytes(4) + header[position:]) != int.from_bytes(
                value, "big"
            ):
                raise MalformedHeaderError("a wrong checksum")


def _check_authority(value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError:
        raise MalformedHeaderError("an authority that is not UTF-8") from None


def _make_binary(
    source: Endpoint | None, destination: Endpoint | None, fields: list[tuple[int, bytes]]
) -> bytes:
    kind, endpoints = _pack(source, destination)
    command = _PROXY if kind else _LOCAL
    packed = [_FIELD_HEADER.pack(each, len(value)) + value for each, value in fields if kind]
    block = b"".join([endpoints, *packed])
    return _FIXED.pack(_BINARY_SIGNATURE, _VERSION_2 | command, kind, len(block)) + block


def _pack(source: Endpoint | None, destination: Endpoint | None) -> tuple[int, bytes]:
    """Return family and protocol in a byte, and the two addresses; 0 where they are not known."""
    if isinstance(source, bytes) and isinstance(destination, bytes):
        paths = (path[:_PATH_BYTES].ljust(_PATH_BYTES, b"\0") for path in (source, destination))
        return _UNIX << 4 | _STREAM, b"".join(paths)
    known = _two_addresses(source, destination)
    if known is None:
        return 0, b""
    first, first_port, second, port = known
    family = _IPV4 if first.version == 4 else _IPV6
    return family << 4 | _STREAM, first.packed + second.packed + _PORTS.pack(first_port, port)


@cache
def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """Return the checksum of RFC 4960, Appendix B (Castagnoli's CRC)."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# Addresses


def _endpoint(address: _Address, port: int) -> SocketAddress:
    """Return the address as sockets of its family have it."""
    return (str(address), port) if address.version == 4 else (str(address), port, 0, 0)


def _two_addresses(
    source: Endpoint | None, destination: Endpoint | None
) -> tuple[_Address, int, _Address, int] | None:
    """Return both as one family has them: IPv4 where both are; None where one is not known."""
    if not source or not destination or isinstance(source, bytes) or isinstance(destination, bytes):
        return None
    first, second = (plain_address(each[0]) for each in (source, destination))
    if first.version != second.version:
        first, second = _as_ipv6(first), _as_ipv6(second)
    return first, source[1], second, destination[1]


def plain_address(text: str) -> _Address:
    """Return the address without its zone; an IPv4-mapped one is the IPv4 address that it is."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _as_ipv6(address: _Address) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(0xFFFF << 32 | int(address))
