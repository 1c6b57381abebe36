"""Traffic of many kinds through all proxies at once, faults of clients and servers among it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from programs.processes import PATIENCE

#: No power of two long: shifts show.
PATTERN = random.Random(0).randbytes((1 << 17) + 7)
TILED = PATTERN * 3

#: What a client begins with: the number of the kind, and how many bytes go up and down.
_HEADER = struct.Struct("!BII")
#: The first byte of a TLS record that a client begins with (RFC 8446, section 5.1).
_HANDSHAKE = 0x16
_PIECE = 16_384

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int, int], Awaitable[None]]


class WrongError(Exception):
    """Something arrived that was not sent, or an end came that was none."""


class Door(NamedTuple):
    """A proxy's port, and what a client says there first."""

    name: str
    port: int
    open: Callable[[int, int], Awaitable[Connection]]


async def plainly(port: int, target: int) -> Connection:
    return await asyncio.open_connection("127.0.0.1", port)


async def by_connect(port: int, target: int) -> Connection:
    reader, writer = await plainly(port, target)
    writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head:
        raise WrongError(f"CONNECT was answered with {head!r}")
    return reader, writer


async def by_socks5(port: int, target: int) -> Connection:
    reader, writer = await plainly(port, target)
    writer.write(b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target.to_bytes(2, "big"))
    answer = await reader.readexactly(12)
    if answer[:4] != b"\x05\x00\x05\x00":
        raise WrongError(f"SOCKS5 was answered with {answer!r}")
    return reader, writer


def by_hello(hello: bytes) -> Callable[[int, int], Awaitable[Connection]]:
    async def connect(port: int, target: int) -> Connection:
        reader, writer = await plainly(port, target)
        writer.write(hello)
        return reader, writer

    return connect


