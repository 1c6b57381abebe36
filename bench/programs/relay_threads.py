"""A relay with two threads a connection, recv_into and sendall.  LISTEN_PORT TARGET_PORT WORKERS"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading


def pump(source: socket.socket, drain: socket.socket) -> None:
    buffer = memoryview(bytearray(1 << 18))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            drain.sendall(buffer[:count])
        drain.shutdown(socket.SHUT_WR)


def serve(client: socket.socket, target: int) -> None:
    with client, socket.create_connection(("127.0.0.1", target)) as server:
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=pump, args=(server, client), daemon=True)
        back.start()
        pump(client, server)
        back.join()


def main(listen: int, target: int, workers: int) -> None:
    with socket.create_server(("127.0.0.1", listen), backlog=1024) as listener:
        while workers > 1 and os.fork():
            workers -= 1
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client, target), daemon=True).start()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
