"""The programs that the README and the pages in docs/ print, run as they stand there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice import Reason
from programs.processes import (
    PATIENCE,
    Program,
    Server,
    echo,
    exchange,
    free_port,
    needs,
    receive,
    reset,
    until,
)

ROOT = Path(__file__).parents[2]


def printed(page: str, heading: str) -> list[str]:
    """The Python of a section."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)


@pytest.fixture
def running(program: Callable[..., Program]) -> Callable[..., tuple[int, Program]]:
    """Runs code that is printed, but for its ports, and waits until it listens; gives its port."""

    def run(code: str, **ports: int) -> tuple[int, Program]:
        chosen = {"8080": free_port(), **{name[1:]: port for name, port in ports.items()}}
        for name, port in chosen.items():
            assert len(re.findall(rf"\b{name}\b", code)) == 1, name
            code = re.sub(rf"\b{name}\b", str(port), code)
        started = program("-c", code)

        def listens() -> bool:
            assert started.process.poll() is None, started.text
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", chosen["8080"])) == 0

        until(listens)
        return chosen["8080"], started

    return run


Running = Callable[..., tuple[int, Program]]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


# The README's relay


def test_the_relay_goes_on_after_a_target_that_refused(
    running: Running, refusing: socket.socket, server: Callable[..., Server]
) -> None:
    target = refusing.getsockname()[1]
    port, relay = running(printed("README.md", "A relay")[0], _80=target)
    for _ in range(2):
        with connect(port) as client:
            assert client.recv(1) == b""
    relay.expect(r"^WARNING:root:.*refused", 3)  # the first found out that it listens
    assert "Traceback" not in relay.text


def test_the_relay_delivers_and_says_what_it_did(running: Running, echo_server: Server) -> None:
    port, relay = running(printed("README.md", "A relay")[0], _80=echo_server.address[1])
    with connect(port) as client:
        assert exchange(client, b"there and back") == b"there and back"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    relay.expect(r"14 bytes left to right, 14 bytes right to left, eof, ")


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_a_target_that_does_not_answer_holds_up_nobody_else(
    running: Running, silent: socket.socket
) -> None:
    """A client whose relay could be made is served while others still connect."""
    code = printed("README.md", "A relay")[0]
    port, relay = running(code, _80=silent.getsockname()[1])
    clients = [connect(port) for _ in range(3)]
    until(lambda: relay.threads() >= 4)  # all are accepted, though none is connected
    for client in clients:
        client.close()


@pytest.fixture
def splice_ends() -> tuple[socket.socket, ...]:
    return (*socket.socketpair(), *socket.socketpair())


def test_the_splice_of_one_direction(splice_ends: tuple[socket.socket, ...]) -> None:
    source, sender, drain, receiver = splice_ends
    names = {"source": source, "drain": drain}
    sender.sendall(bytes(20_000))
    exec(printed("README.md", "A relay")[1], names)
    outcome: object = names["outcome"]
    assert (outcome.bytes, outcome.reason) == (10_000, Reason.LIMIT)  # type: ignore[attr-defined]
    assert receive(receiver, 10_000).startswith(b"already read\0")
    for sock in splice_ends:
        sock.close()


def test_the_thin_functions() -> None:
    (code,) = printed("README.md", "The thin functions")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = []
        for _ in range(2):
            ends += [socket.create_connection(listener.getsockname()), listener.accept()[0]]
    source, sender, drain, _ = ends
    for sock in (source, drain):
        sock.setblocking(False)
    exec(code, {"source": source, "drain": drain})
    sender.sendall(b"not spliced any more")
    sender.shutdown(socket.SHUT_WR)
    source.setblocking(True)
    assert source.recv(3) == b"not"
    for sock in ends:
        sock.close()


# The README's proxy


@pytest.fixture
def asyncio_proxy(running: Running) -> int:
    (code,) = printed("README.md", "asyncio")
    return running(code)[0]


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


@pytest.mark.parametrize(
    "said",
    [
        b"CONNECT %s HTTP/1.1\r\n\r\n",
        b"CONNECT nowhere.invalid:80 HTTP/1.1\r\n\r\n",
        b"CONNECT host:port HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:99999 HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\xff\xfe a:1\r\n\r\n",
        b"x" * 100_000,
    ],
)
def test_the_asyncio_proxy_answers_502_and_does_not_trace(
    running: Running, refusing: socket.socket, said: bytes
) -> None:
    port, proxy = running(printed("README.md", "asyncio")[0])
    said = said.replace(b"%s", b"127.0.0.1:%d" % refusing.getsockname()[1])
    with connect(port) as client:
        client.sendall(said)
        assert receive(client, 12) == b"HTTP/1.1 502"
    proxy.expect("^refused: ", 2)  # the first only looked whether it listens
    assert "Traceback" not in proxy.text


