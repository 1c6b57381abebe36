"""What a proxy does with PROXY headers: takes them from some clients, and sends its own.

A client that is a proxy itself (a sender, here) must begin with a header, which says who its client
is. Which clients are senders is a matter of configuration: the protocol has nobody guess whether a
header is there, as anybody could claim any address then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import select
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._errors import why
from .._platform.reset import reset_on_close
from ._addresses import SocketAddress
from ._connecting import TargetError
from ._handshake import HandshakeError
from ._proxy_protocol import (
    LONGEST_HEADER,
    SIGNATURE_BYTES,
    VERSIONS,
    Endpoint,
    MalformedHeaderError,
    ProxyHeader,
    Version,
    begins_header,
    make_header,
    plain_address,
    read_header,
)
from ._unix_sockets import UnixPeer

if TYPE_CHECKING:
    from ._client import Client

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The clients of Unix sockets, as nginx writes it where addresses can stand too.
UNIX_SENDERS = "unix:"

#: IPv4 addresses as IPv6 sockets have them.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

#: Seconds between two looks where the event loop does not report what can be read.
_LOOK_EVERY = 0.05


def parse_network(text: str) -> Network:
    """Return a network, or that of one address.

    Raises:
        ValueError: the text is neither; its message says what is wrong.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network: write 10.0.0.0/8 or 2001:db8::/32") from None
    if ipaddress.ip_address(text.partition("/")[0]) != network.network_address:
        raise ValueError(f"{text!r}: the network of that size that it is in is {network}")
    if network.version == 6 and network.subnet_of(_MAPPED):
        raise ValueError(f"{text!r}: write it as IPv4, which its clients are taken for")
    return network


def parse_sender(text: str) -> Network | str:
    """Return a network, or ``unix:``, which stands for all clients of Unix sockets.

    Raises:
        ValueError: the text is neither; its message says what is wrong.
    """
    return UNIX_SENDERS if text == UNIX_SENDERS else parse_network(text)


class ProxyHeaders:
    """What one server does with PROXY headers.

    Args:
        senders: networks from which a header is required, and "unix:" for the clients of Unix
            sockets; from others it is refused.
        version: the header that each target is sent; None: none.
        silence: seconds for which a client may say nothing, None: for ever. It holds for clients
            that must not send a header, until they or the target have said something.
    """

    def __init__(
        self, senders: Iterable[str | Network], version: Version | None, silence: float | None
    ) -> None:
        given = [parse_sender(each) if isinstance(each, str) else each for each in senders]
        self._senders = [each for each in given if not isinstance(each, str)]
        self._unix_sends = UNIX_SENDERS in given
        if version is not None and version not in VERSIONS:
            raise ValueError(f"send_proxy must be 'v1', 'v2' or None, not {version!r}")
        self._version = version
        self._silence = silence

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return self._has_senders or self._version is not None

    @property
    def _has_senders(self) -> bool:
        return bool(self._senders) or self._unix_sends

    def is_sender(self, address: SocketAddress) -> bool:
        """Return whether a client with this address must send a header."""
        if not address or not self._has_senders:
            return False
        if isinstance(address, UnixPeer):
            return self._unix_sends
        plain = plain_address(address[0])
        return any(plain in network for network in self._senders)

    async def receive(self, client: Client) -> None:
        """Take the header of a client that must send one, and see to it that no other does.

        Raises:
            HandshakeError: the header is malformed (EPROTO), or did not come (in time).
        """
        if self.is_sender(client.address):
            client.is_known_as(await _receive_header(client))
        elif self._has_senders:
            client.first_bytes = client.handshake.inspect = FirstBytes()

    async def before_join(
        self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]
    ) -> tuple[bytes, bytes]:
        """Send the target its header, once it is known that the client has sent none it must not.

        Returns:
            What the relay has to send first, to the target and to the client.

        Raises:
            HandshakeError: the client began with a header (EACCES), or was silent (ETIMEDOUT).
            TargetError: the target does not take the header.
        """
        if client.first_bytes is not None:
            read = await _read_undecided(client, target, self._silence)
            initial = initial[0] + read, initial[1]
        if self._version is None:
            return initial
        left = _send_header(self._header_for(client), client, target)
        return left + initial[0], initial[1]

    def _header_for(self, client: Client) -> bytes:
        assert self._version is not None
        source, destination = _ends_of(client)
        if self._version == "v2" and client.unique_id is None:
            client.unique_id = os.urandom(16).hex().encode()
        return make_header(
            self._version,
            source,
            destination,
            authority=_authority_of(client),
            unique_id=client.unique_id,
        )


def _ends_of(client: Client) -> tuple[Endpoint | None, Endpoint | None]:
    header = client.header
    if header is not None and header.source is not None:
        return header.source, header.destination
    # A client at a Unix socket has no path. The protocol has a kind for such ends, but HAProxy 2.6
    # and nginx 1.22 close a connection that begins so.
    if isinstance(client.address, UnixPeer):
        return None, None
    try:
        return client.address, client.socket.getsockname()
    except OSError:  # it has reset meanwhile
        return None, None


