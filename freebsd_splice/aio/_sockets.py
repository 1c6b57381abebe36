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

#: Windows' usual loop.
_PROACTOR: Any = getattr(asyncio, "ProactorEventLoop", ())


class CopiedSocket:
    """A duplicate of it, as flows have: EBUSY where a splice has it in that role already.

    Nobody can close it under the loop, which would go on to watch that number, whoever has it next.
    """

    is_tls = False
    #: Nothing waits to be written to the socket, and it says itself what will come.
    pending = 0
    is_exhausted = False

    def __init__(self, side: SocketSide, *, source: bool, drain: bool) -> None:
        if isinstance(asyncio.get_running_loop(), _PROACTOR):
            # It tells of no readiness, and loses what a cancelled receive has got.
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
        """Whether the program has closed its own."""
        return self._side.socket.fileno() < 0

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be written any more.  The error itself is left for who reads."""
        return hangs_up(self._socket)

    def undelivered(self) -> int | None:
        """Bytes that were sent and that the peer has not acknowledged; None: can't be told."""
        return unacknowledged(self._socket)

    async def receive(self, count: int) -> bytes:
        """Some bytes, b"" at EOF.  Cancelled, it has taken none."""
        pauses = _pauses()
        while True:
            try:
                return self._socket.recv(count, _DONT_WAIT)
            except BlockingIOError:
                await self._ready(to_read=True)
                await asyncio.sleep(next(pauses))

    async def send(self, data: memoryview) -> int:
        """How many it has taken.  Cancelled, it has taken none."""
        pauses = _pauses()
        while True:
            try:
                return self._socket.send(data, _DONT_WAIT)
            except BlockingIOError:
                await self._ready(to_read=False)
                await asyncio.sleep(next(pauses))

    async def sent(self) -> None:
        """``send`` has waited already."""

    def write_eof(self) -> bool:
        self._socket.shutdown(socket.SHUT_WR)
        return True

    def has_rest(self) -> bool:
        """Whether something has arrived that nobody has taken, or would have but for a failure."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | _DONT_WAIT))
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._side.socket.close()

    async def _ready(self, *, to_read: bool) -> None:
        """Wait for it, and do nothing yet: ``sock_recv`` may have received when it is cancelled."""
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
    """Seconds to wait before a call is made again that was told it could be made.

    None at first; ever more where it could not: a message in the socket's error queue, which is its
    owner's to read, is reported as readiness for as long as it is there.
    """
    yield 0.0
    seconds = 0.001
    while True:
        yield seconds
        seconds = min(2 * seconds, 0.25)


def _nobody() -> None:
    """Waits to be told: it is looked at."""


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
