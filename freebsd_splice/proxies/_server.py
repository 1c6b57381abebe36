"""The server that all proxies share: it accepts, joins, limits, stops, and logs.

A proxy is a function that is given an accepted client and returns the connection to join it to.
One asyncio loop accepts and connects. ``Relay`` alone moves the bytes; it needs no thread of its
own for a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Iterable
from functools import partial
from typing import cast

from .. import Relay
from .._core.time_limits import check_seconds
from .._errors import why
from .._relay import LINGER, GivenRelay
from .._runtime import current
from .._userspace.workers import LocalWorker
from ..aio._ending import end_of
from . import _pausing
from ._accepting import Accepting
from ._addresses import Address, Resolved, SocketAddress, show
from ._client import Client, OpenTarget
from ._connecting import (
    SHORTAGES,
    Dialer,
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
from ._direct import Direct, ReservedSocket
from ._event_loop import ProxyLoop
from ._handshake import Handshake
from ._hangups import Hangups
from ._limits import Limits, Occupancy
from ._listening import ListenError, listen_on, listens, own_name, say_listening
from ._log import logger
from ._loop_relay import LoopRelay
from ._pausing import Changes, Shortage
from ._proxy_headers import Network, ProxyHeaders
from ._proxy_protocol import Version
from ._reporting import peer_name, report_end, report_failure, report_refusal, who
from ._taskless import Failed, Taskless

#: Descriptors that a connection needs besides its client's: one for the target.
_NEEDED_TO_DIAL = 1
_NEEDED_TO_JOIN = 0

#: Whether accepted sockets have TCP_NODELAY and SO_KEEPALIVE from their listener.
ACCEPTED_ARE_TUNED = sys.platform.startswith(("linux", "freebsd", "openbsd"))

#: Descriptors that must be free besides those when a client is accepted: for pipes, look-ups of
#: names, and files.
_TO_SPARE = 8

#: The errnos of accept that are about one client's connection: another client may be waiting. Linux
#: passes errors of the network on that are pending on the new socket (accept(2)).
_OF_ONE_CLIENT = {errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO}
_OF_ONE_CLIENT |= {errno.ETIMEDOUT, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENETDOWN}
_OF_ONE_CLIENT |= {errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
_OF_ONE_CLIENT |= {getattr(errno, "ENONET", errno.ENETDOWN)}  # Linux alone has it


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
        #: The live connections that have a task; ``_taskless`` has the others.
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._hangups = Hangups()
        #: The loop's own worker, and what it serves; None where pollers can't be nested.
        self._worker: LocalWorker | None = None
        self._taskless: Taskless | None = None
        #: None where each client needs a task to find its target.
        is_direct = isinstance(open_target, Direct) and self._headers is None
        self._direct = cast(Direct, open_target) if is_direct else None
        self._stops = 0
        self._cutting = False
        self._stopped = Changes()  # told of a stop
        self._changes = Changes()  # told of a stop, and of the end of each connection
        self._shortage = Shortage(self._changes, self._count_live)

    def listen(self, address: Address, backlog: int = 1024) -> list[SocketAddress]:
        """Listen on every address that a name stands for.

        Addresses that this machine doesn't have are left out, as long as one is left. Sockets for
        IPv6 take no IPv4 clients: those have sockets of their own.

        Args:
            address: the host and port; host "" is every address of this machine, port 0 one free
                port, the same on all addresses.
            backlog: how many clients may wait to be accepted. Where the system allows fewer, a
                warning in the log says so.

        Returns:
            The addresses of the listening sockets.

        Raises:
            ListenError: the name can't be looked up, or an address can't be listened on (errno
                EADDRINUSE, EACCES, ...).
        """
        opened = listen_on(address, backlog, buffers=self._buffer_size)
        say_listening(opened)
        self.use(opened)
        return [listener.getsockname() for listener in opened]

    def use(self, listeners: Iterable[socket.socket]) -> None:
        """Accept clients from these sockets as well, which listen already.

        They are made non-blocking, and ``run`` closes them at its end.

        Args:
            listeners: listening TCP sockets.
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
        _start_workers()
        loop = asyncio.get_running_loop()
        self._open_worker()
        accepting = [loop.create_task(self._accept(listener)) for listener in self._listeners]
        for task in accepting:
            task.add_done_callback(lambda _: self._stopped.wake())
        try:
            while not self._stops and not any(task.done() for task in accepting):
                await self._stopped.wait()
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
            self._close_worker()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def _open_worker(self) -> None:
        """Have the loop's own thread move bytes, where that is possible."""
        loop, runtime = asyncio.get_running_loop(), current()
        self._worker = worker = runtime.local_worker()
        if worker is None:
            return
        if not (isinstance(loop, ProxyLoop) and loop.serve(worker)):
            loop.add_reader(worker.fileno(), self._move)
        if runtime.copies_first():
            self._taskless = Taskless(
                runtime,
                worker,
                self._direct,
                prepare=partial(set_buffers, size=self._buffer_size),
                connect_timeout=self._connect_timeout,
                idle_timeout=self._idle_timeout,
                keepalive=self._keepalive,
                client_of=partial(self._client, ReservedSocket(None)),
                serve_by_task=self._go_on_by_task,
                is_over=self._is_over,
            )

    def _close_worker(self) -> None:
        if self._taskless is not None:
            self._taskless.close()
        loop, worker = asyncio.get_running_loop(), self._worker
        if worker is not None:
            if isinstance(loop, ProxyLoop):
                loop.serve_no_more(worker)
            loop.remove_reader(worker.fileno())
            worker.close()

    def _move(self) -> None:
        """Let the flows of the loop's own worker move, on the loop's thread."""
        worker = self._worker
        if worker is not None and not worker.is_closed and worker.turn():
            asyncio.get_running_loop().call_soon(self._move)

    def stop(self) -> None:
        """Accept no more clients and let live connections go on for ``grace`` seconds.

        A second call cuts the connections: both sides get what is under way to them, and then a
        reset. A third call, or 10 seconds after the cut, ends the wait for slow readers as well:
        what those have not taken by the end of the program is lost. Must be called on the loop's
        thread.
        """
        self._stops += 1
        self._stopped.wake()
        self._changes.wake()

    async def _dial(
        self,
        reserved: ReservedDescriptors,
        counts_as: str,
        address: Address,
        refusal: Refusal,
        prepare: Prepare,
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
                accepted=partial(self._accepted, listener),
                nobody_waits=partial(self._nobody_waits, listener),
                must_know=partial(self._must_know_that_nobody_waits, listener),
                worker=self._worker,
            )
            error = await accepting.run()
            if error is not None:
                await self._accept_failed(listener, error)

    def _must_know_that_nobody_waits(self, listener: socket.socket) -> bool:
        return self._shortage.lasts or (ACCEPTED_ARE_TUNED and listener in self._untuned)

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
                if logger.isEnabledFor(logging.DEBUG):
                    logger.debug("%s: accepted", show(address))
                if self._taskless is None or not self._taskless.connect(
                    sock, address, reserved, place
                ):
                    self._begin(sock, address, reserved, place)
                return
            name = show(address)
            report_refusal(name, {"client": name}, self._limits.per_client)
        except Exception:
            logger.exception("an accepted client cannot be served")
        if place is not None:
            self._occupancy.leave(place)
        sock.close()
        reserved.keep(0)

    def _begin(
        self,
        sock: socket.socket,
        address: SocketAddress,
        reserved: ReservedDescriptors,
        place: str,
        after: Failed | None = None,
    ) -> None:
        """Serve a client by a task.

        Args:
            sock: the client.
            address: the client's address.
            reserved: what is reserved for the client.
            place: what the client is counted under.
            after: the target that could not be connected to, and why; None: none was tried.
        """
        sock.setblocking(False)
        client = self._client(reserved, sock, address, place)
        task = asyncio.get_running_loop().create_task(self._serve(client, reserved, after))
        self._clients[task] = client
        task.add_done_callback(partial(self._ended, reserved))

    def _client(
        self, reserved: ReservedDescriptors, sock: socket.socket, address: SocketAddress, place: str
    ) -> Client:
        handshake = Handshake(sock, self._limits.handshake_timeout, self._limits.handshake_bytes)
        return Client(sock, address, handshake, partial(self._dial, reserved, place), place)

    def _go_on_by_task(
        self, sock: socket.socket, address: SocketAddress, place: str, after: Failed | None
    ) -> None:
        try:
            self._begin(sock, address, ReservedSocket(None), place, after)
        except Exception:
            logger.exception("an accepted client cannot be served")
            sock.close()
            self._is_over(place)

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
        if self._count_live() >= self._limits.connections:
            self._shortage.begins("connection limit reached (--max-connections)")
            return None
        reserved = None if self._taskless is None else self._taskless.reserve()
        if reserved is not None:
            return reserved
        return ReservedDescriptors(_NEEDED_TO_DIAL, _TO_SPARE)

    async def _accept_failed(self, listener: socket.socket, error: OSError) -> None:
        if error.errno in SHORTAGES:
            await self._shortage.wait_after(error)
        elif not listens(listener):
            reason = f"{own_name(listener)} accepts no clients any more: {why(error)}"
            raise ListenError(error.errno, reason) from error
        elif error.errno in _OF_ONE_CLIENT:
            await asyncio.sleep(0)  # let other tasks run
        else:
            logger.error("cannot accept: %s", why(error))
            await asyncio.sleep(_pausing.RETRY_AFTER)

    def _count_live(self) -> int:
        return len(self._clients) + (0 if self._taskless is None else len(self._taskless))

    def _ended(self, reserved: ReservedDescriptors, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task, None)
        reserved.keep(0)
        if client is None:  # its connection lives on without the task
            return
        if not task.cancelled() and task.exception():
            logger.error("%s: failed", client, exc_info=task.exception())
        self._is_over(client.counts_as)

    def _is_over(self, place: str) -> None:
        """Count a connection no more."""
        self._occupancy.leave(place)
        self._changes.wake()

    # One connection

    async def _serve(
        self,
        client: Client,
        reserved: ReservedDescriptors,
        after: Failed | None = None,
    ) -> None:
        with contextlib.ExitStack() as unless_joined:
            unless_joined.callback(client.socket.close)
            try:
                with self._hangups.watch(client.handshake):
                    if self._headers is not None:
                        await self._headers.receive(client)
                        if not self._is_welcome(client):
                            return
                    if after is None or self._direct is None:
                        target, initial = await self._open_target(client)
                    else:
                        target, initial = await self._direct.after(client, *after)
                unless_joined.callback(target.close)
                client.target = target
                if self._headers is not None:
                    initial = await self._headers.before_join(client, target, initial)
                target_name = peer_name(target)
                relay = await self._join(client, target, initial, reserved)
            except OSError as error:
                report_failure(client, error)
                return
            unless_joined.pop_all()  # the relay closes them
        if isinstance(relay, LoopRelay):
            task = asyncio.current_task()
            assert task is not None
            del self._clients[task]  # ``_taskless`` counts it from now on
            relay.look()
            return
        worker = self._worker
        outcome = await end_of(relay, lambda: worker is not None and worker.is_at_work)
        report_end(client, target_name, outcome)

    def _is_welcome(self, client: Client) -> bool:
        """Count a client that a header has named; return whether it may have a connection more."""
        if client.header is None:
            return True
        place = self._occupancy.enter(client.address)
        if place is None:
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
    ) -> Relay | LoopRelay:
        tune(target, self._keepalive)
        reserved.keep(0)
        # ``initial`` is what is passed on; these bytes would only be kept until the client goes.
        client.handshake.received = bytearray()
        while True:
            if self._cutting:  # ``open_target`` can have missed that it was cancelled
                raise asyncio.CancelledError
            try:
                relay = self._relay(client, target, initial)
            except OSError as error:
                with (
                    client.handshake.during("while waiting for descriptors"),
                    self._hangups.watch(client.handshake),
                ):
                    await self._shortage.wait_after(error)
            else:
                client.joined_by(relay.as_relay if isinstance(relay, LoopRelay) else relay)
                return relay

    def _relay(
        self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]
    ) -> Relay | LoopRelay:
        idle, worker = self._idle_timeout, self._worker
        if client.has_dialled(target):
            for sock in (client.socket, target):
                if sock.gettimeout() != 0:  # ``open_target`` has set another one
                    sock.setblocking(False)
            if self._taskless is not None and not any(initial):
                relay = self._taskless.join(client, target)
                if relay is not None:
                    return relay
            return GivenRelay(
                client.socket, target, worker=worker, idle_timeout=idle, initial=initial
            )
        return Relay(client.socket, target, idle_timeout=idle, close=True, initial=initial)

    # Stopping

    async def _finish(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        logger.info("stopping: %d connections live, %g s left", self._count_live(), self._grace)
        while self._count_live() and self._stops < 2 and loop.time() < deadline:
            await self._changes.wait(deadline - loop.time())
        if self._count_live():
            logger.warning("cutting %d connections", self._count_live())
            self._cut()
            deadline = loop.time() + LINGER
            while self._count_live() and self._stops < 3 and loop.time() < deadline:
                await self._changes.wait(deadline - loop.time())
        for client in self._clients.values():
            if client.relay is not None:
                client.relay.end_soon()
        if self._taskless is not None:
            self._taskless.end_soon()
        while self._count_live():
            await self._changes.wait()

    def _cut(self) -> None:
        """End all connections; their sides are reset after what they were sent was delivered."""
        self._cutting = True
        for task, client in list(self._clients.items()):
            if client.relay is None or client.target is None:
                task.cancel()
            else:
                client.relay.cut_soon()
        if self._taskless is not None:
            self._taskless.cut()


def _start_workers() -> None:
    """Start the engine's workers now; later they would take descriptors of accepted clients."""
    for _ in range(os.cpu_count() or 1):
        current().flows(1)