def _authority_of(client: Client) -> str | None:
    """Return the host name that the client asked for, as far as anybody knows."""
    if client.server_name is not None:
        return client.server_name
    if client.requested is not None:
        return client.requested.host
    return None if client.header is None else client.header.authority


def _send_header(header: bytes, client: Client, target: socket.socket) -> bytes:
    """Send it; returns what there was no room for, which is nothing but for tiny buffers.

    The relay does not send it, as its counts are of the client's bytes.
    """
    try:
        return header[target.send(header) :]
    except BlockingIOError:
        return header
    except OSError as error:
        with contextlib.suppress(OSError):
            reset_on_close(client.socket)  # as a relay passes the target's reset on
        reason = f"the target did not take the PROXY header: {why(error)}"
        raise TargetError(error.errno or errno.EIO, reason) from error


# Receiving


async def _receive_header(client: Client) -> ProxyHeader:
    handshake = client.handshake
    try:
        with handshake.during(None):
            reading = _read_header(client.socket)
            return await handshake.in_time(reading, "the PROXY header did not come")
    except HandshakeError:
        raise
    except MalformedHeaderError as error:
        raise HandshakeError(errno.EPROTO, f"malformed PROXY header: {error}") from None
    except OSError as error:
        reason = f"the PROXY header did not come: {why(error)}"
        raise HandshakeError(error.errno or errno.EIO, reason) from error


async def _read_header(sock: socket.socket) -> ProxyHeader:
    """Read the header and not a byte more: what follows is not always anybody's to read."""
    received = b""
    while True:
        try:
            piece = sock.recv(LONGEST_HEADER, socket.MSG_PEEK)
        except BlockingIOError:
            await _first_readable(sock)
            continue
        if not piece:
            raise HandshakeError(
                errno.ECONNABORTED, "client closed the connection before its PROXY header"
            )
        found = read_header(received + piece)
        belonging = len(piece) if found is None else found[1] - len(received)
        received += sock.recv(belonging)
        if found is not None:
            return found[0]


class FirstBytes:
    """Sees to it that a client that must not send a header does not begin with one."""

    def __init__(self) -> None:
        self._bytes = b""
        #: Whether it is known that they are not a header.
        self.are_known = False

    def __call__(self, piece: bytes) -> None:
        """Look at the next bytes that were read of the client.

        Raises:
            HandshakeError: (EACCES) the client began with a header.
        """
        if self.are_known:
            return
        self._bytes += piece[:SIGNATURE_BYTES]
        begins = begins_header(self._bytes)
        if begins:
            reason = "client sent a PROXY header, and is in none of the networks that may"
            raise HandshakeError(errno.EACCES, reason)
        self.are_known = begins is False


async def _read_undecided(client: Client, target: socket.socket, silence: float | None) -> bytes:
    """Wait until it is known that the client has not begun with a header.

    That is known as well once the target says something, or closes: one that expects a header does
    neither before it, so that no header which comes later is taken for one.

    Returns the bytes that had to be read for that, if any: eleven of the client's at most.
    """
    first = client.first_bytes
    assert first is not None
    read = b""
    target_speaks = False
    while not first.are_known:
        try:
            piece = client.socket.recv(SIGNATURE_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            if target_speaks:
                break
            target_speaks = await _first_to_speak(client.socket, target, silence) is target
            continue
        except OSError as error:
            raise HandshakeError(error.errno or errno.EIO, why(error)) from error
        if not piece:
            break
        first(piece)
        if not first.are_known:
            read += client.socket.recv(len(piece))
    return read


async def _first_to_speak(
    client: socket.socket, target: socket.socket, silence: float | None
) -> socket.socket:
    try:
        return await asyncio.wait_for(_first_readable(client, target), silence)
    except asyncio.TimeoutError:
        reason = f"client and target said nothing for {silence:g} s"
        raise HandshakeError(errno.ETIMEDOUT, reason) from None


async def _first_readable(*socks: socket.socket) -> socket.socket:
    """Wait until one of the sockets can be read, and return it."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[socket.socket] = loop.create_future()
    watched = {sock.fileno(): sock for sock in socks}
    try:
        for descriptor, sock in watched.items():
            loop.add_reader(descriptor, _set, readable, sock)
    except NotImplementedError:  # Windows' usual loop reports no readiness
        while not (found := select.select(socks, [], [], 0)[0]):
            await asyncio.sleep(_LOOK_EVERY)
        return found[0]
    try:
        return await readable
    finally:
        for descriptor in watched:
            loop.remove_reader(descriptor)


def _set(future: asyncio.Future[socket.socket], sock: socket.socket) -> None:
    if not future.done():
        future.set_result(sock)
