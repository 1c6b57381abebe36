"""The forwarder as a process: real clients, real servers, every byte."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

from freebsd_splice._platform.backlog import backlog_limit
from programs.processes import (
    CONNECTING,
    MAIN,
    PATIENCE,
    Forwarder,
    Program,
    Server,
    digest_to_eof,
    exchange,
    free_port,
    needs,
    receive,
    reset,
    until,
    within_backlog_limit,
)
from support.slowness import SLOWNESS

StartForwarder = Callable[..., Forwarder]
StartServer = Callable[..., Server]

MEGABYTE = 1 << 20
#: What it writes at once: each stream moves more than that in a second, on a slow machine too.
IPERF3_BLOCK = 1 << 17


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """300 MB, and their SHA-256."""
    path = tmp_path_factory.mktemp("served") / "file"
    block = random.Random(1).randbytes(3 * MEGABYTE + 17)
    sha = hashlib.sha256()
    with path.open("wb") as output:
        for number in range(100):
            part = number.to_bytes(4, "big") + block
            output.write(part)
            sha.update(part)
    return path, sha.hexdigest()


class FileHandler(BaseHTTPRequestHandler):
    """GET gives the file, PUT takes one and answers with its SHA-256."""

    protocol_version = "HTTP/1.1"

    def __init__(self, path: Path, *arguments: object) -> None:
        self._path = path
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self._path.stat().st_size))
        self.end_headers()
        with self._path.open("rb") as content:
            self.connection.sendfile(content)

    def do_PUT(self) -> None:
        sha = hashlib.sha256()
        left = int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, MEGABYTE))
            assert data
            sha.update(data)
            left -= len(data)
        answer = sha.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def web(file: tuple[Path, str]) -> object:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(FileHandler, file[0])) as web:
        web.daemon_threads = False  # so that its end waits for them
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        yield web.server_address
        web.shutdown()
        thread.join()


def test_curl_downloads_300_megabytes(
    web: tuple[str, int], file: tuple[Path, str], forwarder: StartForwarder, tmp_path: Path
) -> None:
    needs("curl")
    front = forwarder(web)
    url = f"http://127.0.0.1:{front.port}/"
    subprocess.run(
        ["curl", "-sSf", "-o", tmp_path / "got", url], check=True, timeout=120 * SLOWNESS
    )
    got = hashlib.sha256()
    with (tmp_path / "got").open("rb") as content:
        while data := content.read(MEGABYTE):
            got.update(data)
    assert got.hexdigest() == file[1]
    size = file[0].stat().st_size
    (line,) = front.expect(r"(\d+) bytes up, (\d+) bytes down, eof")
    assert size < int(line[2]) < size + 1000


def test_curl_uploads_300_megabytes(
    web: tuple[str, int], file: tuple[Path, str], forwarder: StartForwarder
) -> None:
    needs("curl")
    url = f"http://127.0.0.1:{forwarder(web).port}/"
    command = ["curl", "-sSf", "-H", "Expect:", "-T", str(file[0]), url]
    answer = subprocess.run(command, check=True, timeout=120 * SLOWNESS, stdout=PIPE)
    assert answer.stdout.decode() == file[1]


@pytest.mark.parametrize("direction", [[], ["-R"]], ids=["up", "down"])
def test_iperf3_with_8_streams(direction: list[str], forwarder: StartForwarder) -> None:
    needs("iperf3")
    port = free_port()
    command = ["iperf3", "-s", "-1", "-p", str(port), "--forceflush"]
    with subprocess.Popen(command, stdout=PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert any("listening" in line for line in server.stdout)
            front = forwarder(("127.0.0.1", port))
            client = ["iperf3", "-c", "127.0.0.1", "-p", str(front.port), "-P", "8", "-t", "1"]
            run = subprocess.run(
                client + direction, timeout=60 * SLOWNESS, stdout=PIPE, stderr=STDOUT
            )
            assert run.returncode == 0, run.stdout.decode()
            # The eight, and iperf3's control connection.
            ends = front.expect(r"(\d+) bytes up, (\d+) bytes down", 9)
            assert sum(int(end[2 if direction else 1]) > IPERF3_BLOCK for end in ends) == 8
        finally:
            server.kill()


def test_a_client_that_half_closes_gets_its_answer(
    server: StartServer, forwarder: StartForwarder
) -> None:
    """F12: the EOF is passed on after the last byte, and the way back lives on."""

    def answer_after_eof(connection: socket.socket) -> None:
        count, digest = digest_to_eof(connection)
        connection.sendall(f"{count} {digest}".encode())

    question = random.Random(2).randbytes(5 * MEGABYTE)
    with forwarder(server(answer_after_eof).address).connect() as client:
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        answer = receive(client, len(f"{len(question)} ") + 64).decode()
        assert client.recv(1) == b""
    assert answer == f"{len(question)} {hashlib.sha256(question).hexdigest()}"


def test_a_slow_reader_gets_every_byte_and_stops_nobody_else(
    server: StartServer, forwarder: StartForwarder
) -> None:
    block = random.Random(3).randbytes(MEGABYTE + 7)
    sent, sha = 0, hashlib.sha256()
    stuck = threading.Event()

    def send(connection: socket.socket) -> None:
        nonlocal sent
        if connection.recv(1) != b"a":
            connection.sendall(b"at once")
            return
        connection.setblocking(False)
        last_progress = time.monotonic()
        # Until nothing has been taken for so long: all buffers on the way are full then.
        while time.monotonic() - last_progress < 0.3 * SLOWNESS:
            try:
                count = connection.send(block[sent % len(block) :])
            except BlockingIOError:
                time.sleep(0.01)
            else:
                sha.update(block[sent % len(block) :][:count])
                sent += count
                last_progress = time.monotonic()
        stuck.set()

    front = forwarder(server(send).address)
    with front.connect() as slow:
        slow.sendall(b"a")
        assert stuck.wait(PATIENCE)
        with front.connect() as other:
            other.sendall(b"b")
            assert receive(other, 7) == b"at once"
        assert digest_to_eof(slow) == (sent, sha.hexdigest())


@pytest.mark.parametrize("after", [0, 5 * MEGABYTE])
def test_a_clients_reset_reaches_the_server_as_a_reset(
    after: int, server: StartServer, forwarder: StartForwarder
) -> None:
    seen: list[object] = []

    def read(connection: socket.socket) -> None:
        connection.sendall(b"ready")
        try:
            digest_to_eof(connection)
            seen.append("eof")
        except OSError as error:
            seen.append(type(error))

    front = forwarder(server(read).address)
    client = front.connect()
    assert receive(client, 5) == b"ready"
    client.sendall(bytes(after))
    reset(client)
    (line,) = front.expect(r"bytes down, (.*?), [\d.]+ s, ")
    # Both directions meet it; with bytes under way either of them can be the first to.
    assert re.fullmatch(r"(source|drain) error \(client: Connection reset by peer\)", line[1])
    until(lambda: seen)
    assert seen == [ConnectionResetError]


@pytest.mark.parametrize("after", [0, 5 * MEGABYTE])
def test_a_servers_reset_reaches_the_client_as_a_reset(
    after: int, server: StartServer, forwarder: StartForwarder
) -> None:
    def send_and_reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(bytes(after))
        reset(connection)

    front = forwarder(server(send_and_reset).address)
    with front.connect() as client:
        client.sendall(b"a")
        with pytest.raises(ConnectionResetError):
            digest_to_eof(client)
    assert front.expect(r"(source|drain) error \(target: Connection reset by peer\)")


def test_500_connections_at_once(
    program: Callable[..., Program], forwarder: StartForwarder
) -> None:
    echo = program(str(Path(__file__).with_name("echo_server.py")))
    front = forwarder(("127.0.0.1", int(echo.expect(r"echo on port (\d+)")[0][1])))
    port = front.port
    everybody_is_there = asyncio.Event()
    door = asyncio.Semaphore(CONNECTING)
    connected = 0

    async def client(number: int) -> None:
        nonlocal connected
        sent = random.Random(number).randbytes(20_000 + 211 * number)
        async with door:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent[:1])
            assert await reader.readexactly(1) == sent[:1]  # the whole way is open
        connected += 1
        if connected == 500:
            everybody_is_there.set()
        await everybody_is_there.wait()
        writer.write(sent[1:])
        writer.write_eof()
        got = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        assert hashlib.sha256(got).digest() == hashlib.sha256(sent[1:]).digest()

    async def clients() -> None:
        await asyncio.wait_for(asyncio.gather(*map(client, range(500))), 2 * PATIENCE)

    asyncio.run(clients())
    front.expect(r"eof", 500)


def test_ipv6_both_ways(server: StartServer, forwarder: StartForwarder) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"six")

    address = server(greet, "::1").address
    front = forwarder(f"[::1]:{address[1]}", listen="[::1]:0")
    with front.connect("::1") as client:
        assert receive(client, 3) == b"six"
        name = f"[::1]:{client.getsockname()[1]}"
    assert front.expect(rf"{re.escape(name)} -> {re.escape(f'[::1]:{address[1]}')}: 0 bytes up")
    assert front.expect(rf"listening on \[::1\]:{front.port}$")


def test_a_connection_without_traffic_ends_by_the_idle_timeout(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--idle-timeout", "0.5")
    with front.connect() as client:
        start = time.monotonic()
        assert exchange(client, b"hello") == b"hello"
        assert client.recv(1) == b""
        assert 0.5 <= time.monotonic() - start < 0.5 + PATIENCE
    assert front.expect(r"5 bytes up, 5 bytes down, idle, 0\.[5-9]\d\d s")


def test_each_connection_has_one_line_in_the_log(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address)
    with front.connect() as client:
        client_name = "{}:{}".format(*client.getsockname())
        assert exchange(client, b"hello") == b"hello"
    target_name = "{}:{}".format(*echo_server.address)
    front.expect(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO "
        rf"{client_name} -> {target_name}: 5 bytes up, 5 bytes down, eof, \d+\.\d{{3}} s, "
        r"(kernel|userspace)/(SO_SPLICE|os\.splice|copy)$"
    )
    assert front.stop() == 0
    assert len(front.find(client_name)) == 1


def test_the_log_level_can_leave_those_lines_out(
    echo_server: Server, program: Callable[..., Program]
) -> None:
    port = free_port()  # nothing will say which one it got
    target = "{}:{}".format(*echo_server.address)
    options = ["--log-level", "warning", *within_backlog_limit()]
    quiet = program(*MAIN, "forward", *options, f"127.0.0.1:{port}", target)
    until(lambda: _greets(port))
    quiet.signal(signal.SIGTERM)
    assert quiet.end() == 0
    assert quiet.lines == []


def test_the_mover_can_be_forced(echo_server: Server, forwarder: StartForwarder) -> None:
    environment = {"FREEBSD_SPLICE_BACKEND": "userspace", "FREEBSD_SPLICE_MOVER": "copy"}
    front = forwarder(echo_server.address, environment=environment)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.expect(r"userspace/copy$")


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            return exchange(client, b"hello") == b"hello"
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_that_the_system_cuts_the_backlog_is_said_once(
    workers: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    """However many addresses and workers there are; and the clients are served."""
    limit = backlog_limit()
    if limit is None:
        pytest.skip("this system doesn't say what its limit is")
    options = ["--backlog", str(2**31 - 1), "--workers", workers]
    front = forwarder(echo_server.address, *options, listen="localhost:0")
    [said] = front.expect(r"WARNING the system cuts the backlog of 2147483647 to (\d+) \((\S+)\)")
    assert said.groups() == (str(limit.most), limit.sysctl)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.stop() == 0
    assert len(front.find("backlog")) == 1
