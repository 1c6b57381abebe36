"""Each proxy over each backend and mover of this machine: bytes both ways, half-close, log."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from programs.clients import ALLOW_LOOPBACK, no_accidents, read_head, read_to_eof
from programs.every_backend import BACKENDS
from programs.processes import PATIENCE, Proxy, Server, receive
from programs.test_sni import hello, nameless

DATA = random.Random(7).randbytes(2_000_000)


class Opened(NamedTuple):
    """A connection through a proxy, past what is said first."""

    client: socket.socket
    #: What the target gets before DATA.
    ahead: bytes


def by_forward(front: Proxy, target: tuple[str, int]) -> Opened:
    return Opened(front.connect(), b"")


def by_connect(front: Proxy, target: tuple[str, int]) -> Opened:
    client = front.connect()
    client.sendall(b"CONNECT %s:%d HTTP/1.1\r\nHost: x\r\n\r\nahead" % (b"127.0.0.1", target[1]))
    read_head(client)
    return Opened(client, b"ahead")


def by_socks5(front: Proxy, target: tuple[str, int]) -> Opened:
    client = front.connect()
    client.sendall(b"\5\1\0")
    assert receive(client, 2) == b"\5\0"
    client.sendall(b"\5\1\0\1\x7f\0\0\1" + target[1].to_bytes(2, "big") + b"ahead")
    assert receive(client, 10)[:2] == b"\5\0"
    return Opened(client, b"ahead")


def by_sni(front: Proxy, target: tuple[str, int]) -> Opened:
    client = front.connect()
    said, _, _ = hello(nameless(), None)
    client.sendall(said)
    return Opened(client, said)


PROXIES: dict[str, tuple[Callable[[Proxy, tuple[str, int]], Opened], tuple[str, ...]]] = {
    "forward": (by_forward, ("127.0.0.1:0", "{target}")),
    "connect": (by_connect, (*ALLOW_LOOPBACK, "127.0.0.1:0")),
    "socks5": (by_socks5, (*ALLOW_LOOPBACK, "127.0.0.1:0")),
    "sni": (by_sni, ("{routes}", "127.0.0.1:0")),
}


def answer_to_all(connection: socket.socket) -> None:
    """All that arrives up to its end goes back, backwards, so that the order shows."""
    connection.sendall(read_to_eof(connection)[::-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("command", PROXIES)
def test_bytes_go_both_ways_and_ends_with_them(
    command: str,
    backend: str,
    proxy: Callable[..., Proxy],
    server: Callable[..., Server],
    tmp_path: Path,
) -> None:
    if command == "connect":
        pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    target = server(answer_to_all).address
    routes = tmp_path / "routes.toml"
    routes.write_text(f'default = "127.0.0.1:{target[1]}"\n')
    open_by, arguments = PROXIES[command]
    names = {"target": f"127.0.0.1:{target[1]}", "routes": os.fspath(routes)}
    filled = [argument.format(**names) for argument in arguments]
    front = proxy(command, *filled, environment=BACKENDS[backend])
    client, ahead = open_by(front, target)
    with client:
        sending = threading.Thread(target=_send_and_end, args=(client, DATA))
        sending.start()
        answer = read_to_eof(client)
        sending.join(PATIENCE)
    assert answer == (ahead + DATA)[::-1]
    moved = len(ahead + DATA)
    front.expect(f"{moved} bytes up, {moved} bytes down, eof, .* s, {backend}$")
    no_accidents(front)


def _send_and_end(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
