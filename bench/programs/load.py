"""The load of the benchmark that iperf3 can't make; prints one JSON object.

    latency PORT CONNECTIONS SIZE SECONDS
    connections PORT AT_ONCE SECONDS
    bulk PORT STREAMS up|down SECONDS
    verify PORT BYTES half-close|close

PORT is that of a relay, or of the target itself (target.py).  Every answer is compared with what
was sent.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import sys
import threading
import time

from .pollers import Poller

ADDRESS = "127.0.0.1"
#: Seconds after which something that should have come won't come.
PATIENCE = 30.0
BLOCK = 1 << 20


class WrongPayloadError(Exception):
    """What came back isn't what was sent."""


def latency(port: int, connections: int, size: int, seconds: float) -> dict[str, float]:
    """Round trips, one at a time on each connection."""
    sockets = [connect(port) for _ in range(connections)]
    for sock in sockets:
        round_trip(sock, b"e" * size)  # the connection is made all the way, and spliced
    started, cpu = time.perf_counter(), time.process_time()
    times = (
        one_at_a_time(sockets[0], size, seconds)
        if connections == 1
        else all_at_once(sockets, size, seconds)
    )
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    for sock in sockets:
        sock.close()
    return {**quantiles(times), "a second": len(times) / elapsed, "generator": cpu / elapsed}


def one_at_a_time(sock: socket.socket, size: int, seconds: float) -> array.array[int]:
    times = array.array("q")
    now = time.perf_counter_ns
    end = now() + int(seconds * 1e9)
    messages = [bytes([number]) * size for number in range(256)]
    sent = 0
    while sent < end:
        for message in messages:
            sent = now()
            sock.sendall(message)
            answer = sock.recv(size)
            while len(answer) < size:
                answer += more(sock, size - len(answer))
            times.append(now() - sent)
            if answer != message:
                raise WrongPayloadError(f"{answer[:9]!r} is the answer to {message[:9]!r}")
    return times


def all_at_once(sockets: list[socket.socket], size: int, seconds: float) -> array.array[int]:
    times = array.array("q")
    now = time.perf_counter_ns
    poller = Poller()
    messages = [bytes([number]) * size for number in range(256)]
    # For each descriptor: the socket, when it sent, what it sent, what has come of it.
    waiting: dict[int, tuple[socket.socket, int, int, bytes]] = {}
    for sock in sockets:
        poller.add(sock.fileno())
        waiting[sock.fileno()] = sock, now(), 0, b""
        sock.sendall(messages[0])
    end = now() + int(seconds * 1e9)
    while waiting:
        ready = poller.wait(PATIENCE)
        if not ready:
            raise TimeoutError(f"no answer came within {PATIENCE:.0f} s")
        for descriptor in ready:
            sock, sent, number, answer = waiting[descriptor]
            answer += more(sock, size - len(answer))
            if len(answer) < size:
                waiting[descriptor] = sock, sent, number, answer
                continue
            came = now()
            times.append(came - sent)
            if answer != messages[number]:
                raise WrongPayloadError(f"{answer[:9]!r} instead of {messages[number][:9]!r}")
            if came >= end:
                del waiting[descriptor]
                continue
            number = (number + 1) % 256
            waiting[descriptor] = sock, now(), number, b""
            sock.sendall(messages[number])
    return times


def connections(port: int, at_once: int, seconds: float) -> dict[str, float]:
    """Connect, one request of 100 bytes and its answer, close: over and over."""
    times = array.array("q")
    now = time.perf_counter_ns
    poller = Poller()
    waiting: dict[int, tuple[socket.socket, int, bytes]] = {}
    started, cpu = time.perf_counter(), time.process_time()
    end = now() + int(seconds * 1e9)

    def begin() -> None:
        began = now()
        request = b"e" + began.to_bytes(8, "big") + bytes(91)
        sock = socket.create_connection((ADDRESS, port))
        sock.sendall(request)
        poller.add(sock.fileno())
        waiting[sock.fileno()] = sock, began, request

    for _ in range(at_once):
        begin()
    while waiting:
        ready = poller.wait(PATIENCE)
        if not ready:
            raise TimeoutError(f"no answer came within {PATIENCE:.0f} s")
        for descriptor in ready:
            sock, began, request = waiting.pop(descriptor)
            answer = b""
            while len(answer) < len(request):
                answer += more(sock, len(request) - len(answer))
            if answer != request:
                raise WrongPayloadError(f"{answer!r} is the answer to {request!r}")
            sock.close()
            came = now()
            times.append(came - began)
            if came < end:
                begin()
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        **quantiles(times),
        "count": len(times),
        "a second": len(times) / elapsed,
        "generator": cpu / elapsed,
    }


