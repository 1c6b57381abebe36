"""The server that all proxies share: it accepts, joins, limits, stops, and logs.

A proxy is a function that is given an accepted client and returns the connection to join it to.
One asyncio loop accepts and connects. ``Relay`` alone moves the bytes; it needs no thread of its
own for a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

from .._core.time_limits import check_seconds
from .._errors import SHORTAGES, why
from .._relay import LINGER
from .._runtime import Runtime, current
from .._userspace.workers import LocalWorker
from ..aio._ending import end_of
from . import _pausing
from ._accepting import OF_ONE_CLIENT, Accepting
from ._addresses import Address, SocketAddress, show
from ._client import Client, OpenTarget
from ._connecting import (
    ReservedDescriptors,
    as_usual,
    reason_of,
    set_buffers,
    tune,
)
from ._dialing import Dialing
from ._direct import Connection, ReservedSocket, direct_of
from ._event_loop import LoopWorker
from ._handshake import Handshake
from ._hangups import Hangups
from ._joining import Joining
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
from ._log import fields, logger
from ._loop_relay import LoopRelay
from ._observing import Observer
from ._pausing import Changes, Shortage
from ._proxy_headers import Network, ProxyHeaders
from ._proxy_protocol import Version
from ._reporting import peer_name, report_end, report_failure, report_refusal, who
from ._taskless import Failed, Taskless

#: Descriptors that a connection needs besides its client's: one for the target.
_NEEDED_TO_DIAL = 1

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
        self._loop_worker: LoopWorker | None = None
        self._taskless: Taskless | None = None
        self._direct = direct_of(open_target, self._headers)
        #: Whether clients were ever accepted. For the package's own use.
        self.has_begun = False
        self._stops = 0
        self._retired = False
        self._stopped = Changes()  # told that no more clients are to be accepted
        self._changes = Changes()  # told of a stop, and of the end of each connection
        self._shortage = Shortage(self._changes, self._count_live)
        self._dialing = Dialing(connect_timeout, buffer_size, self._shortage)
        self._joining = Joining(idle_timeout, keepalive, self._hangups, self._shortage)
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
        try:
            say_listening(opened)
            addresses = [listener.getsockname() for listener in opened]
            self.use(opened)
        except OSError as error:
            for listener in opened:
                close_listener(listener)
            reason = f"cannot listen on {address}: {reason_of(error)}"
            raise ListenError(error.errno, reason) from error
        return addresses

    def use(self, listeners: Iterable[socket.socket]) -> None:
        """Accept clients from these sockets as well, which listen already.

        They are made non-blocking, and ``run`` closes them at its end.

        Args:
            listeners: listening TCP sockets, or Unix sockets for streams.
        """
        given = list(listeners)
        for listener in given:
            listener.setblocking(False)
            if ACCEPTED_ARE_TUNED:
                tune(listener, self._keepalive)
            as_usual(listener)
        self._listeners += given
        self._untuned.update(given)

    async def run(self) -> None:
        """Serve until ``stop`` is called, then until the last connection has ended.

        Cancelling the task that runs it cuts all connections.

        Raises:
            ListenError: a listening socket listens no more.
            OSError: at once: no descriptors for all loops' workers (EMFILE, ENFILE). For those
                of this loop's worker it waits, and says so in the log.
            RuntimeError: at once: no threads for them.
        """
        loop = asyncio.get_running_loop()
        try:
            current().start_workers()
            await self._open_worker_at_last()
        except BaseException:
            for listener in self._listeners:
                close_listener(listener)
            self._close_worker()
            raise
        self.has_begun = True
        accepting = [loop.create_task(self._accept(listener)) for listener in self._listeners]
        for task in accepting:
            task.add_done_callback(lambda _: self._stopped.wake())
        try:
            while not (self._stops or self._retired or any(task.done() for task in accepting)):
                await self._stopped.wait()
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
            self._close_worker()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _open_worker_at_last(self) -> None:
        """Open it once there are descriptors: at a reload, the connections may have them all."""
        while not (self._stops or self._retired):
            try:
                self._open_worker()
                return
            except OSError as error:
                await self._shortage.wait_after(error)

    def _open_worker(self) -> None:
        """Have the loop's own thread move bytes, where that is possible."""
        runtime = current()
        worker = runtime.local_worker()
        if worker is None:
            return
        loop_worker = LoopWorker(worker)  # closes it where this fails
        try:
            taskless = self._make_taskless(runtime, worker) if runtime.copies_first() else None
        except BaseException:
            loop_worker.close()
            raise
        self._loop_worker = loop_worker
        self._worker = self._joining.worker = worker
        self._taskless = self._joining.taskless = taskless

    def _make_taskless(self, runtime: Runtime, worker: LocalWorker) -> Taskless:
        return Taskless(
            runtime,
            worker,
            self._direct,
            prepare=partial(set_buffers, size=self._buffer_size),
            connect_timeout=self._connect_timeout,
            idle_timeout=self._idle_timeout,
            keepalive=self._keepalive,
            client_of=partial(self._client, ReservedSocket(None)),
            is_observed=type(self.observer) is not Observer,
            serve_by_task=self._go_on_by_task,
            is_over=self._is_over,
        )

    def _close_worker(self) -> None:
        if self._taskless is not None:
            self._taskless.close()
        if self._loop_worker is not None:
            self._loop_worker.close()

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

    def retire(self) -> None:
        """Accept no more clients and let live connections go on for as long as they last.

        The listening sockets are closed, and ``run`` returns after the last connection. Another
        server can accept from duplicates of those sockets meanwhile (``socket.dup``), so that no
        client is refused. ``stop`` ends a retired server as any other. Must be called on the loop's
        thread.
        """
        self._retired = True
        self._stopped.wake()

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
            self.observer.refused(None, None)
            report_refusal(name, {"client": name}, self._limits.per_client)
        except OSError as error:
            name, reason = show(address), reason_of(error)
            failed = fields("failed", client=name, error=reason)
            logger.warning("%s: cannot be served: %s", name, reason, extra=failed)
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
        client: Client | None = None,
        after: Failed | None = None,
    ) -> None:
        """Serve a client by a task.

        Args:
            sock: the client.
            address: the client's address.
            reserved: what is reserved for the client.
            place: what the client is counted under.
            client: the client, where ``observer`` knows it already.
            after: the target that could not be connected to, and why; None: none was tried.
        """
        sock.setblocking(False)
        if client is None:
            client = self._client(reserved, sock, address, place)
            self.observer.accepted(client)
        task = asyncio.get_running_loop().create_task(self._serve_whole(client, reserved, after))
        self._clients[task] = client
        task.add_done_callback(partial(self._ended, reserved))

    def _client(
        self, reserved: ReservedDescriptors, sock: socket.socket, address: SocketAddress, place: str
    ) -> Client:
        handshake = Handshake(sock, self._limits.handshake_timeout, self._limits.handshake_bytes)
        client = Client(sock, address, handshake, partial(self._dialing.dial, reserved), place)
        client.observer = self.observer
        return client

    def _go_on_by_task(self, connection: Connection, after: Failed | None) -> bool:
        """Serve by a task, from where connecting has failed; return False where that can't be."""
        sock, address, place = connection.client, connection.address, connection.place
        try:
            self._begin(sock, address, ReservedSocket(None), place, connection.named, after)
        except Exception:
            logger.exception("an accepted client cannot be served")
            return False
        return True

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
        elif error.errno in OF_ONE_CLIENT:
            await asyncio.sleep(0)  # let other tasks run
        else:
            logger.error("cannot accept: %s", why(error))
            await asyncio.sleep(_pausing.RETRY_AFTER)

    def _count_live(self) -> int:
        return len(self._clients) + (0 if self._taskless is None else len(self._taskless))

    def _ended(self, reserved: ReservedDescriptors, task: asyncio.Task[None]) -> None:
        reserved.keep(0)
        self._left(task)  # if it was cancelled before it began

    def _left(self, task: asyncio.Task[Any] | None) -> None:
        client = None if task is None else self._clients.pop(task, None)
        if client is not None:  # otherwise its connection lives on without the task
            self.observer.left(client)
            self._is_over(client.counts_as)

    def _is_over(self, place: str) -> None:
        """Count a connection no more."""
        self._occupancy.leave(place)
        self._changes.wake()

    # One connection

    async def _serve_whole(
        self, client: Client, reserved: ReservedDescriptors, after: Failed | None
    ) -> None:
        try:
            await self._serve(client, reserved, after)
        except Exception:
            logger.exception("%s: failed", client)
        finally:
            # In the step that has closed the client: it may come again before the next one. Whoever
            # waits for descriptors is woken when these are free.
            reserved.keep(0)
            self._left(asyncio.current_task())

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
                self.observer.handshaken(client, target_name)
                reserved.keep(0)
                relay = await self._joining.join(client, target, initial)
            except OSError as error:
                self.observer.refused(client, error)
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

    # Stopping

    async def _finish(self) -> None:
        while self._retired and self._count_live() and not self._stops:
            await self._changes.wait()
        if self._retired and not self._count_live():
            return
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
        self._joining.is_cutting = True
        for task, client in list(self._clients.items()):
            if client.relay is None or client.target is None:
                task.cancel()
            else:
                client.relay.cut_soon()
        if self._taskless is not None:
            self._taskless.cut()
