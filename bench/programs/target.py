"""What every relay of the benchmark connects to.  PORT (0: one that is free; it is printed)

A connection's first byte says what it is for: "s" (sink) takes zeros up to a byte of 1 and answers
with the number of bytes it got, "g" (generate) gives without end, and anything else is echoed.
Sinks and generators are processes of their own, so that an echo beside them doesn't wait for them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys

from .pollers import Poller

BLOCK = 1 << 18


def main(port: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system collects the children
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
        listener.setblocking(False)
        print(f"listening on port {listener.getsockname()[1]}", flush=True)
        serve(listener)


def serve(listener: socket.socket) -> None:
    poller, connections, new = Poller(), dict[int, socket.socket](), set[int]()
    poller.add(listener.fileno())
    while True:
        for descriptor in poller.wait(3600):
            if descriptor == listener.fileno():
                for sock in accepted(listener):
                    connections[sock.fileno()] = sock
                    new.add(sock.fileno())
                    poller.add(sock.fileno())
                continue
            sock = connections[descriptor]
            try:
                data = sock.recv(BLOCK)
                if data and descriptor in new:
                    new.discard(descriptor)
                    if data[:1] in (b"s", b"g"):
                        in_a_process(listener, sock, data)
                        data = b""
                if data:
                    # Whoever sends so much that this waits reads at the same time.
                    sock.sendall(data)
                    continue
            except OSError:
                pass
            new.discard(descriptor)
            poller.remove(descriptor)  # a child may hold it open
            del connections[descriptor]
            sock.close()


def accepted(listener: socket.socket) -> list[socket.socket]:
    found: list[socket.socket] = []
    with contextlib.suppress(OSError):  # BlockingIOError: that was all
        while len(found) < 64:
            sock, _ = listener.accept()
            sock.setblocking(True)
            found.append(sock)
    return found


def in_a_process(listener: socket.socket, sock: socket.socket, data: bytes) -> None:
    if os.fork():
        return
    listener.close()
    with contextlib.suppress(OSError):
        if data[:1] == b"s":
            sink(sock, len(data))
        else:
            block = bytes(BLOCK)
            while True:
                sock.sendall(block)
    os._exit(0)


def sink(sock: socket.socket, taken: int) -> None:
    buffer = bytearray(BLOCK)
    while not buffer[0] and (count := sock.recv_into(buffer)):
        taken += count
        buffer[0] |= buffer[count - 1]
    sock.sendall(struct.pack("!q", taken))
    sock.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main(int(sys.argv[1]))
