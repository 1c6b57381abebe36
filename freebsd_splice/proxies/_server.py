"""What every proxy needs: accept, join, limit, stop, and say what happened.

A proxy is a function that is given an accepted client and answers with the connection to join it
to.  One asyncio loop accepts and connects; the bytes are moved by ``Relay`` alone, which needs no
thread of its own for a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable

from .. import Reason, Relay, RelayOutcome
from .._core.time_limits import check_seconds
from .._errors import why
from .._relay import LINGER, GivenRelay, describe
from .._runtime import current
from .._userspace.workers import LocalWorker
from ..aio._ending import end_of
from ._accepting import Accepting
from ._addresses import Address, Resolved, SocketAddress, show
from ._connecting import (
    SHORTAGES,
    Dialer,
    Prepare,
    Refusal,
    Spare,
    StarvedError,
    TargetError,
    as_usual,
    set_buffers,
    tune,
)
from ._handshake import Handshake
from ._hangups import Hangups
from ._limits import Limits, Occupancy
from ._listening import ListenError, listen_on
from ._log import fields, logger
from ._proxy_headers import FirstBytes, Network, ProxyHeaders
from ._proxy_protocol import ProxyHeader, Version, show_bytes, show_endpoint

#: What a connection needs besides its client: the target.
_NEEDED_TO_DIAL = 1
_NEEDED_TO_JOIN = 0

#: Whether a socket that is accepted has TCP_NODELAY and SO_KEEPALIVE from its listener.
ACCEPTED_ARE_TUNED = sys.platform.startswith(("linux", "freebsd", "openbsd"))

#: How many more there must be when a client is accepted: for pipes, look-ups of names, files.
_TO_SPARE = 8

#: What accept fails with where one client's connection has failed: the next may be there already.
#: Linux passes errors of the network on that are pending on the new socket (accept(2)).
_OF_ONE_CLIENT = {errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO}
_OF_ONE_CLIENT |= {errno.ETIMEDOUT, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENETDOWN}
_OF_ONE_CLIENT |= {errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
_OF_ONE_CLIENT |= {getattr(errno, "ENONET", errno.ENETDOWN)}  # Linux alone has it

#: Seconds after which a shortage is looked at again although no connection of ours has ended.
_RETRY_AFTER = 1.0


class Client:
    """An accepted client, as a proxy's ``open_target`` is given it.

    Where a PROXY header was accepted, ``address``, ``name`` and ``counts_as`` are those of the
    client that the header names, and ``header`` has all that it says.  ``open_target`` may set
    ``requested`` and ``server_name``: a PROXY header that is sent to the target names them.
    """

    #: The accepted PROXY header; None where there was none.
    header: ProxyHeader | None = None
    #: What identifies the connection in PROXY headers: given by the accepted one, or made for that
    #: which is sent; None where there is neither.
    unique_id: bytes | None = None
    #: The host and port that the client asked for; None unless ``open_target`` sets it.
    requested: Address | None = None
    #: The server name in its TLS ClientHello; None unless ``open_target`` sets it.
    server_name: str | None = None
    #: Watches for a header that it must not send; None where nobody does.
    first_bytes: FirstBytes | None = None

    def __init__(
        self,
        server: ProxyServer,
        sock: socket.socket,
        address: SocketAddress,
        handshake: Handshake,
        spare: Spare,
        counts_as: str,
    ) -> None:
        #: Non-blocking; the server closes it.
        self.socket = sock
        self.address = address
        #: The address of its connection: that of the proxy which has sent a PROXY header for it.
        self.peer = address
        #: Its address, as the log shows it.
        self.name = show(address)
        #: Who it counts as, for limits and turns: an IPv4 address or an IPv6 network.
        self.counts_as = counts_as
        #: For what it says before its bytes are only passed on.
        self.handshake = handshake
        self.target: socket.socket | None = None
        #: The last that was dialled for it: nobody else has that one.
        self.dialled: socket.socket | None = None
        self.relay: Relay | None = None
        self.spare = spare
        self._server = server

    def __str__(self) -> str:
        """Its address, and through whom it has come, as the log shows them."""
        return f"{self.name} via {show(self.peer)}" if self.is_proxied else self.name

    @property
    def is_proxied(self) -> bool:
        """Whether it is somebody else than who has connected: a PROXY header says so."""
        return self.header is not None and self.header.source is not None

    def is_known_as(self, header: ProxyHeader) -> None:
        """Take it for the client that the PROXY header names.

        Of a Unix socket's path nothing depends: it is only shown, and sent on.
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
    ) -> socket.socket:
        """Connect to the first address of the name that answers, within ``connect_timeout``.

        ``refusal`` says of each address why nobody may connect to it, or None; ``prepare`` is given
        each socket before it connects.  While there are too few descriptors, it waits for some: the
        whole never takes more than twice ``connect_timeout``.  Raises TargetError;
        RefusedTargetError where all addresses are refused.
        """
        with self.handshake.suspended(), self.handshake.during(f"while connecting to {address}"):
            self.dialled = await self._server.dial_for(self, address, refusal, prepare)
            return self.dialled


