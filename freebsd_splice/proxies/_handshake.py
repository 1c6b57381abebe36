"""The handshake: what a client says before its bytes are only passed on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

from .._errors import why
from .._platform.tcp import is_connected
from ._connecting import PlainError
from ._log import MOST_OF_A_REASON, cut

T = TypeVar("T")

#: Bytes that are read at once.
_PIECE = 4_096

#: Bytes that are read from a refused client so that it gets its answer.
_MOST_AT_FAREWELL = 1 << 20

#: Seconds that a refused client has to take its answer and close.
_FAREWELL_SECONDS = 2.0


class HandshakeError(PlainError):
    """The client's part of the handshake failed; the text says how.

    ``errno`` is ETIMEDOUT where the client took too long, EMSGSIZE where it sent too much,
    ECONNABORTED where it closed the connection, EACCES where it may not use the proxy, EPROTO where
    it speaks another protocol, and else that of the call that failed.

    A function for ``OpenTarget`` may raise it as well: ``HandshakeError(errno.EPROTO, "...")``. The
    text is a line in the log.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, cut(reason, MOST_OF_A_REASON))


class Handshake:
    """Reads and answers what one client says before its bytes are only passed on.

    The time and the size are those of ``Limits``: ``handshake_timeout`` seconds from the accepting
    on, and ``handshake_bytes``. All calls raise HandshakeError once the time is over. While the
    client is neither read nor written (a password is verified, a target connected to), a client
    that resets its connection ends ``open_target``.

    Attributes:
        largest (int): how many bytes the client may send during the handshake.
        received (bytearray): what the client has sent and ``take`` has not taken. What is left
            when ``open_target`` returns is lost, unless ``open_target`` returns it too.
        stage (str | None): what is being done for the client, as the log puts it ("during the
            handshake"); None while the client is read or written. ``during`` sets it.
        inspect: is given each piece before ``read`` parses it, and may raise; None unless PROXY
            headers are watched for. For the package's own use.
    """

    def __init__(self, sock: socket.socket, seconds: float, largest: int) -> None:
        self._socket = sock
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._seconds = seconds
        self.stage: str | None = "during the handshake"
        self.largest = largest
        self.received = bytearray()
        #: Is given each piece that comes; what it raises ends the handshake.
        self.inspect: Callable[[bytes], object] | None = None
        self._count = 0

    async def read(self, parse: Callable[[bytes], T | None]) -> T:
        """Read from the client until ``parse`` has found what it looks for.

        Args:
            parse: is called with each piece that arrives, first with what has been received before,
                as one piece. It returns None where it needs more. Pieces can be cut anywhere;
                ``received`` has all of them.

        Returns:
            What ``parse`` returned.

        Raises:
            HandshakeError: the time is over (ETIMEDOUT), the client has sent too much (EMSGSIZE) or
                has closed the connection (ECONNABORTED), or reading failed. What ``parse`` raises
                is passed on.

        Example::

            line = await client.handshake.read(
                lambda piece: bytes(client.handshake.received)
                if b"\\n" in client.handshake.received
                else None
            )
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
        """Remove the first ``count`` bytes of ``received``, and return them.

        They are understood, and are not to be passed on to the target.
        """
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    async def send(self, answer: bytes) -> None:
        """Send an answer to the client.

        Raises:
            HandshakeError: the client didn't take it in time, or sending failed.
        """
        loop = asyncio.get_running_loop()
        with self.during(None):
            await self._call(
                loop.sock_sendall(self._socket, answer), "client did not take the answer"
            )

    async def refuse(self, answer: bytes) -> None:
        """Send the last answer to the client, and wait until the client has closed.

        A close with bytes unread would reset the connection, and the answer could be lost. So up to
        1 MiB of what the client still sends is read, and thrown away. The client has 2 seconds.
        Nothing is raised where that fails. ``open_target`` should raise an OSError after it.
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
        """Stop the handshake's clock within the ``with`` block."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            yield
        finally:
            self._deadline += loop.time() - start

    @contextlib.contextmanager
    def during(self, stage: str | None) -> Iterator[None]:
        """Set ``stage`` within the ``with`` block, as in ``during("while looking up a route")``."""
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before

    def is_lost(self) -> bool:
        """Return whether the client has reset its connection, or the system has given it up.

        False as long as the client is read or written: those calls fail by themselves, after what
        had arrived. Takes no bytes, and no error that another call should report. A client that has
        sent a FIN may still be waiting for its answer, and isn't lost.
        """
        return self.stage is not None and not is_connected(self._socket)

    async def in_time(self, waiting: Coroutine[object, object, T], failure: str) -> T:
        """Wait for a coroutine within what is left of the handshake's time.

        Args:
            waiting: the coroutine, which is cancelled when the time is over.
            failure: what did not happen, as in "the password was not verified"; the error's text
                begins with it.

        Raises:
            HandshakeError: the time is over (ETIMEDOUT).
        """
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(waiting, max(0.0, left))
        except asyncio.TimeoutError:
            raise HandshakeError(
                errno.ETIMEDOUT, f"{failure} in {self._seconds:g} s (--handshake-timeout)"
            ) from None

    async def _receive(self) -> bytes:
        if self._count >= self.largest:
            raise HandshakeError(
                errno.EMSGSIZE,
                f"the handshake is longer than {self.largest} bytes (--handshake-size)",
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
    """Let other tasks run.

    While bytes are there, neither sock_recv nor, since Python 3.12, wait_for does that.
    """
    await asyncio.sleep(0)
