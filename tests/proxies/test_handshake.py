"""What a client says first, where it says more than it should."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

import pytest

from freebsd_splice.proxies._handshake import Handshake, HandshakeError

T = TypeVar("T")


class Flood:
    """Bytes that are there without end, and another task of the loop that wants its turns."""

    def __init__(self) -> None:
        self.received = 0
        self.pieces = 0
        self.turns = 0

    async def sock_recv(self, sock: socket.socket, size: int) -> bytes:
        self.pieces += 1
        self.received += size
        return bytes(size)

    async def take_turns(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


async def wait_for(waiting: Awaitable[T], seconds: float) -> T:
    """As that of Python 3.12 and later, which gives nobody else a turn where it needn't wait."""
    if seconds <= 0:
        raise asyncio.TimeoutError
    return await waiting


def flooded(
    use: Callable[[Handshake], Coroutine[object, object, object]], monkeypatch: pytest.MonkeyPatch
) -> Flood:
    flood = Flood()
    monkeypatch.setattr(asyncio, "wait_for", wait_for)

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_recv", flood.sock_recv)
        sock, peer = socket.socketpair()
        with sock, peer:
            sock.setblocking(False)
            other = asyncio.ensure_future(flood.take_turns())
            await use(Handshake(sock, seconds=2.0, largest=100_000))
            other.cancel()

    asyncio.run(main())
    return flood


def test_a_refused_client_that_keeps_sending_leaves_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And its end doesn't wait for the end of what it sends."""
    flood = flooded(lambda handshake: handshake.refuse(b"no"), monkeypatch)
    assert flood.received == 1 << 20
    assert flood.turns >= flood.pieces > 1


def test_a_client_that_says_much_at_once_leaves_turns_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def read(handshake: Handshake) -> None:
        with pytest.raises(HandshakeError, match="longer than 100000 bytes"):
            await handshake.read(lambda piece: None)

    flood = flooded(read, monkeypatch)
    assert flood.received == 100_000
    assert flood.turns >= flood.pieces > 1


def test_what_is_said_about_a_client_is_cut() -> None:
    assert str(HandshakeError(1, "x" * 5_000)) == "x" * 500 + "... (5000 characters)"
