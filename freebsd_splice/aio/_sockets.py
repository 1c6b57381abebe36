"""A socket that the loop copies from or to, because its other side is a stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any, cast

from .._platform.interface import Endpoint
from .._platform.send_queue import unacknowledged
from .._runtime import current
from ._sides import SocketSide, hangs_up

#: Keeps a call from blocking the loop whatever the program has done to the socket's flags.
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)

#: The default loop on Windows.
_PROACTOR: Any = getattr(asyncio, "ProactorEventLoop", ())


class CopiedSocket:
    """A duplicate of the caller's socket, as flows use it.

    EBUSY is raised where a splice already uses the socket in that role. Other code can't close the
    duplicate while the loop uses it. Otherwise the loop would go on watching its number, no matter
    which file has that number next.
    """

    is_tls = False
    #: Nothing waits to be written to the socket, and the socket itself reports what will arrive.
    pending = 0
    is_exhausted = False

    def __init__(self, side: SocketSide, *, source: bool, drain: bool) -> None:
        if isinstance(asyncio.get_running_loop(), _PROACTOR):
            # This loop doesn't report readiness, and loses what a cancelled receive has received.
            raise NotImplementedError(
                f"this loop can't copy between a stream and a socket ({side.socket!r}): make it a "
                "stream as well (asyncio.open_connection(sock=...))"
            )
        self._side = side
        self._source, self._is_drain = source, drain
        self._sockets = current().sockets
        self._shared = self._sockets.acquire(
            side.original, source=source, drain=drain, on_closed=_nobody
        )
        self._socket = cast(socket.socket, self._shared.endpoint)

    @property
    def endpoint(self) -> Endpoint:
        return self._shared.endpoint

    def release(self) -> None:
        self._sockets.release(
            self._shared, source=self._source, drain=self._is_drain, on_closed=_nobody
        )

    @property
    def was_closed(self) -> bool:
        """Whether the program has closed its own socket."""
        return self._side.socket.fileno() < 0

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be written any more. The error itself is left for the reader."""
        return hangs_up(self._socket)

    def undelivered(self) -> int | None:
        """Return how many sent bytes the peer has not acknowledged; None: unknown."""
        return unacknowledged(self._socket)

    async def receive(self, count: int) -> bytes:
        """Return some bytes, b"" at EOF. A cancelled call has taken none."""
        pauses = _pauses()
        while True:
            try:
                return self._socket.recv(count, _DONT_WAIT)
            except BlockingIOError:
                await self._ready(to_read=True)
                await asyncio.sleep(next(pauses))

    async def send(self, data: memoryview) -> int:
        """Return how many bytes the socket has taken. A cancelled call has sent none."""
        pauses = _pauses()
        while True:
            try:
                return self._socket.send(data, _DONT_WAIT)
            except BlockingIOError:
                await self._ready(to_read=False)
                await asyncio.sleep(next(pauses))

    async def sent(self) -> None:
        """Do nothing: ``send`` has waited already."""

    def write_eof(self) -> bool:
        self._socket.shutdown(socket.SHUT_WR)
        return True

    def has_rest(self) -> bool:
        """Return whether bytes have arrived that nobody took, or would have but for a failure."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | _DONT_WAIT))
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._side.socket.close()

    async def _ready(self, *, to_read: bool) -> None:
        """Wait until the socket is ready, without a call that moves bytes.

        ``sock_recv`` may already have received bytes when it is cancelled.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        watch, forget = (
            (loop.add_reader, loop.remove_reader)
            if to_read
            else (loop.add_writer, loop.remove_writer)
        )
        watch(self._socket, _set, ready)
        try:
            await ready
        finally:
            forget(self._socket)


def _pauses() -> Iterator[float]:
    """Yield the seconds to wait before a call is repeated after the socket was reported ready.

    The first wait is 0. The waits grow while the call still fails: a message in the socket's error
    queue, which is for the socket's owner to read, is reported as readiness for as long as it is
    there.
    """
    yield 0.0
    seconds = 0.001
    while True:
        yield seconds
        seconds = min(2 * seconds, 0.25)


def _nobody() -> None:
    """Do nothing: nobody waits to be notified, because ``was_closed`` is polled."""


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
