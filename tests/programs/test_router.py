"""``examples/router.py``: TLS, HTTP and SSH on one port, told apart by their first bytes."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from programs.processes import PATIENCE, Program, Server, echo, exchange, needs, receive, reset

EXAMPLE = Path(__file__).parents[2] / "examples/router.py"
PROTOCOLS = ("tls", "http", "ssh")
FIRST = {
    "tls": b"\x16\x03\x01\x00\xf8\x01",
    "http": b"GET / HTTP/1.1\r\n",
    "ssh": b"SSH-2.0-test\r\n",
}


class Router(Program):
    """The example, on a free port."""

    def __init__(self, *options: str) -> None:
        super().__init__(str(EXAMPLE), "0", *options)

    def connect(self) -> socket.socket:
        port = int(self.expect(r"listening on .*:(\d+)$")[0][1])
        return socket.create_connection(("127.0.0.1", port), PATIENCE)


@pytest.fixture
def router(opened: ExitStack) -> Callable[..., Router]:
    """Starts the example, with targets as given."""

    def start(*more: str, **targets: tuple[str, int]) -> Router:
        options = [f"--{name}={host}:{port}" for name, (host, port) in targets.items()]
        return opened.enter_context(closing(Router(*options, *more)))

    return start


@pytest.fixture
def targets(server: Callable[..., Server]) -> dict[str, tuple[str, int]]:
    """A server for each protocol, which says its name first and is an echo then."""

    def named(name: str) -> Callable[[socket.socket], None]:
        def serve(connection: socket.socket) -> None:
            connection.sendall(name.encode())
            echo(connection)

        return serve

    return {name: server(named(name)).address for name in PROTOCOLS}


def served_as(client: socket.socket, protocol: str, sent: bytes) -> None:
    """That it is joined to that target, which has got all that was sent."""
    expected = protocol.encode() + sent
    assert receive(client, len(expected)) == expected
    assert exchange(client, b"more") == b"more"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_first_bytes_choose_the_target(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]], protocol: str
) -> None:
    with router(**targets).connect() as client:
        client.sendall(FIRST[protocol])
        served_as(client, protocol, FIRST[protocol])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_first_bytes_may_come_one_by_one(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]], protocol: str
) -> None:
    with router(**targets).connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in FIRST[protocol]:
            client.sendall(bytes([number]))
        served_as(client, protocol, FIRST[protocol])


def test_a_silent_client_is_one_of_ssh(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]]
) -> None:
    """A client of SSH may wait for the server's first word."""
    with router("--silence=0.1", **targets).connect() as client:
        served_as(client, "ssh", b"")


def test_who_begins_slowly_is_not_taken_for_silent(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]]
) -> None:
    """A byte within the time is enough, whenever the others come."""
    running = router("--silence=30", **targets)
    with running.connect() as client:
        client.sendall(b"G")
        client.sendall(b"ET / HTTP/1.1\r\n")
        served_as(client, "http", b"GET / HTTP/1.1\r\n")


def test_what_no_protocol_begins_with_is_closed(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]]
) -> None:
    running = router(**targets)
    for said in (b"\x16\x02", b"GOT ", b"\xff\xfe", b"SSL-"):
        with running.connect() as client:
            client.sendall(said)
            assert_closed(client)
        running.expect(f"neither TLS nor HTTP nor SSH begins with {re.escape(ascii(said))}")
    assert "Traceback" not in running.text


def assert_closed(client: socket.socket) -> None:
    """By EOF, or by a reset where bytes were left unread."""
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""


def test_a_protocol_without_a_target_is_closed(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]]
) -> None:
    running = router(tls=targets["tls"])
    with running.connect() as client:
        client.sendall(FIRST["http"])
        assert_closed(client)
    running.expect("HTTP has no target")


def test_a_target_that_refuses_costs_that_client_alone(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]], refusing: socket.socket
) -> None:
    running = router(tls=targets["tls"], http=refusing.getsockname())
    for count in (1, 2):
        with running.connect() as client:
            client.sendall(FIRST["http"])
            assert_closed(client)
        running.expect("cannot connect to 127.0.0.1:", count)
    with running.connect() as client:
        client.sendall(FIRST["tls"])
        served_as(client, "tls", FIRST["tls"])
    assert "Traceback" not in running.text


