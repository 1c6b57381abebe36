"""The conformance suite's harness over a modelled world: its cases run here unchanged.

The world goes on while a call blocks. The threads of a case take turns: the clock moves only while
all of them wait for something that only time can bring.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from conformance.harness import DEADLINE, Background

from .sockets import ModelPeer, ModelSocket
from .tcp import LISTEN
from .world import World

T = TypeVar("T")

#: Bytes of each buffer of a pair, and of a small pair.
BUFFER, SMALL_BUFFER = 200_000, 8_192


class ModelHarnessPeer:
    """See ``conformance.harness.Peer``."""

    def __init__(self, world: World, peer: ModelPeer) -> None:
        self._world = world
        self._peer = peer

    def write(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += self._world.blocking(partial(self._send, data[sent:]))

    def _send(self, data: bytes) -> int:
        return self._peer.endpoint.send(data)

    def write_what_fits(self, data: bytes = b"f" * 65536) -> int:
        sent = 0
        while taken := self._peer.write(data):
            sent += taken
            self._world.quiet(0.0)
        return sent

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._world.blocking(partial(self._receive, size - len(data)))
            if not piece:
                break
            data += piece
        return bytes(data)

    def read_to_end(self) -> bytes:
        return self.read(1 << 40)

    def _receive(self, count: int) -> bytes:
        return self._peer.endpoint.receive(count)

    def has_nothing_to_read(self) -> bool:
        self._world.quiet(0.0)
        endpoint = self._peer.endpoint
        return not endpoint.received and not endpoint.cannot_receive

    def fin(self) -> None:
        self._peer.fin()

    def finish(self, data: bytes) -> None:
        self.write(data)
        self.fin()

    def reset(self) -> None:
        self._peer.reset()

    def close(self) -> None:
        self._peer.close()


class ModelHarness:
    """See ``conformance.harness.Harness``."""

    def __init__(self, version: str) -> None:
        self.world = World(version)

    def pair(self, family: int = 0, *, small_buffers: bool = False) -> Any:
        size = SMALL_BUFFER if small_buffers else BUFFER
        near, peer = self.world.pair(size, size)
        return near, ModelHarnessPeer(self.world, peer)

    def keep(self, made: Any) -> Any:
        return made

    def unconnected(self) -> Any:
        return self.world.lone()

    def listening(self) -> Any:
        return self.world.lone(LISTEN)

    def datagrams(self) -> Any:
        made = self.world.lone()
        made.endpoint.stream = False
        return made

    def closed(self) -> Any:
        made = self.world.lone()
        made.close()
        return made

    def until(self, condition: Callable[[], T], what: str) -> T:
        found: list[T] = []

        def holds() -> bool:
            found[:] = [condition()]
            return bool(found[0])

        for _ in range(100):  # some conditions have to be asked more than once
            if self.world.run_until(holds, DEADLINE):
                return found[0]
        raise AssertionError(f"never happened within {DEADLINE:g} s: {what}")

    def readable(self, ours: Any) -> bool:
        self.world.quiet(0.0)
        if isinstance(ours, ModelSocket):
            return ours.endpoint.readable
        return self.world.is_given(ours.fileno())

    def waiting(self, ours: Any, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self.world.blocking(partial(ours.recv, size - len(data)))
        return bytes(data)

    def error(self, ours: Any) -> int:
        return int(ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def is_blocking(self, ours: Any) -> bool:
        return not ours.endpoint.non_blocking

    def unsplice(self, ours: Any) -> None:
        self.world.unspliced_by_somebody(ours)

    def is_released(self, drain: Any) -> bool:
        self.world.quiet(0.0)
        return bool(drain.endpoint.writable or drain.endpoint.dead)

    def hangs_up(self, ours: Any) -> bool:
        return bool(ours.endpoint.cannot_receive or ours.endpoint.dead)

    def now(self) -> float:
        return self.world.time

    def sleep(self, seconds: float) -> None:
        self.world.quiet(seconds)

    def in_background(self, call: Callable[..., object], *arguments: object) -> Background:
        return _Turns(self.world, call, arguments)

    def close(self) -> None: ...


class _Turns:
    """One of the case's threads, which the world's clock waits for."""

    def __init__(
        self, world: World, call: Callable[..., object], arguments: tuple[object, ...]
    ) -> None:
        self._world = world
        self._error: BaseException | None = None

        def run() -> None:
            try:
                call(*arguments)
            except BaseException as error:
                self._error = error
            finally:
                world.actors.discard(self._thread)

        self._thread = threading.Thread(target=run)
        world.actors.add(self._thread)
        self._thread.start()

    def join(self) -> None:
        assert self._world.run_until(lambda: self._thread not in self._world.actors, DEADLINE)
        self._thread.join()
        if self._error is not None:
            raise self._error
