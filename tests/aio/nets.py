"""Connections for cases about asyncio: real ones, or those of the modelled kernels."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar

import pytest

from freebsd_splice import _runtime
from model.world import ModelPeer, ModelSocket, World
from support.slowness import SLOWNESS

PATIENCE = 20.0 * SLOWNESS

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
T = TypeVar("T")

#: Of a connection with small buffers, which each system rounds in its own way.
SMALL = 8_192

LOOPS = ["asyncio", "uvloop"]
MODELS = ["model 14.3", "model 15.1", "model openbsd"]


class Peer(Protocol):
    """The far end of a connection."""

    async def write(self, data: bytes) -> None: ...

    async def read(self, count: int) -> bytes:
        """So many bytes, fewer at EOF."""
        ...

    def fin(self) -> None: ...

    def reset(self) -> None: ...


class Net(Protocol):
    name: str

    async def socket(self, *, small: bool = False) -> tuple[Any, Peer]: ...

    async def stream(self, *, small: bool = False, limit: int = 65_536) -> tuple[Stream, Peer]: ...

    async def until(self, condition: Callable[[], object]) -> None: ...


async def buffered(net: Net, stream: Stream, count: int) -> None:
    """Wait until so much waits in the reader."""
    await net.until(lambda: len(stream[0]._buffer) >= count)  # type: ignore[attr-defined]


def play(name: str, case: Callable[[Net], Awaitable[T]]) -> T:
    """Run ``case`` on the loop, or on the model, of that name."""
    with _net(name) as (loop, net):
        return loop.run_until_complete(asyncio.wait_for(case(net), PATIENCE))


@contextlib.contextmanager
def _net(name: str) -> Iterator[tuple[asyncio.AbstractEventLoop, Net]]:
    if name == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="uvloop isn't installed")
        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    try:
        if name in LOOPS:
            made = RealNet(name)
            try:
                yield loop, made
            finally:
                loop.run_until_complete(made.close())
        else:
            modelled = ModelNet(name)
            with modelled.running(loop):
                yield loop, modelled
    finally:
        loop.close()


class RealNet:
    def __init__(self, name: str) -> None:
        self.name = name
        self.opened: list[socket.socket | asyncio.StreamWriter] = []

    async def socket(self, *, small: bool = False) -> tuple[Any, Peer]:
        with socket.socket() as listener:
            if small:  # of the accepted one, and before the window is told
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            far = socket.socket()
            if small:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            far.connect(listener.getsockname())
            near, _ = listener.accept()
        near.setblocking(False)
        far.setblocking(False)
        self.opened += [near, far]
        return near, RealPeer(far)

    async def stream(self, *, small: bool = False, limit: int = 65_536) -> tuple[Stream, Peer]:
        near, peer = await self.socket(small=small)
        stream = await asyncio.open_connection(sock=near, limit=limit)
        self.opened.remove(near)
        self.opened.append(stream[1])
        return stream, peer

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():  # ``play`` has a deadline
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        for opened in self.opened:
            opened.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


class RealPeer:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            data = await asyncio.get_running_loop().sock_recv(self.socket, count - len(got))
            if not data:
                break
            got += data
        return bytes(got)

    def fin(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class ModelNet:
    """The world goes on whenever the loop has nothing else to do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.world = World(name.split()[1])
        self.world.platform.demanded = True
        self._transports: list[ModelTransport] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def socket(self, *, small: bool = False) -> tuple[Any, Peer]:
        size = SMALL if small else 200_000
        near, far = self.world.pair(size, size)
        return near, ModelNetPeer(self, far)

    async def stream(self, *, small: bool = False, limit: int = 65_536) -> tuple[Stream, Peer]:
        near, peer = await self.socket(small=small)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport = ModelTransport(loop, near, protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._transports.append(transport)
        self._writers.append(writer)
        return (reader, writer), peer

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():  # ``play`` has a deadline
            await asyncio.sleep(0)

    @contextlib.contextmanager
    def running(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        runtime = _runtime.Runtime(
            self.world.platform,
            choose=self.world.platform.choose,
            demanded=lambda: self.world.platform.demanded,
        )
        before = _runtime.install(runtime)
        turning = loop.create_task(self._turn())
        try:
            yield
        finally:
            turning.cancel()
            loop.run_until_complete(self._close(turning))
            _runtime.install(before)
            runtime.close()
            self.world.check_quiet()
            if not turning.cancelled():
                turning.result()

    async def _close(self, turning: asyncio.Task[None]) -> None:
        await asyncio.wait([turning])
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _turn(self) -> None:
        while True:
            moved = any([transport.turn() for transport in self._transports])
            if not self.world.settle() and not moved:
                self.world.tick(0.01)
            await asyncio.sleep(0)


class ModelNetPeer:
    def __init__(self, net: ModelNet, peer: ModelPeer) -> None:
        self._net, self.peer = net, peer

    async def write(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += self.peer.write(data[sent:])
            await asyncio.sleep(0)

    async def read(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            got += self.peer.read(count - len(got))
            if self.peer.received_all or self.peer.was_reset:
                break
            await asyncio.sleep(0)
        return bytes(got)

    def fin(self) -> None:
        self.peer.fin()

    def reset(self) -> None:
        self.peer.reset()


class ModelTransport(asyncio.transports._FlowControlMixin, asyncio.Transport):
    """A selector loop's socket transport, over a modelled socket; ``turn`` is its readiness."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: ModelSocket,
        protocol: asyncio.StreamReaderProtocol,
    ) -> None:
        super().__init__({"socket": sock}, loop)
        self._loop = loop
        self._socket = sock
        self._protocol = protocol
        self._outgoing = bytearray()
        self._reading = True
        self._at_eof = False
        self._eof_follows = False
        self._closing = False

    def turn(self) -> bool:
        """What the loop would do when it finds the socket ready; True: something."""
        return not self._closing and bool(self._send() | self._receive())

    def write(self, data: Any) -> None:
        self._outgoing += data
        self._send()
        self._maybe_pause_protocol()  # type: ignore[attr-defined]

    def get_write_buffer_size(self) -> int:
        return len(self._outgoing)

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_follows = True
        self._send()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lost, None)

    def abort(self) -> None:
        self.close()

    def _send(self) -> bool:
        try:
            sent = self._socket.send(bytes(self._outgoing)) if self._outgoing else 0
        except BlockingIOError:
            return False
        del self._outgoing[:sent]
        if sent:
            self._maybe_resume_protocol()  # type: ignore[attr-defined]
        if self._eof_follows and not self._outgoing:
            self._eof_follows = False
            self._socket.shutdown(socket.SHUT_WR)
        return bool(sent)

    def _receive(self) -> bool:
        if not self._reading or self._at_eof:
            return False
        try:
            data = self._socket.recv(4_096)
        except BlockingIOError:
            return False
        if data:
            self._protocol.data_received(data)
        else:
            self._at_eof = True
            self._protocol.eof_received()
        return True

    def _lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
        self._socket.close()
