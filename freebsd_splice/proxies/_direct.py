"""Connecting clients whose target is known as soon as they are there, without a task for each.

A task, its coroutines, futures and timers cost more than all that is done for a short connection.
So what is the usual case, one target in numbers that can be connected to, is a few calls of plain
functions. Everything else (a name, a target that is down, a shortage) goes the way of all proxies.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

from .._errors import SHORTAGES
from .._platform.interface import Readiness
from .._platform.reset import reset_on_close
from .._platform.tcp import is_connected
from .._userspace.workers import LocalWorker
from ._addresses import SocketAddress
from ._client import Client, OpenTarget
from ._connecting import (
    TOO_LATE,
    UNDER_WAY,
    ReservedDescriptors,
    TargetError,
    is_its_own_peer,
    peer_of,
    plenty,
    reason_of,
)
from ._hangups import LOOK_EVERY, HangupError
from ._loop_relay import LoopRelay
from ._proxy_headers import ProxyHeaders
from ._targets import Known

#: Sockets that are made non-blocking need no call for it.
_NONBLOCKING_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)


@runtime_checkable
class Direct(Protocol):
    """What an ``OpenTarget`` has as well if it knows targets without asking the client.

    It reads nothing of the client, sets nothing of it, and lets nobody go elsewhere.
    """

    def next_known(self) -> Known | None:
        """Return the next target; None: it isn't known at once, or may be dead."""
        ...

    def take(self) -> None:
        """Have the target after that one be the next."""
        ...

    def is_there(self, number: int) -> None:
        """Note that a connection to the target of that number has been made."""
        ...

    async def after(
        self, client: Client, number: int, error: TargetError
    ) -> tuple[socket.socket, tuple[bytes, bytes]]:
        """Do what ``OpenTarget`` does, after connecting to the target of that number has failed."""
        ...


def direct_of(open_target: OpenTarget, headers: ProxyHeaders | None) -> Direct | None:
    """Return what knows the targets of clients at once; None where each client needs a task.

    So it is with everything that has to be asked, read or sent first: a PROXY header, a handshake,
    a name, ``--transparent``. Of the forwarder's targets, ``Targets.next_known`` says which are
    addresses in numbers. ``Taskless`` says what else it takes.
    """
    return open_target if headers is None and isinstance(open_target, Direct) else None


class ReservedSocket(ReservedDescriptors):
    """A socket for a target, made before its client is accepted: it is the reserved descriptor."""

    def __init__(self, sock: socket.socket | None, family: int = 0) -> None:
        self.socket = sock
        self._family = family  # the socket's own is put together each time it is asked

    def keep(self, count: int) -> None:
        if not count and self.socket is not None:
            self.socket.close()
            self.socket = None

    def is_for(self, family: int) -> bool:
        """Return whether the socket is there, and can be connected to such an address."""
        return self.socket is not None and self._family == family

    def take(self) -> socket.socket:
        """Return the socket, which is the caller's from now on."""
        taken, self.socket = self.socket, None
        assert taken is not None
        return taken


def reserve(family: int) -> ReservedSocket | None:
    """Return a non-blocking socket for a target.

    None: there may be too few descriptors besides, or this machine has no such addresses.

    Raises:
        OSError: there is none; the errno is one of SHORTAGES.
    """
    try:
        sock = socket.socket(family, _NONBLOCKING_STREAM)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return None
    # Numbers are given from the lowest on: see ``ReservedDescriptors``.
    if sock.fileno() >= plenty():
        sock.close()
        return None
    if _NONBLOCKING_STREAM == socket.SOCK_STREAM:
        sock.setblocking(False)
    return ReservedSocket(sock, family)


class Connection:
    """A client whose target was connected to, or is being connected to, without a task.

    Attributes:
        client: the client's socket.
        address: the client's address.
        place: what ``Occupancy.leave`` is to be given.
        target: the target's socket.
        known: what is being connected to; None once an ``OpenTarget`` has done that.
        peer: the address of the target's socket, once it is connected.
        relay: what joins the two.
        named: the client as ``OpenTarget`` was given it, or as the observer knows it; else None.
        began: when connecting has begun, by ``time.monotonic``, where that is observed.
        deadline: until when the target may take to answer, as the loop's time.
    """

    __slots__ = (
        *("address", "began", "client", "deadline", "known", "named", "peer", "place", "relay"),
        "target",
    )

    def __init__(
        self, client: socket.socket, address: SocketAddress, place: str, target: socket.socket
    ) -> None:
        self.client = client
        self.address = address
        self.place = place
        self.target = target
        self.known: Known | None = None
        self.peer: SocketAddress = ()
        self.relay: LoopRelay | None = None
        self.named: Client | None = None
        self.deadline = self.began = 0.0


