"""The proxies under many clients at once, and under bytes that nobody would send."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import random
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest

from programs.clients import ALLOW_LOOPBACK, no_accidents, nothing_kept, read_head, read_to_eof
from programs.every_backend import BACKENDS
from programs.processes import (
    CONNECTING,
    PATIENCE,
    Proxy,
    Server,
    echo,
    exchange,
    receive,
    until,
)
from support.descriptors import enough_descriptors

#: What each of many clients downloads, and the part that is held back until all are there.
SIZE, HELD_BACK = 100_000, 1_000


@pytest.fixture
def start(opened: ExitStack) -> Callable[..., Proxy]:
    """Starts a proxy."""
    return lambda *arguments, **options: opened.enter_context(closing(Proxy(*arguments, **options)))


def connections(front: Proxy) -> float:
    """How many it has open, as far as the system tells."""
    return front.descriptors()["tcp"] if sys.platform == "linux" else math.inf


def data_of(number: int) -> bytes:
    """What that client downloads, and no other."""
    return random.Random(number).randbytes(SIZE)


class Crowd:
    """So many clients, each with a download of its own, none of which ends before all are there."""

    def __init__(self, count: int, port: int) -> None:
        self._count = count
        self._port = port
        self._there = 0

    async def run(self, all_there: Callable[[], object]) -> None:
        """``all_there`` is called while all are live."""
        self._all_there = all_there
        self._everybody = asyncio.Event()
        self._door = asyncio.Semaphore(CONNECTING)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2 * CONNECTING)
        self._target = server.sockets[0].getsockname()[1]
        clients = asyncio.gather(*map(self._client, range(self._count)))
        try:
            await asyncio.wait_for(clients, 4 * PATIENCE)
        finally:
            server.close()
            await server.wait_closed()

    async def _client(self, number: int) -> None:
        async with self._door:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            head = f"CONNECT 127.0.0.1:{self._target} HTTP/1.1\r\nHost: a\r\n\r\n"
            writer.write(head.encode() + number.to_bytes(4, "big"))
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        sha = hashlib.sha256(await reader.readexactly(SIZE))
        assert sha.digest() == hashlib.sha256(data_of(number)).digest()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = data_of(int.from_bytes(await reader.readexactly(4), "big"))
        writer.write(data[:-HELD_BACK])
        await writer.drain()
        self._there += 1
        if self._there == self._count:
            self._all_there()
            self._everybody.set()
        await self._everybody.wait()
        writer.write(data[-HELD_BACK:])
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("backend", BACKENDS)
def test_1000_downloads_at_once(backend: str, start: Callable[..., Proxy]) -> None:
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    front = start("connect", *ALLOW_LOOPBACK, "127.0.0.1:0", environment=BACKENDS[backend])
    live = []
    with enough_descriptors(4_000), nothing_kept(front):
        crowd = Crowd(1_000, front.port)
        asyncio.run(crowd.run(lambda: live.append(connections(front))))
        front.expect(r"4 bytes up, 100000 bytes down, eof, ", 1_000)
    assert live[0] >= 2 * 1_000  # a client and a target each
    assert not front.find("accepting pauses")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_5000_downloads_at_once(start: Callable[..., Proxy]) -> None:
    """By two workers: 20,000 descriptors are too few for one."""
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    options = ["--workers", "2", "--max-per-client", "5000"]
    front = start("connect", *ALLOW_LOOPBACK, *options, "127.0.0.1:0")
    with enough_descriptors(15_000):
        asyncio.run(Crowd(5_000, front.port).run(lambda: None))
    front.expect(r"4 bytes up, 100000 bytes down, eof, ", 5_000)
    assert not front.find("accepting pauses")
    no_accidents(front)


class Fuzzed(NamedTuple):
    """A proxy that is sent nonsense, with something that makes sense to it."""

    front: Proxy
    #: What a client says first.
    sense: bytes
    #: What it must get back for that, and then for ``hello``.
    served: Callable[[socket.socket], bool]


def connect_proxy(start: Callable[..., Proxy], target: Server) -> Fuzzed:
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    sense = "CONNECT 127.0.0.1:{} HTTP/1.1\r\nHost: a\r\nX-Header: b\r\n\r\n"
    front = start("connect", *only(target), "127.0.0.1:0")
    return Fuzzed(
        front,
        sense.format(target.address[1]).encode(),
        lambda client: read_head(client).startswith(b"HTTP/1.1 200 "),
    )


def socks5_proxy(start: Callable[..., Proxy], target: Server) -> Fuzzed:
    sense = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + target.address[1].to_bytes(2, "big")
    front = start("socks5", *only(target), "127.0.0.1:0")
    return Fuzzed(front, sense, lambda client: receive(client, 12)[:4] == b"\x05\x00\x05\x00")


def sni_proxy(start: Callable[..., Proxy], target: Server, directory: Path) -> Fuzzed:
    routes = directory / "routes.toml"
    routes.write_text('default = "{}:{}"'.format(*target.address))
    sense = client_hello()
    front = start("sni", str(routes), "127.0.0.1:0")
    return Fuzzed(front, sense, lambda client: receive(client, len(sense)) == sense)


def only(target: Server) -> list[str]:
    """Rules by which random requests reach nobody else in the world."""
    return ["--allow", f"127.0.0.1:{target.address[1]}", "--deny", "*"]


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.b")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def nonsense(sense: bytes, chance: random.Random) -> bytes:
    """Random bytes, or a sensible message with a few changed, missing or added."""
    kind = chance.randrange(4)
    if not kind:
        return chance.randbytes(chance.choice([1, 5, 50, 500]))
    made = bytearray(sense)
    for _ in range(kind):
        position = chance.randrange(len(made) or 1)
        what = chance.choice(["change", "cut", "insert"])
        if what == "cut":
            del made[position : position + chance.choice([1, 10, 1_000])]
        else:
            end = position + (what == "change")
            made[position:end] = chance.randbytes(1)
    return bytes(made)


def throw(front: Proxy, data: bytes) -> None:
    """Say that and nothing more, and wait for the end of it."""
    with front.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        read_to_eof(client)


def assert_served(fuzzed: Fuzzed) -> None:
    with fuzzed.front.connect() as client:
        client.sendall(fuzzed.sense)
        assert fuzzed.served(client)
        assert exchange(client, b"hello") == b"hello"


@pytest.mark.parametrize("batches", [10, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["connect", "socks5", "sni"])
def test_nonsense_harms_nobody(
    kind: str,
    batches: int,
    server: Callable[..., Server],
    start: Callable[..., Proxy],
    tmp_path: Path,
) -> None:
    """In batches of 20 clients; after each of them one that makes sense is served."""
    target = server(echo)
    made = {
        "connect": lambda: connect_proxy(start, target),
        "socks5": lambda: socks5_proxy(start, target),
        "sni": lambda: sni_proxy(start, target, tmp_path),
    }
    fuzzed = made[kind]()
    chance = random.Random(f"{kind} {batches}")
    assert_served(fuzzed)
    with nothing_kept(fuzzed.front):
        for _ in range(batches):
            for _ in range(20):
                throw(fuzzed.front, nonsense(fuzzed.sense, chance))
            assert_served(fuzzed)
    # Each of them has had its line, and nobody more than one.
    until(lambda: len(fuzzed.front.find(r"(WARNING|INFO) 127\.0\.0\.1:")) == 21 * batches + 2)
