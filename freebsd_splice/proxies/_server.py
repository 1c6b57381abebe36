"""The server that all proxies share: it accepts, joins, limits, stops, and logs.

A proxy is a function that is given an accepted client and returns the connection to join it to.
One asyncio loop accepts and connects. ``Relay`` alone moves the bytes; it needs no thread of its
own for a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterable
from functools import partial

from .. import Relay
from .._core.time_limits import check_seconds
from .._errors import why
from .._relay import LINGER, GivenRelay
from .._runtime import current
from .._userspace.workers import LocalWorker
from ..aio._ending import end_of
from . import _pausing
from ._accepting import OF_ONE_CLIENT, Accepting
from ._addresses import Address, Resolved, SocketAddress, show
from ._client import Client, OpenTarget
from ._connecting import (
    SHORTAGES,
    Dialer,
    LookUp,
    Prepare,
    Refusal,
    ReservedDescriptors,
    StarvedError,
    TargetError,
    as_usual,
    reason_of,
    set_buffers,
    tune,
)
from ._handshake import Handshake
from ._hangups import Hangups
from ._limits import Limits, Occupancy
from ._listening import (
    SOCKET_MODE,
    ListenError,
    close_listener,
    listen_on,
    listens,
    own_name,
    say_listening,
)
from ._log import logger
from ._observing import Observer
from ._pausing import Changes, Shortage
from ._proxy_headers import Network, ProxyHeaders
from ._proxy_protocol import Version
from ._reporting import peer_name, report_end, report_failure, report_refusal, who

#: Descriptors that a connection needs besides its client's: one for the target.
_NEEDED_TO_DIAL = 1
_NEEDED_TO_JOIN = 0

#: Whether accepted sockets have TCP_NODELAY and SO_KEEPALIVE from their listener.
ACCEPTED_ARE_TUNED = sys.platform.startswith(("linux", "freebsd", "openbsd"))

#: Descriptors that must be free besides those when a client is accepted: for pipes, look-ups of
#: names, and files.
_TO_SPARE = 8


class ProxyServer:
    """Accepts clients, joins each to the target that ``open_target`` opens, and logs every end.

    The log is ``logging.getLogger("freebsd_splice.proxies")``: a line at level INFO for each
    connection at its end, a WARNING for each client that could not be joined to a target.
    ``Client`` says which names ``open_target`` can add to those lines.

    Args:
        open_target: the function that decides where a client goes: ``socks5_connect(...)``,
            ``by_server_name(...)``, ``connect.http_connect(...)``, or one of your own (see
            ``OpenTarget`` and ``Client``). ``forwarder`` makes a server with one of its own.
        connect_timeout: seconds for one ``Client.dial``: for looking the name up and trying all its
            addresses. A dial that has to wait for descriptors may take twice as long.
        idle_timeout: seconds without a byte either way after which a connection is ended, as for
            ``Relay``; None: never.
        grace: seconds for which live connections may go on after ``stop``.
        keepalive: have the system find peers that have vanished (SO_KEEPALIVE). While nothing is
            sent to such a peer, nothing else finds it (F17: the kernel reports nothing by itself).
        buffer_size: bytes of each socket's two buffers (SO_SNDBUF, SO_RCVBUF); None leaves them to
            the system.
        limits: how much clients may take; ``Limits()`` unless given.
        accept_proxy: networks whose clients must begin with a PROXY header (v1 or v2), which says
            who the client is. A header from anybody else is refused.
        send_proxy: the PROXY header that each target is sent, "v1" or "v2"; None: none.

    A server belongs to one event loop. ``stop`` must be called on that loop's thread.

    Example::

        server = ProxyServer(socks5_connect(), idle_timeout=300)
        server.listen(Address("127.0.0.1", 1080))
        asyncio.run(server.run())          # until server.stop()
    """

    def __init__(
        self,
        open_target: OpenTarget,
        *,
        connect_timeout: float = 10.0,
        idle_timeout: float | None = None,
        grace: float = 10.0,
        keepalive: bool = True,
        buffer_size: int | None = None,
        limits: Limits | None = None,
        accept_proxy: Iterable[str | Network] = (),
        send_proxy: Version | None = None,
    ) -> None:
        self._open_target = open_target
        check_seconds("connect_timeout", connect_timeout)
        check_seconds("idle_timeout", idle_timeout)
        self._connect_timeout = connect_timeout
        self._dialer = Dialer(connect_timeout)
        self._idle_timeout = idle_timeout
        self._grace = grace
        self._keepalive = keepalive
        self._buffer_size = buffer_size
        self._limits = limits or Limits()
        self._occupancy = Occupancy(self._limits.per_client)
        # None where there is nothing to do.
        self._headers = ProxyHeaders(accept_proxy, send_proxy, idle_timeout) or None
        self._listeners: list[socket.socket] = []
        #: Those whose next client may have come before the listener was tuned, or has nothing of
        #: it on this system.
        self._untuned: set[socket.socket] = set()
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._hangups = Hangups()
        self._worker: LocalWorker | None = None
        self._is_moving = False  # just now, in a callback of the loop's
        self._stops = 0
        self._retired = False
        self._cutting = False
        self._changes = Changes()
        self._shortage = Shortage(self._changes, lambda: len(self._clients))
        #: Is told what happens to clients. For the package's own use.
        self.observer = Observer()

    def listen(
        self, address: Address, backlog: int = 1024, *, mode: int = SOCKET_MODE
    ) -> list[SocketAddress]:
        """Listen on every address that a name stands for.

        Addresses that this machine doesn't have are left out, as long as one is left. Sockets for
        IPv6 take no IPv4 clients: those have sockets of their own.

        Args:
            address: the host and port; host "" is every address of this machine, port 0 one free
                port, the same on all addresses. A ``UnixAddress`` is the path of a Unix socket:
                its file is made, and removed once nobody is accepted any more.
            backlog: how many clients may wait to be accepted. Where the system allows fewer, a
                warning in the log says so.
            mode: the permissions of a Unix socket's file. Who may write to it may connect.

        Returns:
            The addresses of the listening sockets; that of a Unix socket is its path.

        Raises:
            ListenError: the name can't be looked up, or an address can't be listened on (errno
                EADDRINUSE, EACCES, ...).
        """
        opened = listen_on(address, backlog, buffers=self._buffer_size, mode=mode)
        say_listening(opened)
        self.use(opened)
        return [listener.getsockname() for listener in opened]

    def use(self, listeners: Iterable[socket.socket]) -> None:
        """Accept clients from these sockets as well, which listen already.

        They are made non-blocking, and ``run`` closes them at its end.

        Args:
            listeners: listening TCP sockets, or Unix sockets for streams.
        """
        for listener in listeners:
            listener.setblocking(False)
            if ACCEPTED_ARE_TUNED:
                tune(listener, self._keepalive)
            as_usual(listener)
            self._listeners.append(listener)
            self._untuned.add(listener)

    async def run(self) -> None:
        """Serve until ``stop`` is called, then until the last connection has ended.

        Cancelling the task that runs it cuts all connections.

        Raises:
            ListenError: a listening socket listens no more.
        """
        current().start_workers()
        loop = asyncio.get_running_loop()
        self._worker = current().local_worker()
        if self._worker is not None:
            loop.add_reader(self._worker.fileno(), self._move)
        accepting = [loop.create_task(self._accept(listener)) for listener in self._listeners]
        for task in accepting:
            task.add_done_callback(lambda _: self._changes.wake())
        try:
            while not (self._stops or self._retired or any(task.done() for task in accepting)):
                await self._changes.wait()
        except asyncio.CancelledError:
            self._stops = 2
            raise
        finally:
            for task in accepting:
                task.cancel()
            ends = await asyncio.gather(*accepting, return_exceptions=True)
            for listener in self._listeners:
                close_listener(listener)
            await self._finish()
            if self._worker is not None:
                loop.remove_reader(self._worker.fileno())
                self._worker.close()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def _move(self) -> None:
        """Let the flows of the loop's own worker move, on the loop's thread."""
        worker = self._worker
        if worker is None or worker.is_closed:
            return
        self._is_moving = True
        try:
            has_more = worker.turn()
        finally:
            self._is_moving = False
        if has_more:
            asyncio.get_running_loop().call_soon(self._move)

    def stop(self) -> None:
        """Accept no more clients and let live connections go on for ``grace`` seconds.

        A second call cuts the connections: both sides get what is under way to them, and then a
        reset. A third call, or 10 seconds after the cut, ends the wait for slow readers as well:
        what those have not taken by the end of the program is lost. Must be called on the loop's
        thread.
        """
        self._stops += 1
        self._changes.wake()

    def retire(self) -> None:
        """Accept no more clients and let live connections go on for as long as they last.

        The listening sockets are closed, and ``run`` returns after the last connection. Another
        server can accept from duplicates of those sockets meanwhile (``socket.dup``), so that no
        client is refused. ``stop`` ends a retired server as any other. Must be called on the loop's
        thread.
        """
        self._retired = True
        self._changes.wake()

    async def _dial(
        self,
        reserved: ReservedDescriptors,
        counts_as: str,
        address: Address,
        refusal: Refusal,
        prepare: Prepare,
        look_up: LookUp | None,
    ) -> socket.socket:
        """Connect for a client, as ``Client.dial`` says.

        An attempt that meets a shortage is repeated after a while. Each attempt has
        ``connect_timeout``, and the last begins no later than that after the first; StarvedError is
        raised then.
        """
        loop = asyncio.get_running_loop()
        last_begins = loop.time() + self._connect_timeout

        def make_ready(sock: socket.socket, resolved: Resolved) -> None:
            set_buffers(sock, self._buffer_size)
            prepare(sock, resolved)

        while True:
            try:
                return await self._dialer.dial(
                    address,
                    refusal=refusal,
                    prepare=make_ready,
                    before_socket=lambda: reserved.keep(_NEEDED_TO_JOIN),
                    client=counts_as,
                    look_up=look_up,
                )
            except TargetError:
                raise
            except OSError as error:
                await self._shortage.wait_after(error, last_begins - loop.time())
                if loop.time() >= last_begins:
                    raise StarvedError(address, reason_of(error)) from error

    # Accepting

    async def _accept(self, listener: socket.socket) -> None:
        while not self._stops:
            accepting = Accepting(
                listener,
                await self._room(),
                room=self._room_now,
                # Clients that come after a retirement are the other server's at once.
                wanted=lambda: not self._retired,
                accepted=partial(self._accepted, listener),
                nobody_waits=partial(self._nobody_waits, listener),
            )
            error = await accepting.run()
            if error is not None:
                await self._accept_failed(listener, error)

    def _nobody_waits(self, listener: socket.socket) -> None:
        if ACCEPTED_ARE_TUNED:
            self._untuned.discard(listener)
        self._shortage.ends()

    def _accepted(
        self,
        listener: socket.socket,
        sock: socket.socket,
        address: SocketAddress,
        reserved: ReservedDescriptors,
    ) -> None:
        place = None
        try:
            if listener in self._untuned:
                tune(sock, self._keepalive)
                as_usual(sock)
            # A sender of headers counts as the client that its header will name.
            is_sender = self._headers is not None and self._headers.is_sender(address)
            place = self._occupancy.enter(() if is_sender else address)
            if place is not None:
                self._begin(sock, address, reserved, place)
                return
            name = show(address)
            self.observer.refused(None, None)
            report_refusal(name, {"client": name}, self._limits.per_client)
        except Exception:
            logger.exception("an accepted client cannot be served")
        if place is not None:
            self._occupancy.leave(place)
        sock.close()
        reserved.keep(0)

    def _begin(
        self, sock: socket.socket, address: SocketAddress, reserved: ReservedDescriptors, place: str
    ) -> None:
        sock.setblocking(False)
        handshake = Handshake(sock, self._limits.handshake_timeout, self._limits.handshake_bytes)
        client = Client(sock, address, handshake, partial(self._dial, reserved), place)
        client.observer = self.observer
        self.observer.accepted(client)
        logger.debug("%s: accepted", client.name)
        task = asyncio.get_running_loop().create_task(self._serve(client, reserved))
        self._clients[task] = client
        task.add_done_callback(partial(self._ended, reserved))

    async def _room(self) -> ReservedDescriptors:
        """Wait until everything that one more connection needs is free, and reserve it.

        Clients that had only a part of it could wait for each other's part for ever.
        """
        while True:
            try:
                reserved = self._room_now()
            except OSError as error:
                await self._shortage.wait_after(error)
                continue
            if reserved is not None:
                return reserved
            await self._changes.wait()

    def _room_now(self) -> ReservedDescriptors | None:
        """Reserve what one more connection needs.

        Returns:
            None where there are as many clients as there may be.

        Raises:
            OSError: there are too few descriptors.
        """
        if self._stops:
            return None
        if len(self._clients) >= self._limits.connections:
            self._shortage.begins("connection limit reached (--max-connections)")
            return None
        return ReservedDescriptors(_NEEDED_TO_DIAL, _TO_SPARE)

    async def _accept_failed(self, listener: socket.socket, error: OSError) -> None:
        if error.errno in SHORTAGES:
            await self._shortage.wait_after(error)
        elif not listens(listener):
            reason = f"{own_name(listener)} accepts no clients any more: {why(error)}"
            raise ListenError(error.errno, reason) from error
        elif error.errno in OF_ONE_CLIENT:
            await asyncio.sleep(0)  # let other tasks run
        else:
            logger.error("cannot accept: %s", why(error))
            await asyncio.sleep(_pausing.RETRY_AFTER)

    def _ended(self, reserved: ReservedDescriptors, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        reserved.keep(0)
        self._occupancy.leave(client.counts_as)
        if not task.cancelled() and task.exception():
            logger.error("%s: failed", client, exc_info=task.exception())
        self.observer.left(client)
        self._changes.wake()

    # One connection

    async def _serve(self, client: Client, reserved: ReservedDescriptors) -> None:
        with contextlib.ExitStack() as unless_joined:
            unless_joined.callback(client.socket.close)
            try:
                with self._hangups.watch(client.handshake):
                    if self._headers is not None:
                        await self._headers.receive(client)
                        if not self._is_welcome(client):
                            return
                    target, initial = await self._open_target(client)
                unless_joined.callback(target.close)
                client.target = target
                if self._headers is not None:
                    initial = await self._headers.before_join(client, target, initial)
                target_name = peer_name(target)
                self.observer.handshaken(client, target_name)
                relay = await self._join(client, target, initial, reserved)
            except OSError as error:
                self.observer.refused(client, error)
                report_failure(client, error)
                return
            unless_joined.pop_all()  # the relay closes them
        outcome = await end_of(relay, lambda: self._is_moving)
        self.observer.ended(client, outcome)
        report_end(client, target_name, outcome)

    def _is_welcome(self, client: Client) -> bool:
        """Count a client that a header has named; return whether it may have a connection more."""
        if client.header is None:
            return True
        place = self._occupancy.enter(client.address)
        if place is None:
            self.observer.refused(client, None)
            report_refusal(client, who(client), self._limits.per_client)
            return False
        self._occupancy.leave(client.counts_as)
        client.counts_as = place
        return True

    async def _join(
        self,
        client: Client,
        target: socket.socket,
        initial: tuple[bytes, bytes],
        reserved: ReservedDescriptors,
    ) -> Relay:
        tune(target, self._keepalive)
        reserved.keep(0)
        # ``initial`` is what is passed on; these bytes would only be kept until the client goes.
        client.handshake.received = bytearray()
        while client.relay is None:
            if self._cutting:  # ``open_target`` can have missed that it was cancelled
                raise asyncio.CancelledError
            try:
                client.relay = self._relay(client, target, initial)
            except OSError as error:
                with (
                    client.handshake.during("while waiting for descriptors"),
                    self._hangups.watch(client.handshake),
                ):
                    await self._shortage.wait_after(error)
        return client.relay

    def _relay(self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]) -> Relay:
        idle, worker = self._idle_timeout, self._worker
        if client.has_dialled(target):
            for sock in (client.socket, target):
                if sock.gettimeout() != 0:  # ``open_target`` has set another one
                    sock.setblocking(False)
            return GivenRelay(
                client.socket, target, worker=worker, idle_timeout=idle, initial=initial
            )
        return Relay(client.socket, target, idle_timeout=idle, close=True, initial=initial)

    # Stopping

    async def _finish(self) -> None:
        while self._retired and self._clients and not self._stops:
            await self._changes.wait()
        if self._retired and not self._clients:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        logger.info("stopping: %d connections live, %g s left", len(self._clients), self._grace)
        while self._clients and self._stops < 2 and loop.time() < deadline:
            await self._changes.wait(deadline - loop.time())
        if self._clients:
            logger.warning("cutting %d connections", len(self._clients))
            self._cut()
            deadline = loop.time() + LINGER
            while self._clients and self._stops < 3 and loop.time() < deadline:
                await self._changes.wait(deadline - loop.time())
        for client in self._clients.values():
            if client.relay is not None:
                client.relay.end_soon()
        while self._clients:
            await self._changes.wait()

    def _cut(self) -> None:
        """End all connections; their sides are reset after what they were sent was delivered."""
        self._cutting = True
        for task, client in list(self._clients.items()):
            if client.relay is None or client.target is None:
                task.cancel()
            else:
                client.relay.cut_soon()
