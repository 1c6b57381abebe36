"""The proxy that the README prints, run as it stands there."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from programs.processes import PATIENCE, Program, Server, free_port, needs, until

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def asyncio_proxy(program: Callable[..., Program]) -> int:
    """The proxy of the section "asyncio", as it is printed but for the port, which this gives."""
    section = README.read_text().split("\n## asyncio\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    port = free_port()
    assert code.count("8080") == 1
    running = program("-c", code.replace("8080", str(port)))

    def listens() -> bool:
        assert running.process.poll() is None, running.text
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    until(listens)
    return port


def test_the_asyncio_proxy_passes_bytes_and_half_closes_on(
    asyncio_proxy: int, server: Callable[..., Server]
) -> None:
    """The answer needs the client's EOF, and comes after it."""
    sent = bytes(range(256)) * 10_000
    received = bytearray()
    whole = threading.Event()

    def answer(connection: socket.socket) -> None:
        while data := connection.recv(1 << 16):
            received.extend(data)
        whole.set()
        connection.sendall(b"got %d" % len(received))

    host, port = server(answer).address
    with socket.create_connection(("127.0.0.1", asyncio_proxy), PATIENCE) as client:
        head = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        client.sendall(head + sent[:100])  # some of it in the same segment
        client.sendall(sent[100:])
        client.shutdown(socket.SHUT_WR)
        answered = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert whole.wait(PATIENCE)
    assert received == sent
    head, _, rest = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert rest == b"got %d" % len(sent)


def test_the_asyncio_proxy_is_one_for_curl(
    asyncio_proxy: int, server: Callable[..., Server], tmp_path: Path
) -> None:
    needs("curl")
    body = bytes(range(256)) * 10_000

    def serve(connection: socket.socket) -> None:
        request = bytearray()
        while not request.endswith(b"\r\n\r\n"):
            request += connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    host, port = server(serve).address
    proxy = ["--proxytunnel", "--proxy", f"http://127.0.0.1:{asyncio_proxy}", "--noproxy", ""]
    url = f"http://{host}:{port}/"
    fetched = tmp_path / "fetched"
    curl = ["curl", "--silent", "--show-error", "--fail", *proxy, "--output", str(fetched), url]
    subprocess.run(curl, check=True, timeout=PATIENCE)
    assert fetched.read_bytes() == body


def test_the_asyncio_proxy_refuses_what_is_no_connect(asyncio_proxy: int) -> None:
    with socket.create_connection(("127.0.0.1", asyncio_proxy), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 405 ")
