"""Reads the server name and the protocols of a TLS ClientHello, without a handshake.

The callbacks of ``ssl`` give the name but not the protocols (ALPN) that the client offers.
"""

from __future__ import annotations

from typing import NamedTuple

from ._limits import Limits

_HANDSHAKE_RECORD = 22
_MAJOR_VERSION = 3
_RECORD_HEADER = 5
_LARGEST_FRAGMENT = 2**14
_CLIENT_HELLO = 1
_MESSAGE_HEADER = 4
_VERSION_AND_RANDOM = 2 + 32
_LARGEST_SESSION_ID = 32
_SERVER_NAME = 0
_HOST_NAME = 0
_LARGEST_NAME = 255
_PROTOCOLS = 16


class ClientHello(NamedTuple):
    """The parts of a TLS ClientHello by which a proxy can decide; clients send them in clear.

    Attributes:
        server_name (str | None): the server name (SNI) in lower case, without a trailing dot; None
            where the client sends none. A client that hides the real name (encrypted ClientHello)
            has the name here that it shows to everybody.
        protocols (tuple[str, ...]): the protocols (ALPN), the client's favourite first; () where it
            offers none. Their names are bytes: each byte is one character here (latin-1), so that
            different names stay different.
    """

    server_name: str | None
    protocols: tuple[str, ...]


class MalformedError(ValueError):
    """The bytes are not a ClientHello; the text says why, without quoting them."""


class HelloReader:
    """Takes the first bytes of a connection, in pieces of any size, until the hello is complete.

    Its work for all pieces together is in proportion to their bytes.
    """

    def __init__(self, largest: int = Limits.handshake_bytes) -> None:
        """Refuse a hello of more than ``largest`` bytes as soon as it announces itself."""
        self._largest = largest
        self._record_header = bytearray()
        self._fragment_left = 0  # bytes
        self._message = bytearray()

    def feed(self, data: bytes) -> ClientHello | None:
        """Return the hello once all of it has been fed; None: more bytes are needed.

        Any bytes may follow the hello. Must not be called again after it has returned the hello or
        raised.

        Raises:
            MalformedError: a byte came that no hello can have in that place. The inside of the
                hello is checked when it is complete.
        """
        position = 0
        while position < len(data):
            wanted = self._fragment_left or _RECORD_HEADER - len(self._record_header)
            part = data[position : position + wanted]
            position += len(part)
            if self._fragment_left:
                self._add_to_message(part)
                if len(self._message) >= self._announced():
                    return _parse_hello(bytes(self._message[_MESSAGE_HEADER : self._announced()]))
            else:
                self._add_to_header(part)
        return None

    def _add_to_header(self, part: bytes) -> None:
        header = self._record_header
        header += part
        if header[0] != _HANDSHAKE_RECORD:
            raise MalformedError("not a TLS handshake record")
        if len(header) > 1 and header[1] != _MAJOR_VERSION:
            raise MalformedError("not a version of TLS")
        length = _least(header[3:], 2)
        if length > _LARGEST_FRAGMENT:
            raise MalformedError("a record that is too large")
        if len(header) == _RECORD_HEADER:
            if not length:
                raise MalformedError("an empty record")
            self._fragment_left = length
            header.clear()

    def _add_to_message(self, part: bytes) -> None:
        self._fragment_left -= len(part)
        self._message += part
        if self._message[0] != _CLIENT_HELLO:
            raise MalformedError("the first message is not a ClientHello")
        if self._announced() > _MESSAGE_HEADER + self._largest:
            raise MalformedError("a hello that is too large")

    def _announced(self) -> int:
        """Return the least length that the message can have, with its header."""
        return _MESSAGE_HEADER + _least(self._message[1:_MESSAGE_HEADER], 3)


class _Fields:
    """Takes fields off the front of a structure; raises MalformedError where it is cut short."""

    def __init__(self, data: bytes, structure: str) -> None:
        self._data = data
        self._position = 0
        self._structure = structure

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise MalformedError(f"{self._structure} cut short")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, size: int) -> int:
        """Take a number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def counted(self, size: int) -> bytes:
        """Take a count of ``size`` bytes and then that many bytes."""
        return self.take(self.number(size))

    def end(self) -> None:
        """Raise MalformedError unless all has been taken."""
        if self:
            raise MalformedError(f"{self._structure} with more than belongs there")


def _least(part: bytes | bytearray, size: int) -> int:
    """Return the least value of a number of ``size`` bytes that begins with ``part``."""
    return int.from_bytes(part.ljust(size, b"\0"), "big")


def _parse_hello(body: bytes) -> ClientHello:
    fields = _Fields(body, "a hello")
    fields.take(_VERSION_AND_RANDOM)
    if len(fields.counted(1)) > _LARGEST_SESSION_ID:
        raise MalformedError("a session id that is too long")
    suites = fields.counted(2)
    if not suites or len(suites) % 2:
        raise MalformedError("no list of cipher suites")
    if not fields.counted(1):
        raise MalformedError("no compression methods")
    extensions = _parse_extensions(fields.counted(2)) if fields else {}
    fields.end()
    return ClientHello(
        _parse_server_name(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else None,
        _parse_protocols(extensions[_PROTOCOLS]) if _PROTOCOLS in extensions else (),
    )


def _parse_extensions(data: bytes) -> dict[int, bytes]:
    extensions: dict[int, bytes] = {}
    fields = _Fields(data, "extensions")
    while fields:
        kind = fields.number(2)
        if kind in extensions:
            raise MalformedError("an extension that is there twice")
        extensions[kind] = fields.counted(2)
    return extensions


def _parse_server_name(data: bytes) -> str:
    names = _only_list(data, "a server name")
    if names.number(1) != _HOST_NAME:
        raise MalformedError("the server name is not a host name")
    name = names.counted(2)
    names.end()  # there are no other kinds of names, and one host has one name
    if len(name) > _LARGEST_NAME:
        raise MalformedError("a server name that is too long")
    if any(byte <= 0x1F or byte >= 0x7F for byte in name):
        raise MalformedError("a server name with bytes that no name has")
    text = name.decode("ascii").lower().removesuffix(".")
    if "" in text.split("."):
        raise MalformedError("a server name with an empty part")
    return text


def _parse_protocols(data: bytes) -> tuple[str, ...]:
    names = _only_list(data, "a list of protocols")
    protocols = []
    while names:
        protocols.append(names.counted(1).decode("latin-1"))
    if not all(protocols) or not protocols:
        raise MalformedError("a list of protocols without a name")
    return tuple(protocols)


def _only_list(data: bytes, structure: str) -> _Fields:
    """Return the list that an extension consists of."""
    extension = _Fields(data, structure)
    content = extension.counted(2)
    extension.end()
    return _Fields(content, structure)
