"""Joining each client of a server to its target, by the relay that suits them."""

from __future__ import annotations

import asyncio
import socket
from functools import partial

from .. import Relay
from .._relay import GivenRelay
from .._userspace.workers import LocalWorker
from ._client import Client
from ._connecting import tune
from ._hangups import Hangups
from ._loop_relay import LoopRelay
from ._pausing import Shortage
from ._taskless import Taskless


class Joining:
    """Joins the clients of one server.

    Args:
        idle_timeout: as for ``ProxyServer``.
        keepalive: as for ``ProxyServer``.
        hangups: watches the clients that wait.
        shortage: lets a client wait for descriptors.

    Attributes:
        worker: the loop's own, which moves what is little; None where it has none.
        taskless: has the relays that need no task; None where each needs one.
        is_cutting: whether nobody is to be joined any more.
    """

    def __init__(
        self, idle_timeout: float | None, keepalive: bool, hangups: Hangups, shortage: Shortage
    ) -> None:
        self._idle_timeout = idle_timeout
        self._keepalive = keepalive
        self._hangups = hangups
        self._shortage = shortage
        self.worker: LocalWorker | None = None
        self.taskless: Taskless | None = None
        self.is_cutting = False

    async def join(
        self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]
    ) -> Relay | LoopRelay:
        """Join a client and its target, which are the relay's from then on.

        Args:
            client: the client.
            target: the connection to its target.
            initial: what is passed on first, from the client and from the target.

        Raises:
            OSError: they can't be joined, or the client has gone.
        """
        tune(target, self._keepalive)
        # ``initial`` is what is passed on; these bytes would only be kept until the client goes.
        client.handshake.received = bytearray()
        while True:
            if self.is_cutting:  # ``open_target`` can have missed that it was cancelled
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
                client.joined_by(partial(_as_relay, relay), relay.progress)
                return relay

    def _relay(
        self, client: Client, target: socket.socket, initial: tuple[bytes, bytes]
    ) -> Relay | LoopRelay:
        idle, worker = self._idle_timeout, self.worker
        if not client.has_dialled(target):
            return Relay(client.socket, target, idle_timeout=idle, close=True, initial=initial)
        for sock in (client.socket, target):
            if sock.gettimeout() != 0:  # ``open_target`` has set another one
                sock.setblocking(False)
        if self.taskless is not None and not any(initial):
            relay = self.taskless.join(client, target)
            if relay is not None:
                return relay
        return GivenRelay(client.socket, target, worker=worker, idle_timeout=idle, initial=initial)


def _as_relay(relay: Relay | LoopRelay) -> Relay | None:
    return relay if isinstance(relay, Relay) else relay.as_relay()