class Traffic:
    """A server that the proxies lead to, and clients of all kinds."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        #: Whether connections may be cut now, as their worker is killed.
        self.may_be_cut = False
        self.target = 0
        self._server: asyncio.Server
        #: What the server does, by the number that a client begins with.
        self._kinds: list[Serve] = [
            self._answer_after_eof,
            self._answer_at_once,
            self._reset_in_the_answer,
            self._expect_a_reset,
            self._say_nothing,
        ]

    async def __aenter__(self) -> Traffic:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=128)
        self.target = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def run(self, doors: list[Door], clients: int, seconds: float, seed: int) -> None:
        """Have so many clients at a time for so many seconds; wait for all of them."""
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(
                self._clients(doors, random.Random(f"{seed} {number}"), until)
                for number in range(clients)
            )
        )

    async def _clients(self, doors: list[Door], dice: random.Random, until: float) -> None:
        while time.monotonic() < until and not self.wrong:
            door = dice.choice(doors)
            kind = dice.choice([0, 0, 0, 1, 1, 1, 2, 3, 5, 6])
            if dice.random() < 0.02:
                kind = 4  # the idle timeout has to pass
            could_be_cut = self.may_be_cut
            try:
                await asyncio.wait_for(self._client(door, kind, dice), 4 * PATIENCE)
            except asyncio.TimeoutError:
                self.wrong.append(f"{door.name}, kind {kind}: no end")
            except (OSError, EOFError, WrongError) as error:
                if not (could_be_cut or self.may_be_cut):
                    self.wrong.append(f"{door.name}, kind {kind}: {error!r}")
            self.done[door.name] += 1

    async def _client(self, door: Door, kind: int, dice: random.Random) -> None:
        up, down = (int(dice.paretovariate(0.6) * 100) % 300_000 for _ in range(2))
        if kind >= 5:
            await self._talks_nonsense(door, dice, silent=kind == 6)
            return
        reader, writer = await door.open(door.port, self.target)
        try:
            writer.write(_HEADER.pack(kind, up, down))
            if kind == 0:
                await asyncio.gather(_write(writer, up, eof=True), self._read(reader, down, dice))
            elif kind == 1:
                await asyncio.gather(_write(writer, up, eof=False), self._read(reader, down, dice))
            elif kind == 2:
                await _ends_in_a_reset(reader, down)
            elif kind == 3:
                await reader.readexactly(1)
                await _write(writer, up // 2, eof=False)
                _reset(writer)
            else:
                await reader.readexactly(1)
                with contextlib.suppress(ConnectionResetError):
                    if await reader.read(1):
                        raise WrongError("bytes of nobody's")
        finally:
            await _close(writer)

    async def _talks_nonsense(self, door: Door, dice: random.Random, *, silent: bool) -> None:
        """Say nothing and go, or nothing that could be understood; see the end."""
        reader, writer = await plainly(door.port, self.target)
        try:
            with contextlib.suppress(ConnectionError):
                if not silent and door.open is not plainly:
                    writer.write(b"\xff" + dice.randbytes(dice.randrange(1, 300)))
                    writer.write_eof()
                    await reader.read(-1)
        finally:
            await _close(writer)

    async def _read(self, reader: asyncio.StreamReader, count: int, dice: random.Random) -> None:
        """Read so many bytes of the pattern and then EOF, sometimes slowly."""
        slowly, at = dice.random() < 0.1, 0
        while piece := await reader.read(_PIECE):
            _check(piece, at)
            at += len(piece)
            if slowly:
                await asyncio.sleep(0.01)  # a slow reader, not a wait
        if at != count:
            raise WrongError(f"EOF after {at} of {count} bytes")

    # The server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        could_be_cut = self.may_be_cut
        try:
            first = await reader.read(1)
            if first and first[0] == _HANDSHAKE:
                rest = await reader.readexactly(4)
                await reader.readexactly(int.from_bytes(rest[2:], "big"))
                first = await reader.readexactly(1)
            if first:
                kind, up, down = _HEADER.unpack(first + await reader.readexactly(_HEADER.size - 1))
                await self._kinds[kind](reader, writer, up, down)
        except (OSError, EOFError, WrongError) as error:
            if not (could_be_cut or self.may_be_cut):
                self.wrong.append(f"the server: {error!r}")
        finally:
            await _close(writer)

    async def _answer_after_eof(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: int, down: int
    ) -> None:
        await self._read(reader, up, random.Random(up))
        await _write(writer, down, eof=False)

    async def _answer_at_once(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: int, down: int
    ) -> None:
        async def take() -> None:
            at = 0
            while at < up:
                piece = await reader.readexactly(min(_PIECE, up - at))
                _check(piece, at)
                at += len(piece)

        await asyncio.gather(take(), _write(writer, down, eof=False))

    async def _reset_in_the_answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: int, down: int
    ) -> None:
        await _write(writer, down // 2, eof=False)
        _reset(writer)

    async def _expect_a_reset(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: int, down: int
    ) -> None:
        writer.write(b"!")
        await _ends_in_a_reset(reader, up)

    async def _say_nothing(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: int, down: int
    ) -> None:
        """Until the proxy's idle timeout ends the connection."""
        writer.write(b"!")
        with contextlib.suppress(ConnectionResetError):
            await reader.read(1)


async def _write(writer: asyncio.StreamWriter, count: int, *, eof: bool) -> None:
    for at in range(0, count, _PIECE):
        start = at % len(PATTERN)
        writer.write(TILED[start : start + min(_PIECE, count - at)])
        await writer.drain()
    if eof:
        writer.write_eof()


async def _ends_in_a_reset(reader: asyncio.StreamReader, most: int) -> None:
    """An EOF would say that everything has arrived."""
    at = 0
    try:
        while piece := await reader.read(_PIECE):
            _check(piece, at)
            at += len(piece)
    except ConnectionResetError:
        return
    raise WrongError(f"an EOF after {at} of {most} bytes, and no reset")


def _check(piece: bytes, at: int) -> None:
    start = at % len(PATTERN)
    if piece != TILED[start : start + len(piece)]:
        raise WrongError(f"wrong bytes at {at}")


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