@pytest.mark.parametrize("said", [b"", b"S", b"\x16"])
def test_nothing_is_dialled_for_a_client_that_leaves(
    router: Callable[..., Router], server: Callable[..., Server], said: bytes
) -> None:
    dialled: list[object] = []
    address = server(dialled.append).address
    running = router("--silence=30", tls=address, ssh=address)
    with running.connect() as client:
        client.sendall(said)
    running.expect("closed the connection during the handshake")
    with running.connect() as client:
        client.sendall(said)
        reset(client)
    running.expect("127.0.0.1:\\d+: ", 2)
    assert dialled == []
    assert "Traceback" not in running.text


def test_a_reset_stays_a_reset(
    router: Callable[..., Router], server: Callable[..., Server]
) -> None:
    def break_off(connection: socket.socket) -> None:
        receive(connection, len(FIRST["http"]))
        connection.sendall(b"half of it")
        connection.recv(1)
        reset(connection)

    with router(http=server(break_off).address).connect() as client:
        client.sendall(FIRST["http"])
        assert receive(client, 10) == b"half of it"
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_sigterm_ends_it(
    router: Callable[..., Router], targets: dict[str, tuple[str, int]]
) -> None:
    running = router(**targets)
    running.connect().close()
    running.signal(signal.SIGTERM)
    assert running.end() == 0, running.text


def test_the_hello_of_a_real_tls_client_is_known(
    router: Callable[..., Router], server: Callable[..., Server]
) -> None:
    """What the target gets is the whole hello, which a server's TLS understands."""
    arrived, context = ssl.MemoryBIO(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    understood = []

    def read_hello(connection: socket.socket) -> None:
        arrived.write(connection.recv(1 << 16))
        try:
            context.wrap_bio(arrived, ssl.MemoryBIO(), server_side=True).do_handshake()
        except ssl.SSLError as error:  # it has no certificate: it got as far as looking for one
            understood.append(error.reason)

    running = router(tls=server(read_hello).address)
    with running.connect() as client, pytest.raises((ssl.SSLError, OSError)):
        ssl.create_default_context().wrap_socket(client, server_hostname="localhost")
    assert understood == ["NO_SHARED_CIPHER"]


def test_the_banner_of_a_real_ssh_client_is_known(
    router: Callable[..., Router], server: Callable[..., Server]
) -> None:
    needs("ssh")
    banners: list[bytes] = []
    running = router(ssh=server(lambda connection: banners.append(receive(connection, 8))).address)
    running.connect().close()  # it listens
    (listening,) = running.find(r"listening on .*:(\d+)$")
    options = ["-F", "none", "-o", "BatchMode=yes", "-p", listening[1]]
    subprocess.run(["ssh", *options, "nobody@127.0.0.1"], capture_output=True, timeout=PATIENCE)
    assert banners == [b"SSH-2.0-"]


def test_a_page_is_fetched_by_curl(
    router: Callable[..., Router], server: Callable[..., Server]
) -> None:
    needs("curl")

    def answer(connection: socket.socket) -> None:
        request = bytearray()
        while not request.endswith(b"\r\n\r\n"):
            request += connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")

    running = router(http=server(answer).address)
    running.connect().close()
    (listening,) = running.find(r"listening on .*:(\d+)$")
    url = f"http://127.0.0.1:{listening[1]}/"
    curl = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", url]
    fetched = subprocess.run(curl, capture_output=True, timeout=PATIENCE)
    assert fetched.stdout == b"page", fetched.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["0"], ["x", "--tls=localhost:443"], ["0", "--tls=localhost"]]
)
def test_a_wrong_command_line_is_told_the_right_one(
    program: Callable[..., Program], arguments: list[str]
) -> None:
    running = program(str(EXAMPLE), *arguments)
    assert running.end() == 2
    assert running.lines[0].startswith("usage: router.py [-h] [--tls HOST:PORT]")
