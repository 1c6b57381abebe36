"""Packets that are lost, doubled, delayed and reordered on both sides of each proxy."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from programs.namespaces import PROXY, SERVER, Network, make_network
from programs.processes import PATIENCE, Served, Server, digest_to_eof, receive, until
from programs.test_crowd import client_hello

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")
pytest.importorskip("h11")

HELLO = client_hello()
#: No power of two long: shifts show.
PIECE = random.Random(0).randbytes((1 << 18) + 7)

PROXIES = f"""
[[forward]]
listen = "{PROXY}:0"
target = "{SERVER}:{{plain}}"
[[connect]]
listen = "{PROXY}:0"
rules = ["allow {SERVER}", "deny *"]
[[socks5]]
listen = "{PROXY}:0"
rules = ["allow {SERVER}", "deny *"]
[[sni]]
listen = "{PROXY}:0"
default = "{SERVER}:{{after_hello}}"
"""

Digest = tuple[int, str]


@pytest.fixture
def network() -> Iterator[Network]:
    with closing(make_network()) as made:
        yield made


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root's alone")
@pytest.mark.root
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(64 << 20, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(1 << 30, marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
    ],
)
def test_every_byte_arrives_through_each_proxy(size: int, network: Network, tmp_path: Path) -> None:
    """Half of them go up, half come down at the same time; each way ends in an EOF."""
    taken: dict[int, Digest] = {}

    def serve(connection: socket.socket) -> None:
        number = receive(connection, 1)[0]
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send, connection, number + 1, size // 2)
            taken[number] = digest_to_eof(connection)
            sending.result()

    def serve_after_hello(connection: socket.socket) -> None:
        assert receive(connection, len(HELLO)) == HELLO
        serve(connection)

    with network.within("server"):
        listeners = [socket.create_server((SERVER, 0)) for _ in range(2)]
    plain, after_hello = (each.getsockname()[1] for each in listeners)
    text = PROXIES.format(plain=plain, after_hello=after_hello)
    with (
        closing(Server(serve, listener=listeners[0])),
        closing(Server(serve_after_hello, listener=listeners[1])),
    ):
        with network.within("proxy"):
            proxies = Served(tmp_path / "proxies.toml", text)
        with closing(proxies), ThreadPoolExecutor(8) as pool:
            ports = [int(found[1]) for found in proxies.expect(r"listening on .*:(\d+)$", 4)]
            clients = []
            for port, ask in zip(ports, (nothing, connect, socks5, hello), strict=True):
                with network.within("client"):
                    clients.append(socket.create_connection((PROXY, port), PATIENCE))
                ask(clients[-1], plain)
            runs = []
            for number, client in enumerate(clients):
                client.sendall(bytes([2 * number]))
                sent = pool.submit(send, client, 2 * number, size // 2)
                runs.append((sent, pool.submit(digest_to_eof, client)))
            for number, (sent, got) in enumerate(runs):
                assert got.result() == digest(2 * number + 1, size // 2)
                assert sent.result() is None
                until(partial(taken.__contains__, 2 * number))
                assert taken[2 * number] == digest(2 * number, size // 2)
            for client in clients:
                client.close()
            assert proxies.stop() == 0
            assert len(proxies.find(r": \d+ bytes .*, eof, ")) == 4, proxies.text
    assert network.losses() > size // 100_000


def nothing(client: socket.socket, target: int) -> None: ...


def connect(client: socket.socket, target: int) -> None:
    client.sendall(b"CONNECT %b:%d HTTP/1.1\r\nHost: a\r\n\r\n" % (SERVER.encode(), target))
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += receive(client, 1)
    assert b" 200 " in answer


def socks5(client: socket.socket, target: int) -> None:
    address = socket.inet_aton(SERVER) + target.to_bytes(2, "big")
    client.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01" + address)
    assert receive(client, 12)[:4] == b"\x05\x00\x05\x00"


def hello(client: socket.socket, target: int) -> None:
    client.sendall(HELLO)


def pieces(number: int, size: int) -> Iterator[bytes]:
    """What goes one way: other bytes for each number."""
    for at in range(0, size, len(PIECE)):
        head = (number << 56 | at).to_bytes(8, "big")
        yield (head + PIECE[8:])[: size - at]


def send(sock: socket.socket, number: int, size: int) -> None:
    for piece in pieces(number, size):
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)


def digest(number: int, size: int) -> Digest:
    sha = hashlib.sha256()
    for piece in pieces(number, size):
        sha.update(piece)
    return size, sha.hexdigest()