def bulk(port: int, streams: int, direction: str, seconds: float) -> dict[str, float]:
    """Bytes a second that arrived, of all streams together."""
    sockets = [connect(port) for _ in range(streams)]
    taken = [0] * streams
    started = threading.Barrier(streams + 1)
    work = send_for if direction == "up" else receive_for

    def run(index: int) -> None:
        started.wait()
        taken[index] = work(sockets[index], seconds)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(streams)]
    for thread in threads:
        thread.start()
    started.wait()
    began, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    for sock in sockets:
        sock.close()
    if not all(taken):
        raise ConnectionError("a stream ended early")
    return {"bytes": sum(taken), "seconds": elapsed, "generator": cpu / elapsed}


def send_for(sock: socket.socket, seconds: float) -> int:
    """The number of bytes that arrived at the target."""
    block = bytes(BLOCK)
    end = time.perf_counter() + seconds
    sent = sock.send(b"s")
    while time.perf_counter() < end:
        sent += sock.send(block)
    sent += sock.send(b"\1")
    answer = b""
    while len(answer) < 8:
        answer += more(sock, 8 - len(answer))
    (taken,) = struct.unpack("!q", answer)
    if taken != sent:
        raise WrongPayloadError(f"{taken} of {sent} bytes arrived")
    return int(taken)


def receive_for(sock: socket.socket, seconds: float) -> int:
    buffer = bytearray(BLOCK)
    end = time.perf_counter() + seconds
    taken = 0
    sock.sendall(b"g")
    while time.perf_counter() < end:
        count = sock.recv_into(buffer)
        if not count:
            raise ConnectionError("the stream ended early")
        taken += count
    return taken


def verify(port: int, size: int, half_close: bool) -> dict[str, float]:
    """Random bytes there and back: all of them, and nothing else.

    half_close: whether the end of the stream goes the same way, right behind the last byte.
    """
    data = b"e" + os.urandom(size - 1)
    sock = connect(port)

    def send() -> None:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    came = bytearray()
    while (half_close or len(came) < size) and (part := sock.recv(BLOCK)):
        came += part
    sender.join()
    sock.close()
    if came != data:
        raise WrongPayloadError(f"{len(came)} bytes came back of {size}, or not the same ones")
    return {"bytes": size}


def connect(port: int) -> socket.socket:
    """Without a timeout, which would cost a poll before each call: who started this has one."""
    sock = socket.create_connection((ADDRESS, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def round_trip(sock: socket.socket, message: bytes) -> None:
    sock.sendall(message)
    answer = b""
    while len(answer) < len(message):
        answer += more(sock, len(message) - len(answer))
    if answer != message:
        raise WrongPayloadError(f"{answer[:9]!r} is the answer to {message[:9]!r}")


def more(sock: socket.socket, count: int) -> bytes:
    data = sock.recv(count)
    if not data:
        raise ConnectionError("the connection was closed before the answer had come")
    return data


def quantiles(times: array.array[int]) -> dict[str, float]:
    """Seconds."""
    ordered = sorted(times)
    return {
        "median": ordered[len(ordered) // 2] / 1e9,
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e9,
    }


def main(what: str, *arguments: str) -> None:
    if what == "bulk":
        port, streams, direction, seconds = arguments
        result = bulk(int(port), int(streams), direction, float(seconds))
    elif what == "latency":
        port, number, size, seconds = arguments
        result = latency(int(port), int(number), int(size), float(seconds))
    elif what == "connections":
        port, number, seconds = arguments
        result = connections(int(port), int(number), float(seconds))
    else:
        port, size, end = arguments
        result = verify(int(port), int(size), end == "half-close")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
