"""The connections of a server that have no task: one is enough to accept them all.

A client whose target is known at once is connected and joined by plain calls (``_direct``). Any
other has a task until it is joined, and none from then on. ``_loop_relay`` moves the bytes.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from functools import partial

from .._platform.reset import last_close_waits
from .._runtime import Runtime
from .._userspace.workers import LocalWorker
from ._addresses import SocketAddress, show
from ._client import Client
from ._connecting import ReservedDescriptors, TargetError, peer_of, tune
from ._direct import Connection, Dials, Direct, ReservedSocket, reserve
from ._hangups import HangupError
from ._log import logger
from ._loop_relay import LoopRelay, LoopRelays
from ._reporting import report_end, report_failure
from ._unix_sockets import AF_UNIX, UnixPeer

#: The number of a target that could not be connected to, and why.
Failed = tuple[int, TargetError]


class Taskless:
    """All such connections of one server.

    A ``LoopRelay`` needs two TCP connections that were made for it, with nothing read that is to
    be passed on first. Everybody else has a task and another relay: ``connect`` and ``join`` say
    so.

    Args:
        runtime: this process's.
        worker: the loop's own, which has their sockets in its poller.
        direct: knows the targets of clients at once; None: each client needs a task to find it.
        prepare: is given each target's socket before it connects.
        connect_timeout: as for ``ProxyServer``.
        idle_timeout: as for ``ProxyServer``.
        keepalive: as for ``ProxyServer``.
        is_observed: whether each client's observer is to be told what happens. It costs a
            ``Client`` for each connection; else there is one where the log needs it.
        client_of: makes the ``Client`` of a socket, an address, and the place that it counts as.
        serve_by_task: serves a connection's client by a task, from where connecting has failed;
            returns whether that is possible.
        is_over: is told of the place that is free again.
    """

    def __init__(
        self,
        runtime: Runtime,
        worker: LocalWorker,
        direct: Direct | None,
        *,
        prepare: Callable[[socket.socket], object],
        connect_timeout: float,
        idle_timeout: float | None,
        keepalive: bool,
        is_observed: bool,
        client_of: Callable[[socket.socket, SocketAddress, str], Client],
        serve_by_task: Callable[[Connection, Failed | None], bool],
        is_over: Callable[[str], object],
    ) -> None:
        self._direct = direct
        self._keepalive = keepalive
        self._is_observed = is_observed
        self._make_client = client_of
        self._serve_by_task = serve_by_task
        self._is_over = is_over
        self._relays = LoopRelays(runtime, worker, idle_timeout)
        self._dials = Dials(worker, connect_timeout, prepare, self._connected, self._not_connected)
        self._live: set[Connection] = set()

    def __len__(self) -> int:
        """How many are live."""
        return len(self._live)

    def reserve(self) -> ReservedSocket | None:
        """Return a socket for the next client's target; None: it needs a task, or more is needed.

        Raises:
            OSError: there is none; the errno is one of SHORTAGES.
        """
        known = None if self._direct is None else self._direct.next_known()
        return None if known is None else reserve(known.resolved.family)

    def connect(
        self, sock: socket.socket, address: SocketAddress, reserved: ReservedDescriptors, place: str
    ) -> bool:
        """Connect a client to its target; return False where it needs a task."""
        if not isinstance(reserved, ReservedSocket) or self._direct is None:
            return False
        if isinstance(address, UnixPeer):
            return False
        known = self._direct.next_known()
        if known is None or not reserved.is_for(known.resolved.family):
            return False
        self._direct.take()
        sock.setblocking(False)
        connection = Connection(sock, address, place, reserved.take())
        connection.known = known
        self._live.add(connection)
        try:
            if self._is_observed:
                self._observe(connection)
            self._dials.begin(connection)
        except BaseException:
            connection.target.close()
            self._discard(connection)
            raise
        return True

    def _observe(self, connection: Connection) -> None:
        client = self._client_of(connection)
        client.observer.accepted(client)
        connection.named = client
        connection.began = time.monotonic()

    def join(self, client: Client, target: socket.socket) -> LoopRelay | None:
        """Join a client of a task and its target; None: it takes another relay.

        Both sockets are non-blocking, and nobody else's.

        Raises:
            OSError: the poller has no room.
        """
        for sock in (client.socket, target):
            if sock.family == AF_UNIX or last_close_waits(sock):
                return None
        connection = Connection(client.socket, client.address, client.counts_as, target)
        connection.named = client
        connection.peer = peer_of(target) or ()
        relay = self._join(connection)
        self._live.add(connection)
        return relay

    def cut(self) -> None:
        """End them all; their sides are reset after what they were sent was delivered."""
        self._dials.cancel()
        for connection in list(self._live):
            if connection.relay is not None:
                connection.relay.cut_soon()
            else:  # not connected yet; or a signal handler raised amid that
                connection.target.close()
                self._give_up(connection, None)

    def end_soon(self) -> None:
        """End them all, and wait for no slow reader any more."""
        for connection in list(self._live):
            if connection.relay is not None:
                connection.relay.end_soon()

    def close(self) -> None:
        """Give up what they share: none is left."""
        self._dials.close()
        self._relays.close()

    def _connected(self, connection: Connection) -> None:
        """Join a client and its target, as there is a connection to it."""
        try:
            assert self._direct is not None
            assert connection.known is not None
            self._direct.is_there(connection.known.number)
            tune(connection.target, self._keepalive)
            client = connection.named
            if client is not None:
                client.observer.dialled(client, time.monotonic() - connection.began, None)
                client.observer.handshaken(client, show(connection.peer))
            relay = self._join(connection)
            if client is not None:
                client.joined_by(relay.as_relay, relay.progress)
        except Exception as error:
            connection.target.close()
            if not isinstance(error, OSError):
                logger.exception("a client cannot be joined to its target")
            self._give_up(connection, error if isinstance(error, OSError) else None)
        else:
            relay.look()

    def _join(self, connection: Connection) -> LoopRelay:
        over = partial(self._ended, connection)
        connection.relay = self._relays.begin(connection.client, connection.target, over)
        return connection.relay

    def _not_connected(self, connection: Connection, error: OSError) -> None:
        """Have a task do what is left, as the target could not be connected to at once."""
        if isinstance(error, HangupError):
            self._give_up(connection, error)
            return
        assert connection.known is not None
        failed, client = None, connection.named
        if isinstance(error, TargetError):
            failed = connection.known.number, error
            if client is not None:
                client.observer.dialled(client, time.monotonic() - connection.began, error)
        self._live.discard(connection)
        if not self._serve_by_task(connection, failed):
            self._give_up(connection, None)

    def _give_up(self, connection: Connection, error: OSError | None) -> None:
        """Close a client that was joined to no target."""
        connection.client.close()
        try:
            if error is not None:
                client = self._client_of(connection)
                client.observer.refused(client, error)
                report_failure(client, error)
        except Exception:
            logger.exception("the failure of a connection cannot be reported")
        finally:  # a signal handler can raise at any step
            self._forget(connection)

    def _ended(self, connection: Connection) -> None:
        """Report a connection that is over."""
        relay = connection.relay
        assert relay is not None
        try:
            if connection.named is not None or logger.isEnabledFor(logging.INFO):
                client, outcome = self._client_of(connection), relay.outcome()
                client.observer.ended(client, outcome)
                report_end(client, show(connection.peer), outcome)
        except Exception:
            logger.exception("the end of a connection cannot be reported")
        finally:  # a signal handler can raise at any step
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._discard(connection)
        self._is_over(connection.place)

    def _discard(self, connection: Connection) -> None:
        self._live.discard(connection)
        client = connection.named
        if client is not None:
            client.observer.left(client)

    def _client_of(self, connection: Connection) -> Client:
        if connection.named is not None:
            return connection.named
        return self._make_client(connection.client, connection.address, connection.place)