def test_the_asyncio_proxy_outlives_clients_that_leave(
    running: Running, echo_server: Server
) -> None:
    port, proxy = running(printed("README.md", "asyncio")[0])
    head = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % echo_server.address[1]
    for said in (b"", b"CONNECT", head, head + b"x"):
        with connect(port) as client:
            client.sendall(said)
            reset(client)
    with connect(port) as client:
        client.sendall(head)
        assert receive(client, 12) == b"HTTP/1.1 200"
    assert "Traceback" not in proxy.text
    assert "xception" not in proxy.text.replace("refused: ", "").replace("IncompleteRead", "")


# The tutorial's proxies


FIRST, SECOND = (printed("docs/tutorial.md", heading)[0] for heading in ("Your own", "Put right"))


@pytest.mark.parametrize("code", [FIRST, SECOND], ids=["first", "second"])
def test_the_tutorials_proxy_says_what_it_moved(
    running: Running, echo_server: Server, code: str
) -> None:
    port, proxy = running(code, _8000=echo_server.address[1])
    with connect(port) as client:
        assert exchange(client, b"there and back") == b"there and back"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    proxy.expect(r"14 bytes left to right, 14 bytes right to left, eof, \d+\.\d{3} s, \w+/")


def test_the_tutorials_first_proxy_ends_as_it_says(
    running: Running, refusing: socket.socket
) -> None:
    """Where the target refuses, for everybody: the client that looks is enough."""
    _, proxy = running(FIRST, _8000=refusing.getsockname()[1])
    assert proxy.end() == 1
    assert "ConnectionRefusedError" in proxy.text


def test_the_tutorials_second_proxy_outlives_its_target(
    running: Running, refusing: socket.socket
) -> None:
    port, proxy = running(SECOND, _8000=refusing.getsockname()[1])
    for _ in range(2):
        with connect(port) as client:
            assert client.recv(1) == b""
    proxy.expect("can't connect: .*refused", 3)
    assert "Traceback" not in proxy.text


def test_the_tutorials_second_proxy_names_who_broke_off(
    running: Running, server: Callable[..., Server]
) -> None:
    """The client, and the target learns of it by a reset."""
    ends: list[type[BaseException]] = []

    def send_for_ever(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(bytes(1 << 16))
        except OSError as error:
            ends.append(type(error))

    port, proxy = running(SECOND, _8000=server(send_for_ever).address[1])
    with connect(port) as client:
        receive(client, 1 << 16)
        reset(client)
    proxy.expect(r"(source|drain) error \(left: .*; may not have arrived: \d+ right to left")
    until(lambda: len(ends) == 2)  # the other is of the client that looked whether it listens
    assert set(ends) <= {ConnectionResetError, BrokenPipeError}


# The proxies of one's own, in docs/proxies.md and docs/first_bytes.md


OWN = "As a library"


def first_seen(connection: socket.socket) -> None:
    """Answers with who it is, and then as an echo."""
    connection.sendall(b"%d\n" % connection.getsockname()[1])
    echo(connection)


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("docs/proxies.md", OWN),
        ("docs/first_bytes.md", "With the server of the ready-made proxies"),
    ],
)
@pytest.mark.parametrize(("first", "which"), [(b"GET", 0), (b"\x16\x03\x01", 1)])
def test_ones_own_proxy_goes_by_the_first_byte(
    running: Running,
    server: Callable[..., Server],
    page: str,
    heading: str,
    first: bytes,
    which: int,
) -> None:
    ports = [server(first_seen).address[1] for _ in range(2)]
    (code,) = printed(page, heading)
    port, _ = running(code, _8000=ports[0], _8001=ports[1])
    with connect(port) as client:
        client.sendall(first)
        name = b"%d\n" % ports[which]
        assert receive(client, len(name) + len(first)) == name + first
        assert exchange(client, b"more") == b"more"


def test_a_client_that_says_nothing_is_bounded_in_ones_own_proxy(running: Running) -> None:
    (code,) = printed("docs/proxies.md", OWN)
    assert code.count("handshake_timeout=5") == 1
    code = code.replace("handshake_timeout=5", "handshake_timeout=0.2")
    port, proxy = running(code)
    with connect(port) as client:
        assert client.recv(1) == b""
    proxy.expect("WARNING.* client did not complete the handshake in 0.2 s")


def test_nothing_is_dialled_for_a_client_that_has_left(
    running: Running, server: Callable[..., Server]
) -> None:
    dialled: list[object] = []
    ports = [server(dialled.append).address[1] for _ in range(2)]
    port, proxy = running(printed("docs/proxies.md", OWN)[0], _8000=ports[0], _8001=ports[1])
    connect(port).close()
    proxy.expect("WARNING.* client closed the connection during the handshake", 2)
    assert dialled == []
    assert "Traceback" not in proxy.text


# The README's installing


@pytest.mark.slow  # needs the package index
def test_the_install_section_works(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("\n## Install\n")[1]
    commands = section.split("```sh\n")[1].split("```")[0]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("this is no clone")
    copy = tmp_path / "clone"
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    script = f"python3() {{ '{sys.executable}' \"$@\"; }}\nset -eu\n{commands}\npip list\n"
    run = subprocess.run(["sh", "-c", script], cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "freebsd-splice  0.1.0 on" in run.stdout
    assert "\nh11 " in run.stdout
