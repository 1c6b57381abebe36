"""The two ends of a modelled connection: the program's socket, and the peer on a far machine."""

from __future__ import annotations

import errno
import functools
import socket
from typing import TYPE_CHECKING

from .tcp import Endpoint, Half, fail

if TYPE_CHECKING:
    from .world import World


class ModelSocket:
    """The program's end: ``socket.socket`` as far as the cases use it."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, 0

    def __init__(self, world: World, descriptor: int) -> None:
        self._world = world
        self._descriptor = descriptor
        self._timeout: float | None = 0.0

    @property
    def endpoint(self) -> Endpoint:
        endpoint = self._world.endpoint(self._descriptor)
        if endpoint is None:
            raise fail(errno.EBADF)
        return endpoint

    def fileno(self) -> int:
        return self._descriptor

    def gettimeout(self) -> float | None:
        return self._timeout

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds
        self.endpoint.non_blocking = seconds is not None

    def setblocking(self, blocking: bool) -> None:
        self.settimeout(None if blocking else 0.0)

    def getblocking(self) -> bool:
        return self._timeout is None

    def recv(self, count: int, flags: int = 0) -> bytes:
        data = self.endpoint.receive(count, peek=bool(flags & socket.MSG_PEEK))
        return data

    def send(self, data: bytes) -> int:
        return self.endpoint.send(data)

    def sendall(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += self._world.blocking(functools.partial(self.endpoint.send, data[sent:]))

    def shutdown(self, how: int) -> None:
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self._world.shutdown_read(self.endpoint)
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self._world.shutdown_write(self.endpoint)

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        number, self.endpoint.error = self.endpoint.error, 0
        return number

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        if option == socket.SO_SNDBUF:
            assert isinstance(value, int)
            self._world.resize_send_buffer(self.endpoint, value)
        elif option == socket.SO_RCVBUF:
            assert isinstance(value, int)
            self.endpoint.receive_buffer = value
        elif option == socket.SO_LINGER:
            self._world.reset_on_close.add(self.endpoint)

    def getpeername(self) -> tuple[str, int]:
        if not self.endpoint.connected:
            raise fail(errno.ENOTCONN)
        return ("192.0.2.1", 80)

    def dup(self) -> ModelSocket:
        return ModelSocket(self._world, self._world.open(self.endpoint))

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._world.close(descriptor)

    def __repr__(self) -> str:
        return f"<ModelSocket {self._descriptor}>"


class ModelPeer:
    """The far machine's end. It never blocks."""

    def __init__(self, world: World, endpoint: Endpoint) -> None:
        self._world = world
        self.endpoint = endpoint

    @property
    def outgoing(self) -> Half:
        return self.endpoint.outgoing

    @property
    def incoming(self) -> Half:
        return self.endpoint.incoming

    @property
    def received_all(self) -> bool:
        """Whether FIN has arrived, and everything before it was read."""
        return self.incoming.fin_delivered and not self.endpoint.received

    @property
    def was_reset(self) -> bool:
        return self.endpoint.dead

    def write(self, data: bytes) -> int:
        """Write what the send buffer has room for; return how many bytes that was."""
        try:
            return self.endpoint.send(data)
        except BlockingIOError:
            return 0

    def read(self, count: int | None = None) -> bytes:
        """Read and return what has arrived, at most ``count`` bytes."""
        taken = bytes(self.endpoint.received[:count])
        del self.endpoint.received[: len(taken)]
        return taken

    def fin(self) -> None:
        self._world.shutdown_write(self.endpoint)

    def reset(self) -> None:
        self._world.close_endpoint(self.endpoint, reset=True)

    def close(self) -> None:
        self._world.close_endpoint(self.endpoint)