#: Connect to where this client wants to go.  The second part is what has been read already and
#: must go first: (from the client, from the target).  An OSError is logged, the client closed.
OpenTarget = Callable[[Client], Awaitable[tuple[socket.socket, tuple[bytes, bytes]]]]


class ProxyServer:
    """Accepts clients, joins each to the target that ``open_target`` opens, and logs every end.

    ``connect_timeout`` (seconds) bounds a whole ``dial``: looking the name up and trying each of
    its addresses; where it has to wait for descriptors, it may take twice that.  ``idle_timeout``
    (seconds, None: none) is the relay's.  ``grace`` (seconds) is how long live connections may go
    on after ``stop``.  ``keepalive`` asks the system to find out about peers that have vanished:
    nothing else would while nothing is sent to them (F17).  ``buffer_size`` (bytes, None: the
    system's choice) is that of each socket's buffers; ``limits`` says what clients may take.

    ``accept_proxy`` are the networks whose clients must begin with a PROXY header (v1 or v2), which
    says who the client is; a header from anybody else is refused.  ``send_proxy`` ("v1", "v2",
    None: none) is the header that each target is sent.
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
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._hangups = Hangups()
        self._worker: LocalWorker | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._stops = 0
        self._cutting = False
        # Whether descriptors are short: from the first that are missing until nobody waits.
        self._short = False

    def listen(self, address: Address, backlog: int = 1024) -> list[SocketAddress]:
        """Listen on every address that the name stands for; with port 0 on one free port of all.

        Gives the addresses that it got.  Raises ListenError.
        """
        opened = listen_on(address, backlog, buffers=self._buffer_size)
        say_listening(opened)
        self.use(opened)
        return [listener.getsockname() for listener in opened]

    def use(self, listeners: Iterable[socket.socket]) -> None:
        """Listen on sockets that listen already; ``run`` closes them at its end."""
        for listener in listeners:
            listener.setblocking(False)
            if ACCEPTED_ARE_TUNED:
                tune(listener, self._keepalive)
            as_usual(listener)
            self._listeners.append(listener)

    async def run(self) -> None:
        """Serve until ``stop``, then until the last connection has ended."""
        _start_workers()
        loop = asyncio.get_running_loop()
        self._worker = current().local_worker()
        if self._worker is not None:
            loop.add_reader(self._worker.fileno(), self._move)
        accepting = [loop.create_task(self._accept(listener)) for listener in self._listeners]
        for task in accepting:
            task.add_done_callback(lambda _: self._wake())
        try:
            while not self._stops and not any(task.done() for task in accepting):
                await self._change()
        except asyncio.CancelledError:
            self._stops = 2
            raise
        finally:
            for task in accepting:
                task.cancel()
            ends = await asyncio.gather(*accepting, return_exceptions=True)
            for listener in self._listeners:
                listener.close()
            await self._finish()
            if self._worker is not None:
                loop.remove_reader(self._worker.fileno())
                self._worker.close()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def _move(self) -> None:
        """The worker's flows, in the loop's thread."""
        worker = self._worker
        if worker is not None and not worker.is_closed and worker.turn():
            asyncio.get_running_loop().call_soon(self._move)

    def stop(self) -> None:
        """Accept no more and give live connections the grace time; a second call cuts them.

        Cut connections are sent no more than what was under way, and reset behind that. After a
        third call, or 10 seconds, ``run`` waits no longer for slow readers: what they have not
        taken by the end of the program is lost. To be called in the loop's thread.
        """
        self._stops += 1
        self._wake()

    async def dial_for(
        self, client: Client, address: Address, refusal: Refusal, prepare: Prepare
    ) -> socket.socket:
        """``Client.dial``.

        An attempt that meets a shortage is made again after a while.  Each has ``connect_timeout``,
        and the last begins no later than that after the first.  Raises StarvedError then.
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
                    before_socket=lambda: client.spare.keep(_NEEDED_TO_JOIN),
                    client=client.counts_as,
                )
            except TargetError:
                raise
            except OSError as error:
                await self._shortage(error, last_begins - loop.time())
                if loop.time() >= last_begins:
                    raise StarvedError(address, why(error)) from error

    # Accepting

    async def _accept(self, listener: socket.socket) -> None:
        while not self._stops:
            accepting = Accepting(
                listener,
                await self._room(),
                room=self._room_now,
                accepted=self._accepted,
                nobody_waits=self._say_enough,
            )
            error = await accepting.run()
            if error is not None:
                await self._accept_failed(listener, error)

    def _accepted(self, sock: socket.socket, address: SocketAddress, spare: Spare) -> None:
        place = None
        try:
            # Who has yet to say for whom it connects is counted as that one.
            is_sender = self._headers is not None and self._headers.is_sender(address)
            place = self._occupancy.enter(() if is_sender else address)
            if place is not None:
                self._begin(sock, address, spare, place)
                return
            self._say_refused(show(address), {"client": show(address)})
        except Exception:
            logger.exception("an accepted client cannot be served")
        if place is not None:
            self._occupancy.leave(place)
        sock.close()
        spare.keep(0)

    def _say_refused(self, client: object, facts: dict[str, object]) -> None:
        logger.warning(
            "%s: refused: the client already has %d connections",
            client,
            self._limits.per_client,
            extra=fields("refused", **facts),
        )

    def _begin(self, sock: socket.socket, address: SocketAddress, spare: Spare, place: str) -> None:
        sock.setblocking(False)
        handshake = Handshake(sock, self._limits.handshake_timeout, self._limits.handshake_bytes)
        client = Client(self, sock, address, handshake, spare, place)
        logger.debug("%s: accepted", client.name)
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._clients[task] = client
        task.add_done_callback(self._ended)

    async def _room(self) -> Spare:
        """Wait until there is all that one more connection needs, and take it.

        Clients that had only a part of it could wait for each other's for ever.
        """
        while True:
            try:
                spare = self._room_now()
            except OSError as error:
                await self._shortage(error)
                continue
            if spare is not None:
                return spare
            await self._change()

    def _room_now(self) -> Spare | None:
        """None where there are as many clients as there may be; OSError for lack of descriptors."""
        if self._stops:
            return None
        if len(self._clients) >= self._limits.connections:
            self._say_short("connection limit reached")
            return None
        return Spare(_NEEDED_TO_DIAL, _TO_SPARE)

    async def _accept_failed(self, listener: socket.socket, error: OSError) -> None:
        if error.errno in SHORTAGES:
            await self._shortage(error)
        elif not _listens(listener):
            reason = f"{_own_name(listener)} accepts no clients any more: {why(error)}"
            raise ListenError(error.errno, reason) from error
        elif error.errno in _OF_ONE_CLIENT:
            await asyncio.sleep(0)  # let the others have their turn
        else:
            logger.error("cannot accept: %s", why(error))
            await asyncio.sleep(_RETRY_AFTER)

    async def _shortage(self, error: OSError, seconds: float = math.inf) -> None:
        """Wait for descriptors: until a connection has ended, or a while: others can free some.

        ``seconds`` at most.  Raises ``error`` where waiting doesn't help.
        """
        if error.errno not in SHORTAGES:
            raise error
        self._say_short(why(error))
        await self._change(min(_RETRY_AFTER, seconds))

    def _say_short(self, reason: str) -> None:
        if not self._short:
            self._short = True
            live = len(self._clients)
            logger.warning("%s: accepting pauses at %d connections", reason, live)

    def _say_enough(self) -> None:
        if self._short:
            self._short = False
            logger.info("accepting has resumed")

    def _ended(self, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        client.spare.keep(0)
        self._occupancy.leave(client.counts_as)
        if not task.cancelled() and task.exception():
            logger.error("%s: failed", client, exc_info=task.exception())
        self._wake()

    # One connection

    async def _serve(self, client: Client) -> None:
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
                target_name = _peer_name(target)
                relay = await self._join(client, target, initial)
            except OSError as error:
                failed = fields("failed", **_who(client), error=str(error))
                logger.warning("%s: %s", client, error, extra=failed)
                return
            unless_joined.pop_all()  # they are the relay's
        outcome = await end_of(relay)
        logger.info(
            "%s -> %s: %s",
            client,
            target_name,
            _describe(outcome),
            extra=fields("connection", **_who(client), target=target_name, **_facts(outcome)),
        )

    def _is_welcome(self, client: Client) -> bool:
        """Count a client that a header has named; False where it has too many connections."""
        if client.header is None:
            return True
        place = self._occupancy.enter(client.address)
        if place is None:
            self._say_refused(client, _who(client))
            return False
        self._occupancy.leave(client.counts_as)
        client.counts_as = place
        return True

    async def _join(
        self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]
    ) -> Relay:
        if not ACCEPTED_ARE_TUNED:
            tune(client.socket, self._keepalive)
        tune(target, self._keepalive)
        client.spare.keep(0)
        # What is to be passed on is ``initial``: this would only be kept until the client goes.
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
                    await self._shortage(error)
        return client.relay

    def _relay(self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]) -> Relay:
        idle, worker = self._idle_timeout, self._worker
        if target is client.dialled:
            return GivenRelay(
                client.socket, target, worker=worker, idle_timeout=idle, initial=initial
            )
        return Relay(client.socket, target, idle_timeout=idle, close=True, initial=initial)

    # Stopping

    async def _finish(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        logger.info("stopping: %d connections live, %g s left", len(self._clients), self._grace)
        while self._clients and self._stops < 2 and loop.time() < deadline:
            await self._change(deadline - loop.time())
        if self._clients:
            logger.warning("cutting %d connections", len(self._clients))
            self._cut()
            deadline = loop.time() + LINGER
            while self._clients and self._stops < 3 and loop.time() < deadline:
                await self._change(deadline - loop.time())
        for client in self._clients.values():
            if client.relay is not None:
                client.relay.end_soon()
        while self._clients:
            await self._change()

    def _cut(self) -> None:
        """End all. What clients and targets were sent is delivered before they are reset."""
        self._cutting = True
        for task, client in list(self._clients.items()):
            if client.relay is None or client.target is None:
                task.cancel()
            else:
                client.relay.cut_soon()

    # Waiting for something to change

    async def _change(self, seconds: float | None = None) -> None:
        """Wait until a connection has ended, ``stop`` was called, or ``seconds`` have passed."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.add(waiting)
        timer = None if seconds is None else loop.call_later(seconds, _set, waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        for waiting in self._waiting:
            _set(waiting)


def say_listening(listeners: Iterable[socket.socket]) -> None:
    for listener in listeners:
        where = show(listener.getsockname())
        logger.info("listening on %s", where, extra=fields("listening", address=where))


def _listens(listener: socket.socket) -> bool:
    """Whether clients can ever be accepted from it; True as well where the system doesn't say."""
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        return error.errno not in (errno.EBADF, errno.ENOTSOCK)


def _start_workers() -> None:
    """Start the engine's workers: later they would take the descriptors of accepted clients."""
    for _ in range(os.cpu_count() or 1):
        current().flows(1)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _describe(outcome: RelayOutcome) -> str:
    return describe(outcome, ("up", "down"), ("client", "target"))


def _who(client: Client) -> dict[str, object]:
    """The client as a program reads it."""
    return {
        "client": client.name,
        **({"via": show(client.peer)} if client.is_proxied else {}),
        **({"unique_id": show_bytes(client.unique_id)} if client.unique_id is not None else {}),
    }


def _facts(outcome: RelayOutcome) -> dict[str, object]:
    """The same as a program reads it."""
    up, down = outcome.left_to_right, outcome.right_to_left
    return {
        "bytes_up": up.bytes,
        "bytes_down": down.bytes,
        **({"undelivered_up": up.undelivered} if up.undelivered else {}),
        **({"undelivered_down": down.undelivered} if down.undelivered else {}),
        "reason": outcome.reason.value,
        "error": None if outcome.error is None else why(outcome.error),
        "failed": None if outcome.error is None else _failed_side(outcome),
        "seconds": round(outcome.seconds, 6),
        "backend": list(dict.fromkeys(f"{way.backend}/{way.mover}" for way in (up, down))),
    }


def _failed_side(outcome: RelayOutcome) -> str:
    """Whose connection it was, where there is an error."""
    up = outcome.left_to_right
    upwards = up.reason is outcome.reason and up.error is outcome.error
    return "client" if upwards == (outcome.reason is Reason.SOURCE_ERROR) else "target"


def _own_name(sock: socket.socket) -> str:
    try:
        return show(sock.getsockname())
    except OSError:  # it is closed
        return "a listening socket"


def _peer_name(sock: socket.socket) -> str:
    try:
        return show(sock.getpeername())
    except OSError:  # it has reset meanwhile
        return show(None)
