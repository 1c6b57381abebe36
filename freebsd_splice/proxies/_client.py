"""A client, as the function that opens its target is given it."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable

from .. import Relay
from ._addresses import Address, SocketAddress, show
from ._connecting import LookUp, Prepare, Refusal
from ._handshake import Handshake
from ._limits import client_of
from ._log import quoted_unless_plain
from ._observing import Observer
from ._proxy_headers import FirstBytes
from ._proxy_protocol import ProxyHeader, show_endpoint

#: Connects to an address as ``Client.dial`` does, for a client that counts as the first argument.
Dial = Callable[[str, Address, Refusal, Prepare, LookUp | None], Awaitable[socket.socket]]


class Client:
    """An accepted client. ``ProxyServer`` makes it and passes it to ``open_target``.

    ``open_target`` reads what the client says through ``handshake``, decides where the client
    goes, and connects with ``dial``. It may set ``user``, ``requested`` and ``server_name``: the
    log names them, in the line of a connection that succeeded and of one that failed.

    Attributes:
        socket (socket.socket): the client's connection, non-blocking. The server closes it.
        address: the client's address as ``socket.accept`` returned it; empty on systems that know
            none for a client that has reset its connection already. At a Unix socket it is a record
            with the ``user`` (a number, or None) of the process that has connected.
        name (str): ``address`` as the log shows it, ``192.0.2.7:40000`` or ``unix:uid=1000``.
        counts_as (str): what the client counts as for ``Limits.per_client`` and when clients take
            turns: an IPv4 address, an IPv6 network of 64 bits, or a user at a Unix socket.
        handshake (Handshake): reads and answers what the client says before its bytes are only
            passed on, within a time and a size.
        user (str | None): the user whose password was verified; None unless ``open_target``
            sets it.
        requested (Address | None): the host and port that the client asked for; None unless
            ``open_target`` sets it.
        server_name (str | None): the server name in the client's TLS ClientHello; None unless
            ``open_target`` sets it.
        header (ProxyHeader | None): the accepted PROXY header; None where there was none.
            ``address``, ``name`` and ``counts_as`` are then those of the client that it names.
        peer: the address of the connection itself: that of the proxy that sent a PROXY header.
        unique_id (bytes | None): what identifies the connection in PROXY headers: given by the
            accepted one, or made for the one that is sent; None where there is neither.
        first_bytes: watches for a PROXY header that the client must not send; None where nothing
            does. For the package's own use.
        target (socket.socket | None): the connection to the target; None until ``open_target`` has
            returned it.
        observer: is told of each dial. For the package's own use.

    Example::

        async def open_target(client):
            first = await client.handshake.read(lambda piece: piece[:1])
            port = 8443 if first == b"\\x16" else 8080          # TLS, or not
            target = await client.dial(Address("127.0.0.1", port))
            return target, (bytes(client.handshake.received), b"")
    """

    def __init__(
        self,
        sock: socket.socket,
        address: SocketAddress,
        handshake: Handshake,
        dial: Dial,
        counts_as: str | None = None,
    ) -> None:
        self.socket = sock
        self.address = self.peer = address
        self.name = show(address)
        self.counts_as = client_of(address) if counts_as is None else counts_as
        self.handshake = handshake
        self.user: str | None = None
        self.requested: Address | None = None
        self.server_name: str | None = None
        self.header: ProxyHeader | None = None
        self.unique_id: bytes | None = None
        self.first_bytes: FirstBytes | None = None
        self.target: socket.socket | None = None
        self.observer = Observer()
        self._relay: Callable[[], Relay | None] | None = None
        self._progress: Callable[[], list[tuple[int, tuple[str, str] | None]]] = list
        self._dial = dial
        self._dialled: socket.socket | None = None  # the last one

    def __str__(self) -> str:
        """The client's address, with its user and server name, as the log shows them."""
        name = f"{self.name} via {show(self.peer)}" if self.is_proxied else self.name
        said = []
        if self.user is not None:
            said.append(f"user {quoted_unless_plain(self.user)}")
        if self.server_name is not None:
            said.append(f"server name {quoted_unless_plain(self.server_name)}")
        return f"{name} ({', '.join(said)})" if said else name

    @property
    def relay(self) -> Relay | None:
        """What joins the client and its target; None until they are joined.

        Ask on the event loop's thread. Most are joined by less than a ``Relay``, as long as little
        is moved, and a relay is made of that when it is asked for; None where that has ended.
        """
        return None if self._relay is None else self._relay()

    def joined_by(
        self,
        relay: Callable[[], Relay | None],
        progress: Callable[[], list[tuple[int, tuple[str, str] | None]]],
    ) -> None:
        """Note what returns the relay, and how far it is. For the package's own use."""
        self._relay, self._progress = relay, progress

    @property
    def is_joined(self) -> bool:
        """Whether there is something to ask about with ``progress``. On any thread."""
        return self._relay is not None

    def progress(self) -> list[tuple[int, tuple[str, str] | None]]:
        """Return what ``Relay.progress`` does, on any thread. For the package's own use."""
        return self._progress()

    @property
    def is_proxied(self) -> bool:
        """Whether a PROXY header says that the client is somebody else than who connected."""
        return self.header is not None and self.header.source is not None

    def is_known_as(self, header: ProxyHeader) -> None:
        """Take the client for the one that the PROXY header names. For the package's own use.

        Nothing depends on the path of a Unix socket: it is only shown, and sent on.
        """
        self.header = header
        self.unique_id = header.unique_id
        if header.source is None:
            return
        if not isinstance(header.source, bytes):
            self.address = header.source
        self.name = show_endpoint(header.source)

    async def dial(
        self,
        address: Address,
        *,
        refusal: Refusal = lambda resolved: None,
        prepare: Prepare = lambda sock, resolved: None,
        look_up: LookUp | None = None,
    ) -> socket.socket:
        """Connect to the first address of a name that answers.

        The look-up of the name and all its addresses together have the server's
        ``connect_timeout``. Where an address has not answered after 0.25 s, the next one is tried
        as well, three at a time at most; the first connection that is made is taken (RFC 8305).
        While there are too few descriptors, ``dial`` waits for some: it never takes more than twice
        ``connect_timeout``. None of this counts against the handshake's time. The wait ends early
        when the client resets its connection.

        Args:
            address: the host and port to connect to, or a ``UnixAddress``.
            refusal: says of each address that the name stands for why nobody may connect to it, or
                None; ``Rules.refusal`` with a host is such a function.
            prepare: is given each socket before it connects, and the address; it may set options,
                or bind the socket.
            look_up: looks the name up in place of the system, as ``NameServers.look_up`` does.

        Returns:
            The connected, non-blocking socket.

        Raises:
            RefusedTargetError: ``refusal`` refused all addresses (errno EACCES).
            TargetError: the name couldn't be looked up (EHOSTUNREACH, or EINVAL for one that is not
                valid), or no address could be connected to (the errno of the last attempt,
                ETIMEDOUT where the time was over).
        """
        with self.handshake.suspended(), self.handshake.during(f"while connecting to {address}"):
            began = time.monotonic()
            try:
                self._dialled = await self._dial(self.counts_as, address, refusal, prepare, look_up)
            except OSError as error:
                self.observer.dialled(self, time.monotonic() - began, error)
                raise
            self.observer.dialled(self, time.monotonic() - began, None)
            return self._dialled

    def has_dialled(self, target: socket.socket) -> bool:
        """Return whether ``dial`` made that very connection: nobody else has it then."""
        return target is self._dialled


#: A function that decides where a client goes. It is given the ``Client``, and returns the
#: connected socket of its target with the bytes that were read already and must go first, as
#: ``(from the client, from the target)``. An OSError that it raises is logged, and the client is
#: closed.
OpenTarget = Callable[[Client], Awaitable[tuple[socket.socket, tuple[bytes, bytes]]]]
