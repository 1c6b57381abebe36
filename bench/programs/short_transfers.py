"""Transfers of N bytes, one after the other, by the package or by reading and writing.

    short_transfers.py sockets|arriving|buffered splice|copy SIZE SECONDS TREE

sockets: ``Splice(max_bytes=SIZE)`` or recv and send; arriving: ``aio.transfer`` or read and write
of asyncio's streams; buffered: the same, of bytes that the reader has already.  TREE is the
checkout that the package has to come from.  Prints one JSON object.
"""

from __future__ import annotations

import array
import asyncio
import hashlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import freebsd_splice
from freebsd_splice import Reason, Splice, aio

BLOCK = 1 << 18


class Ends:
    """A source that has bytes without end, and a drain whose reader takes all of them."""

    def __init__(self, *, feed: bool) -> None:
        self.source, feeder = connection()
        self.drain, reader = connection()
        self._result, result = os.pipe()
        self._pids = [in_a_process(lambda: sink(reader, result), self.source, self.drain, feeder)]
        if feed:
            self._pids.append(in_a_process(lambda: give(feeder), self.source, self.drain, reader))
            feeder.close()
        self._feeder = feeder  # open: a source without an EOF
        reader.close()
        os.close(result)

    def taken(self) -> tuple[int, str]:
        """How many bytes the reader got, and a digest of them; the end."""
        self.source.close()
        self.drain.close()
        self._feeder.close()
        answer = os.read(self._result, 100)
        for pid in self._pids:
            os.waitpid(pid, 0)
        return struct.unpack("!q", answer[:8])[0], answer[8:].hex()


def in_a_process(work: Callable[[], None], *others: socket.socket) -> int:
    pid = os.fork()
    if not pid:
        for sock in others:
            sock.close()
        try:
            work()
        finally:
            os._exit(0)
    return pid


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mine = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (mine, other):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return mine, other


def sink(sock: socket.socket, result: int) -> None:
    buffer, digest, taken = bytearray(BLOCK), hashlib.sha1(), 0
    try:
        while count := sock.recv_into(buffer):
            if taken < CHECKED:
                digest.update(memoryview(buffer)[: min(count, CHECKED - taken)])
            taken += count
    finally:
        os.write(result, struct.pack("!q", taken) + digest.digest())


#: So many of the first bytes are compared one by one; of those behind them the number.
CHECKED = 1 << 22


def pattern() -> Iterator[bytes]:
    """Blocks without end, each of them another, all of them known."""
    block = b"".join(number.to_bytes(4, "big") for number in range(BLOCK // 4))
    for shift in range(1 << 30):
        start = 4 * (shift % 1000)
        yield block[start:] + block[:start]


def give(sock: socket.socket) -> None:
    for block in pattern():
        sock.sendall(block)


def expected(count: int) -> str:
    digest, left = hashlib.sha1(), min(count, CHECKED)
    for block in pattern():
        digest.update(block[:left])
        left -= len(block)
        if left <= 0:
            return digest.hexdigest()
    raise AssertionError


def sockets(method: str, size: int, seconds: float) -> dict[str, float]:
    ends = Ends(feed=True)

    def splice() -> None:
        with Splice(ends.source, ends.drain, max_bytes=size) as made:
            outcome = made.wait()
        assert (outcome.bytes, outcome.reason) == (size, Reason.LIMIT), outcome

    buffer = memoryview(bytearray(BLOCK))

    def copy() -> None:
        left = size
        while left:
            count = ends.source.recv_into(buffer, min(left, BLOCK))
            ends.drain.sendall(buffer[:count])
            left -= count

    once = splice if method == "splice" else copy
    times, cpu = array.array("q"), time.process_time()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 4:
        started = time.perf_counter_ns()
        once()
        times.append(time.perf_counter_ns() - started)
    return summary(times, time.process_time() - cpu, ends, size)


async def streams(what: str, method: str, size: int, seconds: float) -> dict[str, float]:
    buffered = what == "buffered"
    ends = Ends(feed=not buffered)
    from_reader, from_writer = await asyncio.open_connection(sock=ends.source, limit=1 << 23)
    to_reader, to_writer = await asyncio.open_connection(sock=ends.drain)
    source, drain = (from_reader, from_writer), (to_reader, to_writer)

    async def splice() -> None:
        outcome = await aio.transfer(source, drain, size)
        assert outcome.bytes == size, outcome

    async def copy() -> None:
        left = size
        while left:
            data = await from_reader.readexactly(min(left, BLOCK))
            to_writer.write(data)
            await to_writer.drain()
            left -= len(data)

    once: Callable[[], Awaitable[None]] = splice if method == "splice" else copy
    supply, held = pattern(), b""
    times = array.array("q")
    cpu = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 4:
        if buffered:
            while len(held) < size:
                held += next(supply)
            from_reader.feed_data(held[:size])
            held = held[size:]
        began = time.process_time()
        started = time.perf_counter_ns()
        await once()
        times.append(time.perf_counter_ns() - started)
        cpu += time.process_time() - began
        if buffered:  # what the writer still holds is no part of the next one
            while to_writer.transport.get_write_buffer_size():
                await asyncio.sleep(0)
    for writer in (to_writer, from_writer):
        writer.close()
        await writer.wait_closed()
    return summary(times, cpu, ends, size)


def summary(times: array.array[int], cpu: float, ends: Ends, size: int) -> dict[str, float]:
    """Seconds of a transfer, once it is known that all of them came about."""
    count, digest = ends.taken()
    if (count, digest) != (len(times) * size, expected(count)):
        raise SystemExit(f"{count} bytes of {len(times) * size} came, or not the same ones")
    ordered = sorted(times)
    return {
        "median": ordered[len(ordered) // 2] / 1e9,
        "p99": ordered[len(ordered) * 99 // 100] / 1e9,
        "cpu": cpu / len(ordered),
    }


def main(what: str, method: str, size: str, seconds: str, tree: str) -> None:
    if not Path(freebsd_splice.__file__).resolve().is_relative_to(Path(tree).resolve()):
        raise SystemExit(f"the package is imported from {freebsd_splice.__file__}, not {tree}")
    if what == "sockets":
        result = sockets(method, int(size), float(seconds))
    else:
        result = asyncio.run(streams(what, method, int(size), float(seconds)))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
