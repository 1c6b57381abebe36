"""What a client says before its bytes are only passed on, within a time and a size."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

from .._errors import why
from ._connecting import PlainError
from ._log import MOST_OF_A_REASON, cut

T = TypeVar("T")

_PIECE = 4_096

#: Bytes that are read of a refused client so that it gets its answer.
_MOST_AT_FAREWELL = 1 << 20

#: Seconds that a refused client has to take its answer and close.
_FAREWELL_SECONDS = 2.0


class HandshakeError(PlainError):
    """The client's part of the handshake failed; the text says how."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, cut(reason, MOST_OF_A_REASON))


class Handshake:
    """One client's, from the moment that it was accepted."""

    def __init__(self, sock: socket.socket, seconds: float, largest: int) -> None:
        self._socket = sock
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._seconds = seconds
        #: What is being done for the client, as the log puts it; None while it is read or written.
        self.stage: str | None = "during the handshake"
        #: The bytes that the client may send for it.
        self.largest = largest
        #: All that has come and that ``take`` has not taken.
        self.received = bytearray()
        #: Is given each piece that comes; what it raises ends the handshake.
        self.inspect: Callable[[bytes], object] | None = None
        self._count = 0

    async def read(self, parse: Callable[[bytes], T | None]) -> T:
        """Give ``parse`` each piece that comes, until it answers with something.

        What has come before goes first, as one piece.  Raises HandshakeError at the end of the
        time, of the size, or of what the client sends; and what ``parse`` raises.
        """
        piece = bytes(self.received)
        with self.during(None):
            while True:
                found = parse(piece) if piece else None
                if found is not None:
                    return found
                piece = await self._receive()
                self.received += piece
                await _let_others_run()

    def take(self, count: int) -> bytes:
        """The first bytes, which are understood and not to be passed on."""
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    async def send(self, answer: bytes) -> None:
        """Send it.  Raises HandshakeError where the client doesn't take it in time."""
        loop = asyncio.get_running_loop()
        with self.during(None):
            await self._call(
                loop.sock_sendall(self._socket, answer), "client did not take the answer"
            )

    async def refuse(self, answer: bytes) -> None:
        """Send it as the last thing, and let the client read it.

        Closing with bytes unread would reset the connection, and the answer could be lost.  So what
        still comes is read, as long as it is not too much, and none of it kept.
        """
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + _FAREWELL_SECONDS
        with contextlib.suppress(OSError), self.during(None):
            await self.send(answer)
            self._socket.shutdown(socket.SHUT_WR)
            left = _MOST_AT_FAREWELL
            while left > 0:
                receiving = loop.sock_recv(self._socket, min(left, _PIECE))
                piece = await self._call(receiving, "client did not close")
                if not piece:
                    break
                left -= len(piece)
                await _let_others_run()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """The time until the end of this is not the client's."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            yield
        finally:
            self._deadline += loop.time() - start

    @contextlib.contextmanager
    def during(self, stage: str | None) -> Iterator[None]:
        """The stage until the end of this."""
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before

    def is_lost(self) -> bool:
        """Whether the client has reset its connection, or the system has given it up.

        False as long as the client is read or written: that fails by itself, and what has arrived
        comes first.  Takes no bytes, and no error that anybody else is to see.  A client that has
        sent a FIN may still be waiting for its answer, and isn't lost.
        """
        if self.stage is None:
            return False
        try:
            self._socket.getpeername()  # there is none any more, on every system
        except OSError:
            return True
        return False

    async def in_time(self, waiting: Coroutine[object, object, T], failure: str) -> T:
        """Wait for it, within what is left of the time; else HandshakeError, about ``failure``."""
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(waiting, max(0.0, left))
        except asyncio.TimeoutError:
            raise HandshakeError(errno.ETIMEDOUT, f"{failure} in {self._seconds:g} s") from None

    async def _receive(self) -> bytes:
        if self._count >= self.largest:
            raise HandshakeError(
                errno.EMSGSIZE, f"the handshake is longer than {self.largest} bytes"
            )
        loop = asyncio.get_running_loop()
        size = min(_PIECE, self.largest - self._count)
        receiving = loop.sock_recv(self._socket, size)
        piece = await self._call(receiving, "client did not complete the handshake")
        if not piece:
            reason = "client closed the connection during the handshake"
            raise HandshakeError(errno.ECONNABORTED, reason)
        self._count += len(piece)
        if self.inspect is not None:
            self.inspect(piece)
        return piece

    async def _call(self, waiting: Coroutine[object, object, T], failure: str) -> T:
        try:
            return await self.in_time(waiting, failure)
        except HandshakeError:
            raise
        except OSError as error:
            reason = f"the handshake failed: {why(error)}"
            raise HandshakeError(error.errno or errno.EIO, reason) from error


async def _let_others_run() -> None:
    """Neither sock_recv nor, since Python 3.12, wait_for does while bytes are there."""
    await asyncio.sleep(0)