class Dials:
    """Connects sockets, for one server.

    Args:
        worker: has the sockets in its poller that are not connected at once.
        seconds: the connect timeout.
        prepare: is given each socket before it connects.
        connected: is called with what is connected; its ``peer`` is set.
        failed: is called with what is not, and why: TargetError, HangupError, or an OSError of
            SHORTAGES. The target's socket is closed.
    """

    def __init__(
        self,
        worker: LocalWorker,
        seconds: float,
        prepare: Callable[[socket.socket], object],
        connected: Callable[[Connection], object],
        failed: Callable[[Connection, OSError], object],
    ) -> None:
        self._worker = worker
        self._seconds = seconds
        self._prepare = prepare
        self._connected = connected
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        #: Those that are not there yet, the first one first: all have the same time.
        self._waiting: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: Connection) -> None:
        """Connect. It may be connected, or have failed, when this returns."""
        sock, known = connection.target, connection.known
        assert known is not None
        where = known.resolved.address
        try:
            self._prepare(sock)
        except OSError as error:
            self._fail(connection, error)
            return
        peer = None
        try:
            number = sock.connect_ex(where)
            if not number or number in UNDER_WAY:
                # To this machine it is there already, for what takes less than a round of the loop.
                peer = peer_of(sock)
                if peer is None:
                    self._wait(connection)
                    return
                number = 0
        except OSError as error:
            number = error.errno or errno.EIO
        self._check(connection, number, peer or ())

    def cancel(self) -> None:
        """Forget all that wait. The targets' sockets are to be closed."""
        for connection in list(self._waiting):
            self._forget(connection)

    def close(self) -> None:
        """Have no timer any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, connection: Connection, number: int, peer: SocketAddress) -> None:
        assert connection.known is not None
        port = connection.known.resolved.address[1]
        if not number and is_its_own_peer(connection.target, port):
            # A FIN would keep the port from the server for a while.
            reset_on_close(connection.target)
            number = errno.ECONNREFUSED
        if number:
            self._fail(connection, OSError(number, os.strerror(number)))
        else:
            connection.peer = peer
            self._connected(connection)

    def _fail(self, connection: Connection, error: OSError, reason: str | None = None) -> None:
        connection.target.close()
        if error.errno in SHORTAGES:
            self._failed(connection, error)
            return
        assert connection.known is not None
        address, resolved, _ = connection.known
        text = f"cannot connect to {address} ({resolved}: {reason or reason_of(error)})"
        self._failed(connection, TargetError(error.errno or errno.EIO, text))

    # Those that are not there at once

    def _wait(self, connection: Connection) -> None:
        try:
            look = partial(self._look_at, connection)
            self._worker.tell(connection.target, Readiness.WRITE, look)
        except OSError as error:  # the poller has no room
            self._fail(connection, error)
            return
        connection.deadline = self._loop.time() + self._seconds
        self._waiting[connection] = None
        if self._timer is None:
            self._set_timer(connection)

    def _look_at(self, connection: Connection, ready: Readiness) -> None:
        """See what became of it, as the poller has reported something."""
        sock = connection.target
        try:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:
            number = error.errno or errno.EIO
        peer = None if number else peer_of(sock)
        self._forget(connection)
        if not number and peer is None:  # it has been reset at once
            number = errno.ECONNRESET
        self._check(connection, number, peer or ())

    def _forget(self, connection: Connection) -> None:
        self._worker.tell_no_more(connection.target)
        self._waiting.pop(connection, None)

    def _set_timer(self, first: Connection) -> None:
        left = first.deadline - self._loop.time()
        self._timer = self._loop.call_later(max(0.0, min(LOOK_EVERY, left)), self._look)

    def _look(self) -> None:
        """Find whose time is over, and which clients have gone."""
        self._timer = None
        now = self._loop.time()
        for connection in list(self._waiting):
            if connection.deadline <= now:
                self._forget(connection)
                timeout = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                self._fail(connection, timeout, TOO_LATE)
            elif not is_connected(connection.client):
                self._forget(connection)
                connection.target.close()
                assert connection.known is not None
                stage = f"while connecting to {connection.known.address}"
                self._failed(connection, HangupError(stage))
        if self._timer is None and self._waiting:
            self._set_timer(next(iter(self._waiting)))
