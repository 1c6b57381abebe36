"""``examples/reverse_proxy.py``: an HTTP/1.1 reverse proxy of ``readuntil`` and ``transfer``."""

from __future__ import annotations

import hashlib
import http.server
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from programs.processes import PATIENCE, Program, Server, needs, receive, reset

pytest.importorskip("h11", reason="the example takes h11")

EXAMPLE = Path(__file__).parents[2] / "examples/reverse_proxy.py"
LARGE = random.Random(1).randbytes(3_000_001)


class Handler(http.server.BaseHTTPRequestHandler):
    """A server that keeps connections alive and knows chunks."""

    protocol_version = "HTTP/1.1"
    connections = 0
    heads: list[str]

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def log_message(self, format: str, *arguments: object) -> None: ...

    def do_GET(self) -> None:
        self.heads.append(f"{self.requestline}\r\n{self.headers}")
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(LARGE), 70_000):
                piece = LARGE[start : start + 70_000]
                self.wfile.write(b"%x;extension\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\nTrailer: dropped\r\n\r\n")
        elif self.path == "/until-eof":
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(LARGE)
        else:
            self.send_header("Content-Length", str(len(LARGE)))
            self.send_header("Keep-Alive", "timeout=5")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(LARGE)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.heads.append(f"{self.requestline}\r\n{self.headers}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)) or self._chunks()
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            assert self.rfile.read(2) == b"\r\n"
        assert self.rfile.readline() == b"\r\n"
        return body


class Backend(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self) -> None:
        self.seen: type[Handler] = type("Seen", (Handler,), {"heads": []})
        super().__init__(("127.0.0.1", 0), self.seen)
        self._open: list[socket.socket] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is what some cases are about."""

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        connection.settimeout(PATIENCE)
        self._open.append(connection)
        return connection, address


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield server
        server.shutdown()
        thread.join(PATIENCE)
        for connection in server._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


Proxying = Callable[[tuple[str, int]], Program]


@pytest.fixture
def proxying(program: Callable[..., Program]) -> Proxying:
    """Starts the example, in front of a server."""
    return lambda target: program(str(EXAMPLE), "0", f"{target[0]}:{target[1]}")


def port_of(proxy: Program) -> int:
    return int(proxy.expect(r"listening on .*:(\d+)$")[0][1])


@pytest.fixture
def proxy(proxying: Proxying, backend: Backend) -> Program:
    return proxying(("127.0.0.1", backend.server_port))


def curl(*arguments: str, status: int = 0) -> bytes:
    needs("curl")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]
    run = subprocess.run([*command, *arguments], capture_output=True, timeout=PATIENCE)
    assert run.returncode == status, run.stderr
    return run.stdout


def connect(proxy: Program) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(proxy)), PATIENCE)


def ask(proxy: Program, request: bytes) -> bytes:
    """All that comes until the proxy closes."""
    with connect(proxy) as client:
        client.sendall(request)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def read_head(client: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += receive(client, 1)
    return head


# Bodies


@pytest.mark.parametrize("path", ["length", "chunked", "until-eof"])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_an_answer_arrives_whole(proxy: Program, path: str, version: str) -> None:
    """An HTTP/1.0 client knows no chunks."""
    url = f"http://127.0.0.1:{port_of(proxy)}/{path}"
    assert curl(version, url) == LARGE
    text = curl(version, "--head", url).decode()
    assert text.startswith("HTTP/1.1 200 ")
    assert "Keep-Alive" not in text


@pytest.mark.parametrize("kind", ["length", "chunked", "expect"])
def test_a_request_arrives_whole(
    proxy: Program, backend: Backend, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    header = {
        "length": "Expect:",
        "chunked": "Transfer-Encoding: chunked",
        "expect": "Expect: 100-continue",
    }[kind]
    url = f"http://127.0.0.1:{port_of(proxy)}/"
    given = curl("--header", header, "--upload-file", str(file), url)
    assert given.decode() == hashlib.sha256(LARGE).hexdigest()
    (head,) = backend.seen.heads
    assert ("Transfer-Encoding: chunked" in head) == (kind == "chunked")


def test_100_continue_comes_from_the_server(
    proxying: Proxying, server: Callable[..., Server]
) -> None:
    """Before the client sends a byte of the body."""

    def serve(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert receive(connection, 5) == b"12345"
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        connection.recv(1)

    with connect(proxying(server(serve).address)) as client:
        head = b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        client.sendall(head)
        assert read_head(client).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"12345")
        assert read_head(client).startswith(b"HTTP/1.1 204 ")


# Connections


def test_both_connections_are_kept_alive(proxy: Program, backend: Backend) -> None:
    url = f"http://127.0.0.1:{port_of(proxy)}"
    paths = ("length", "chunked", "length", "chunked")
    urls = [f"{url}/{path}" for path in paths]
    discard = [word for _ in urls for word in ("--output", "/dev/null")]
    said = curl(*discard, "--write-out", "%{num_connects} %{size_download}\n", *urls).decode()
    assert said.splitlines() == [f"{int(not n)} {len(LARGE)}" for n in range(len(paths))]
    assert backend.seen.connections == 1


def test_pipelined_requests_are_answered_in_order(proxy: Program, backend: Backend) -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
    bodies = [b"first", b"second" * 10_000, b"third"]
    last = b"GET /until-eof HTTP/1.1\r\nHost: a\r\n\r\n"
    given = ask(proxy, b"".join(request % (len(body), body) for body in bodies) + last)
    assert re.findall(rb"\b[0-9a-f]{64}", given[:2000]) == [
        hashlib.sha256(body).hexdigest().encode() for body in bodies
    ]
    assert given.endswith(LARGE)


def test_what_is_for_one_hop_stays_there(proxy: Program, backend: Backend) -> None:
    ask(
        proxy,
        b"HEAD / HTTP/1.1\r\nHost: example.org\r\nConnection: close, X-Own\r\nX-Own: 1\r\n"
        b"X-Kept: 2\r\nTE: trailers\r\n\r\n",
    )
    (head,) = backend.seen.heads
    for name in ("Connection", "X-Own", "TE"):
        assert f"\n{name}:" not in head
    for line in ("Host: example.org", "X-Kept: 2", "Via: 1.1 freebsd-splice"):
        assert f"\n{line}\n" in head
    assert "\nX-Forwarded-For: 127.0.0.1\n" in head


@pytest.mark.parametrize(("method", "status"), [(b"GET", b"200"), (b"POST", b"502")])
def test_a_server_that_closed_meanwhile_is_connected_to_again(
    proxying: Proxying, server: Callable[..., Server], method: bytes, status: bytes
) -> None:
    """Its end and the next request can cross.  A POST could be done twice."""
    served: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        served.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if len(served) < 2:
            read_head(connection)
            reset(connection)
        connection.recv(1)

    with connect(proxying(server(serve).address)) as client:
        for expected in (b"200", status):
            client.sendall(method + b" / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            assert read_head(client).startswith(b"HTTP/1.1 " + expected)
            if expected == b"200":
                assert receive(client, 2) == b"ok"


def test_another_protocol_is_relayed(proxying: Proxying, server: Callable[..., Server]) -> None:
    def serve(connection: socket.socket) -> None:
        head = read_head(connection)
        assert b"\r\nConnection: Upgrade\r\nUpgrade: echo\r\n" in head
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhi"
        )
        while data := connection.recv(1 << 16):
            connection.sendall(data)

    with connect(proxying(server(serve).address)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        head = read_head(client)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nUpgrade: echo\r\n" in head
        assert receive(client, 2) == b"hi"
        client.sendall(b"across")
        assert receive(client, 6) == b"across"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="no wrk is installed for the tests elsewhere")
def test_wrk_meets_no_error(proxy: Program, backend: Backend) -> None:
    needs("wrk")
    url = f"http://127.0.0.1:{port_of(proxy)}/chunked"
    run = ["wrk", "--threads", "1", "--connections", "8", "--duration", "2s", url]
    said = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE).stdout
    assert int(re.findall(r"(\d+) requests in", said)[0]) > 0
    assert "Socket errors" not in said
    assert "Non-2xx" not in said
    assert (
        proxy.find("Traceback|: (400|408|50[0-9]) ") == []
    )  # those that wrk cuts at its end are reported


# Failures


HURRIED = """
import asyncio, sys
sys.path.insert(0, {folder!r})
import reverse_proxy
reverse_proxy.NEXT_REQUEST = reverse_proxy.STANDSTILL = reverse_proxy.ANSWER = 0.3
reverse_proxy.CONNECT = 0.3
asyncio.run(reverse_proxy.main(0, {target!r}))
"""


@pytest.mark.parametrize(
    ("request_", "begins"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 504 "),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n123", b"HTTP/1.1 408 "),
        (
            b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n123",
            b"HTTP/1.1 408 ",
        ),
    ],
)
def test_who_says_nothing_more_holds_nothing(
    program: Callable[..., Program], server: Callable[..., Server], request_: bytes, begins: bytes
) -> None:
    """A server that takes everything, and clients that stop in the middle."""
    target = server(lambda connection: read_all(connection) and None).address
    proxy = program("-c", HURRIED.format(folder=str(EXAMPLE.parent), target=target))
    answer = ask(proxy, request_)
    assert answer.startswith(begins)
    assert bool(answer) == bool(begins)


def test_a_server_that_can_not_be_reached_in_time_is_504(
    program: Callable[..., Program], silent: socket.socket
) -> None:
    target = silent.getsockname()[:2]
    proxy = program("-c", HURRIED.format(folder=str(EXAMPLE.parent), target=target))
    answer = ask(proxy, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")


def test_a_server_that_refuses_is_502(proxying: Proxying, refusing: socket.socket) -> None:
    proxy = proxying(refusing.getsockname())
    for count in (1, 2):
        answer = ask(proxy, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        proxy.expect("^127.0.0.1: 502 Bad Gateway: ", count)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 O", b"SSH-2.0-x\r\n\r\n"])
def test_a_server_that_gives_no_answer_is_502(
    proxying: Proxying, server: Callable[..., Server], answer: bytes
) -> None:
    def serve(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(answer)

    given = ask(proxying(server(serve).address), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert given.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked", b"Connection: close"]
)
def test_an_answer_that_is_cut_short_is_no_whole_one(
    proxying: Proxying, server: Callable[..., Server], framing: bytes
) -> None:
    """Not even one that only the end of the connection ends."""

    def serve(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n64\r\n12345" % framing)
        connection.recv(1)  # the client's, who has read so much
        reset(connection)

    proxy = proxying(server(serve).address)
    with connect(proxy) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
        read_head(client)
        receive(client, 5)
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(client)
    assert "Traceback" not in proxy.text


CHUNKED = b"Host: a\r\nTransfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n%s\r\nContent-Length: 3\r\n\r\n" % CHUNKED, b"400"),
        (b"POST / HTTP/1.0\r\n%s\r\n\r\n" % CHUNKED, b"400"),
        (b"POST / HTTP/1.1\r\n%s\r\n\r\nx\r\n" % CHUNKED, b"400"),
        (b"POST / HTTP/1.1\r\n%s\r\n\r\n0\r\n%s" % (CHUNKED, b"a: b\r\n" * 100), b"400"),
        (b"POST / HTTP/1.1\r\n%s\r\n\r\n1\r\nabc" % CHUNKED, b"400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9%s\r\n\r\n" % (b"0" * 18), b"413"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"501"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, b"431"),
    ],
)
def test_a_request_that_can_not_be(
    proxy: Program, backend: Backend, request_: bytes, status: bytes
) -> None:
    answer = ask(proxy, request_)
    assert answer.startswith(b"HTTP/1.1 %s " % status), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert "Traceback" not in proxy.text


def test_an_answer_before_the_whole_request(
    proxying: Proxying, server: Callable[..., Server]
) -> None:
    """The client reads it, though the server takes no more and closes."""

    def serve(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(
            b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        )
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    answer = ask(proxying(server(serve).address), head + bytes(1000))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"no")


def test_a_client_that_leaves_costs_nobody_else(proxy: Program, backend: Backend) -> None:
    with connect(proxy) as client:
        client.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc")
        reset(client)
    with connect(proxy) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        receive(client, 1000)
        reset(client)
    assert curl(f"http://127.0.0.1:{port_of(proxy)}/") == LARGE
    assert "Traceback" not in proxy.text


def test_sigterm_cuts_what_is_under_way(
    proxying: Proxying, server: Callable[..., Server], opened: ExitStack
) -> None:
    def serve(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf")
        connection.recv(1)

    proxy = proxying(server(serve).address)
    idle, busy = opened.enter_context(connect(proxy)), opened.enter_context(connect(proxy))
    busy.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    read_head(busy)
    assert receive(busy, 4) == b"half"
    proxy.signal(signal.SIGTERM)
    assert proxy.end() == 0, proxy.text
    with pytest.raises(ConnectionResetError):  # or it would seem to have all of it
        busy.recv(1)
    with pytest.raises(ConnectionResetError):
        idle.recv(1)
    assert "Traceback" not in proxy.text
