"""What every proxy needs: accept, join, limit, stop, and say what happened.

A proxy is a function that is given an accepted client and answers with the connection to join it
to.  One asyncio loop accepts and connects; the bytes are moved by ``Relay`` alone, which needs no
thread of its own for a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterable

from .. import Reason, Relay, RelayOutcome
from .._errors import why
from .._relay import LINGER
from .._runtime import current
from ..aio._ending import end_of
from . import _pausing
from ._addresses import Address, Resolved, SocketAddress, show
from ._client import Client, OpenTarget
from ._connecting import (
    SHORTAGES,
    Dialer,
    Prepare,
    Refusal,
    Spare,
    StarvedError,
    TargetError,
    set_buffers,
    tune,
)
from ._handshake import Handshake
from ._hangups import Hangups
from ._limits import Limits, Occupancy
from ._listening import ListenError, listen_on
from ._log import fields, logger
from ._pausing import Changes, Shortage

#: What a connection needs besides its client: the target, and the relay's duplicates of the two.
_NEEDED_TO_DIAL = 3
_NEEDED_TO_JOIN = 2

#: How many more there must be when a client is accepted: for pipes, look-ups of names, files.
_TO_SPARE = 8

#: What accept fails with where one client's connection has failed: the next may be there already.
#: Linux passes errors of the network on that are pending on the new socket (accept(2)).
_OF_ONE_CLIENT = {errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO}
_OF_ONE_CLIENT |= {errno.ETIMEDOUT, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENETDOWN}
_OF_ONE_CLIENT |= {errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
_OF_ONE_CLIENT |= {getattr(errno, "ENONET", errno.ENETDOWN)}  # Linux alone has it


class ProxyServer:
    """Accepts clients, joins each to the target that ``open_target`` opens, and logs every end.

    ``connect_timeout`` (seconds) bounds a whole ``dial``: looking the name up and trying each of
    its addresses; where it has to wait for descriptors, it may take twice that.  ``idle_timeout``
    (seconds, None: none) is the relay's.  ``grace`` (seconds) is how long live connections may go
    on after ``stop``.  ``keepalive`` asks the system to find out about peers that have vanished:
    nothing else would while nothing is sent to them (F17).  ``buffer_size`` (bytes, None: the
    system's choice) is that of each socket's buffers; ``limits`` says what clients may take.
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
    ) -> None:
        self._open_target = open_target
        self._connect_timeout = connect_timeout
        self._dialer = Dialer(connect_timeout)
        self._idle_timeout = idle_timeout
        self._grace = grace
        self._keepalive = keepalive
        self._buffer_size = buffer_size
        self._limits = limits or Limits()
        self._occupancy = Occupancy(self._limits.per_client)
        self._listeners: list[socket.socket] = []
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._hangups = Hangups()
        self._stops = 0
        self._cutting = False
        self._changes = Changes()
        self._shortage = Shortage(self._changes, lambda: len(self._clients))

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
            self._listeners.append(listener)

    async def run(self) -> None:
        """Serve until ``stop``, then until the last connection has ended."""
        _start_workers()
        loop = asyncio.get_running_loop()
        accepting = [loop.create_task(self._accept(listener)) for listener in self._listeners]
        for task in accepting:
            task.add_done_callback(lambda _: self._changes.wake())
        try:
            while not self._stops and not any(task.done() for task in accepting):
                await self._changes.wait()
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
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def stop(self) -> None:
        """Accept no more and give live connections the grace time; a second call cuts them.

        Cut connections are sent no more than what was under way, and reset behind that. After a
        third call, or 10 seconds, ``run`` waits no longer for slow readers: what they have not
        taken by the end of the program is lost. To be called in the loop's thread.
        """
        self._stops += 1
        self._changes.wake()

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
                await self._shortage.wait_after(error, last_begins - loop.time())
                if loop.time() >= last_begins:
                    raise StarvedError(address, why(error)) from error

    # Accepting

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self._stops:
            spare = await self._room()
            try:
                try:
                    sock, address = listener.accept()
                except BlockingIOError:
                    self._shortage.ends()  # for nobody is waiting
                    sock, address = await loop.sock_accept(listener)
            except OSError as error:
                spare.keep(0)
                await self._accept_failed(listener, error)
                continue
            except BaseException:
                spare.keep(0)
                raise
            try:
                self._accepted(sock, address, spare)
            except Exception:
                logger.exception("an accepted client cannot be served")
            # As long as clients are waiting sock_accept doesn't: let the others have their turn.
            await asyncio.sleep(0)

    def _accepted(self, sock: socket.socket, address: SocketAddress, spare: Spare) -> None:
        with contextlib.ExitStack() as unless_served:
            unless_served.callback(spare.keep, 0)
            unless_served.callback(sock.close)
            place = self._occupancy.enter(address)
            if place is None:
                logger.warning(
                    "%s: refused: the client already has %d connections",
                    show(address),
                    self._limits.per_client,
                    extra=fields("refused", client=show(address)),
                )
                return
            unless_served.callback(self._occupancy.leave, place)
            self._begin(sock, address, spare, place)
            unless_served.pop_all()

    def _begin(self, sock: socket.socket, address: SocketAddress, spare: Spare, place: str) -> None:
        sock.setblocking(False)
        handshake = Handshake(sock, self._limits.handshake_timeout, self._limits.handshake_bytes)
        client = Client(self, sock, address, handshake, spare)
        logger.debug("%s: accepted", client.name)
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._clients[task] = client
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: self._occupancy.leave(place))

    async def _room(self) -> Spare:
        """Wait until there is all that one more connection needs, and take it.

        Clients that had only a part of it could wait for each other's for ever.
        """
        while True:
            if len(self._clients) >= self._limits.connections:
                self._shortage.begins("connection limit reached")
                await self._changes.wait()
                continue
            try:
                return Spare(_NEEDED_TO_DIAL, _TO_SPARE)
            except OSError as error:
                await self._shortage.wait_after(error)

    async def _accept_failed(self, listener: socket.socket, error: OSError) -> None:
        if error.errno in SHORTAGES:
            await self._shortage.wait_after(error)
        elif not _listens(listener):
            reason = f"{_own_name(listener)} accepts no clients any more: {why(error)}"
            raise ListenError(error.errno, reason) from error
        elif error.errno in _OF_ONE_CLIENT:
            await asyncio.sleep(0)  # let the others have their turn
        else:
            logger.error("cannot accept: %s", why(error))
            await asyncio.sleep(_pausing.RETRY_AFTER)

    def _ended(self, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        client.spare.keep(0)
        if not task.cancelled() and task.exception():
            logger.error("%s: failed", client.name, exc_info=task.exception())
        self._changes.wake()

    # One connection

    async def _serve(self, client: Client) -> None:
        with contextlib.closing(client.socket):
            try:
                with self._hangups.watch(client.handshake):
                    target, initial = await self._open_target(client)
                with contextlib.closing(target):
                    client.target = target
                    target_name = _peer_name(target)
                    outcome = await self._join(client, target, initial)
            except OSError as error:
                failed = fields("failed", client=client.name, error=str(error))
                logger.warning("%s: %s", client.name, error, extra=failed)
                return
        logger.info(
            "%s -> %s: %s",
            client.name,
            target_name,
            _describe(outcome),
            extra=fields("connection", client=client.name, target=target_name, **_facts(outcome)),
        )

    async def _join(
        self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]
    ) -> RelayOutcome:
        tune(client.socket, self._keepalive)
        tune(target, self._keepalive)
        client.spare.keep(0)
        # What is to be passed on is ``initial``: this would only be kept until the client goes.
        client.handshake.received = bytearray()
        while client.relay is None:
            if self._cutting:  # ``open_target`` can have missed that it was cancelled
                raise asyncio.CancelledError
            try:
                client.relay = Relay(
                    client.socket,
                    target,
                    idle_timeout=self._idle_timeout,
                    close=True,
                    initial=initial,
                )
            except OSError as error:
                with (
                    client.handshake.during("while waiting for descriptors"),
                    self._hangups.watch(client.handshake),
                ):
                    await self._shortage.wait_after(error)
        return await end_of(client.relay)

    # Stopping

    async def _finish(self) -> None:
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
        """End all. What clients and targets were sent is delivered before they are reset."""
        self._cutting = True
        for task, client in list(self._clients.items()):
            if client.relay is None or client.target is None:
                task.cancel()
            else:
                client.relay.cut_soon()


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


def _describe(outcome: RelayOutcome) -> str:
    up, down = outcome.left_to_right, outcome.right_to_left
    reason = outcome.reason.value
    if outcome.error is not None:
        reason += f" ({_failed_side(outcome)}: {why(outcome.error)})"
    movers = dict.fromkeys(f"{way.backend}/{way.mover}" for way in (up, down))
    return (
        f"{up.bytes} bytes up, {down.bytes} bytes down, {reason}, {outcome.seconds:.3f} s, "
        f"{' and '.join(movers)}{_undelivered(up.undelivered, down.undelivered)}"
    )


def _undelivered(up: int | None, down: int | None) -> str:
    parts = [f"{count} {way}" for count, way in ((up, "up"), (down, "down")) if count]
    return f"; may not have arrived: {', '.join(parts)}" if parts else ""


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
