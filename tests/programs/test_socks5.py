"""The SOCKS proxy as a process: curl, messages byte by byte, and clients that are none."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from faults.cells import cell
from freebsd_splice.proxies._passwords import make_entry
from programs.clients import (
    ALLOW_LOOPBACK,
    NAME_OF_PRIVATE_ADDRESSES,
    NAME_THAT_WAITS,
    Certificates,
    arrive,
    curl,
    leave,
    name_of,
    no_accidents,
    nothing_kept,
    page,
    read_to_eof,
    send_byte_by_byte,
)
from programs.processes import Proxy, Server, digest_to_eof, exchange, receive

StartProxy = Callable[..., Proxy]
StartServer = Callable[..., Server]

BODY = b"from the other side\n"

#: A greeting without passwords, and what answers it.
HELLO, WELCOME = b"\x05\x01\x00", b"\x05\x00"

#: What curl says of a proxy that it got no connection from.
CURL_PROXY_ERROR = 97

REFUSED_BY_RULE, HOST_UNREACHABLE, REFUSED, NO_COMMAND, NO_ADDRESS_TYPE = 2, 4, 5, 7, 8


@pytest.fixture
def socks5(opened: ExitStack) -> StartProxy:
    """Starts the proxy on a free port."""

    def start(
        *options: str,
        listen: str = "127.0.0.1:0",
        patch: str = "",
        environment: dict[str, str] | None = None,
    ) -> Proxy:
        return opened.enter_context(
            closing(Proxy("socks5", *options, listen, patch=patch, environment=environment))
        )

    return start


def request(host: str, port: int, command: int = 1) -> bytes:
    """For an address as the address that it is, else for a name."""
    for kind, family in ((1, socket.AF_INET), (4, socket.AF_INET6)):
        with contextlib.suppress(OSError):
            address = socket.inet_pton(family, host)
            return bytes([5, command, 0, kind]) + address + port.to_bytes(2, "big")
    return bytes([5, command, 0, 3, len(host)]) + host.encode() + port.to_bytes(2, "big")


def read_reply(client: socket.socket) -> int:
    """What became of a request."""
    version, code, reserved, kind = receive(client, 4)
    assert (version, reserved) == (5, 0)
    receive(client, {1: 4, 4: 16}[kind] + 2)
    return code


def tunnel(front: Proxy, server: Server) -> socket.socket:
    """A client that has been told that it is connected to the server."""
    client = front.connect()
    client.sendall(HELLO + request(*server.address))
    assert receive(client, 2) == WELCOME
    assert read_reply(client) == 0
    return client


def refusal(front: Proxy, asked: bytes) -> int:
    """The reply to a request, which is the last that comes."""
    with front.connect() as client:
        client.sendall(HELLO)
        assert receive(client, 2) == WELCOME
        client.sendall(asked)
        code = read_reply(client)
        assert client.recv(1) == b""
    return code


def test_curl_reaches_names_and_addresses(server: StartServer, socks5: StartProxy) -> None:
    """By names that it looks up itself (socks5), and that the proxy does (socks5h)."""
    four, six = server(page(BODY)).address[1], server(page(BODY), "::1").address[1]
    front = socks5(*ALLOW_LOOPBACK)
    for scheme, target in (
        ("socks5", f"localhost:{four}"),
        ("socks5h", f"localhost:{four}"),
        ("socks5", f"127.0.0.1:{four}"),
        ("socks5", f"[::1]:{six}"),
        ("socks5h", f"[::1]:{six}"),
    ):
        # IPv4 is what curl itself is to look a name up for.
        version = ["-4"] if target.startswith("localhost") else []
        proxy = f"{scheme}://127.0.0.1:{front.port}"
        run = curl(*version, "--proxy", proxy, f"http://{target}/")
        assert run.stdout == BODY, run.stderr
    name = r"( \(localhost:\d+\))?"
    front.expect(rf"-> 127\.0\.0\.1:{four}{name}: \d+ bytes up, \d+ bytes down, eof", 3)
    front.expect(rf"-> \[::1\]:{six}: \d+ bytes up, \d+ bytes down, eof", 2)
    no_accidents(front)


def test_curl_reaches_the_proxy_over_ipv6(server: StartServer, socks5: StartProxy) -> None:
    port = server(page(BODY)).address[1]
    front = socks5(*ALLOW_LOOPBACK, listen="[::1]:0")
    run = curl("--proxy", f"socks5h://[::1]:{front.port}", f"http://127.0.0.1:{port}/")
    assert run.stdout == BODY, run.stderr
    front.expect(r"INFO \[::1\]:\d+ -> 127\.0\.0\.1:")


def test_https_goes_through_from_end_to_end(
    server: StartServer, socks5: StartProxy, tmp_path: Path
) -> None:
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)
    port = server(certificates.server(page(BODY), "localhost")).address[1]
    proxy = f"socks5h://127.0.0.1:{socks5(*ALLOW_LOOPBACK).port}"
    run = curl("--proxy", proxy, "--cacert", certificates.path, f"https://localhost:{port}/")
    assert run.stdout == BODY, run.stderr


def test_a_password_is_asked_for(server: StartServer, socks5: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "secret") + "\n")
    url = f"http://127.0.0.1:{server(page(BODY)).address[1]}/"
    front = socks5(*ALLOW_LOOPBACK, "--passwords", str(path))
    proxy = ["--proxy", f"socks5h://127.0.0.1:{front.port}"]
    assert curl(*proxy, "--proxy-user", "alice:secret", url).stdout == BODY
    for wrong in (["--proxy-user", "alice:other"], ["--proxy-user", "bob:secret"], []):
        run = curl(*proxy, *wrong, url)
        assert (run.returncode, run.stdout) == (CURL_PROXY_ERROR, b"")
    front.expect(r"WARNING 127\.0\.0\.1:\d+: wrong password, or no such user: 'alice'$")
    front.expect(r"WARNING 127\.0\.0\.1:\d+: client does not offer a user and a password$")

    path.write_text(make_entry("alice", "new") + "\n")
    assert curl(*proxy, "--proxy-user", "alice:secret", url).returncode == CURL_PROXY_ERROR
    assert curl(*proxy, "--proxy-user", "alice:new", url).stdout == BODY
    no_accidents(front)


def test_wrong_passwords_are_answered_before_the_end(socks5: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "secret") + "\n")
    front = socks5("--passwords", str(path))
    with nothing_kept(front):
        with front.connect() as client:
            client.sendall(b"\x05\x02\x00\x02" + b"\x01\x05alice\x05other" + bytes(1_000_000))
            assert read_to_eof(client) == b"\x05\x02\x01\x01"
        with front.connect() as client:
            client.sendall(HELLO)
            assert read_to_eof(client) == b"\x05\xff"


def test_addresses_of_this_machine_are_refused(server: StartServer, socks5: StartProxy) -> None:
    """However they are written, and whatever name has them."""
    port = server(page(BODY)).address[1]
    six = server(page(BODY), "::1").address[1]
    front = socks5(patch=NAME_OF_PRIVATE_ADDRESSES)
    with nothing_kept(front):
        for host in (
            "127.0.0.1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "127.1",
            "0x7f000001",
            "2130706433",
            "0.0.0.0",
            "localhost",
            "private.example",
        ):
            assert refusal(front, request(host, port)) == REFUSED_BY_RULE, host
        for host in ("::1", "::"):
            assert refusal(front, request(host, six)) == REFUSED_BY_RULE, host
    front.expect(rf"127\.1:{port} is refused: 127\.0\.0\.1 is not a global address; a rule that")
    front.expect(r"private\.example:\d+ is refused: 10\.1\.2\.3 is not .*; 127\.0\.0\.1 is not ")


def test_rules_allow_a_network_and_deny_names_and_ports(
    echo_server: Server, socks5: StartProxy
) -> None:
    port = echo_server.address[1]
    front = socks5("--deny", "example.org", "--deny", "*:25", "--allow", f"127.0.0.0/8:{port}")
    with tunnel(front, echo_server) as client:
        assert exchange(client, b"hello") == b"hello"
    for host, other in (("www.example.org", 443), ("127.0.0.1", 25), ("127.0.0.1", port - 1)):
        assert refusal(front, request(host, other)) == REFUSED_BY_RULE, host
    front.expect(r"www\.example\.org:443 is refused: denied by the rule example\.org$")
    no_accidents(front)


def test_targets_that_cannot_be_connected_to(
    refusing: socket.socket, silent: socket.socket, socks5: StartProxy
) -> None:
    front = socks5(*ALLOW_LOOPBACK, "--connect-timeout", "0.5")
    assert refusal(front, request("127.0.0.1", refusing.getsockname()[1])) == REFUSED
    front.expect(r"WARNING .*: cannot connect to 127\.0\.0\.1:\d+ \(.*: Connection refused\)$")
    assert refusal(front, request("127.0.0.1", silent.getsockname()[1])) == HOST_UNREACHABLE
    front.expect(r"WARNING .*: no answer in time, see --connect-timeout\)$")
    no_accidents(front)


def test_a_handshake_can_come_byte_by_byte(
    echo_server: Server, socks5: StartProxy, tmp_path: Path
) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "secret") + "\n")
    front = socks5(*ALLOW_LOOPBACK, "--passwords", str(path))
    with front.connect() as client:
        credentials = b"\x01\x05alice\x06secret"
        send_byte_by_byte(client, b"\x05\x01\x02" + credentials)
        assert receive(client, 4) == b"\x05\x02\x01\x00"
        send_byte_by_byte(client, request("localhost", echo_server.address[1]))
        assert read_reply(client) == 0
        assert exchange(client, b"hello") == b"hello"


@pytest.mark.parametrize("size", [5, 300_000])
def test_bytes_behind_the_request_reach_the_target_first(
    size: int, server: StartServer, socks5: StartProxy
) -> None:
    def digest(connection: socket.socket) -> None:
        count, digest = digest_to_eof(connection)
        connection.sendall(f"{count} {digest}".encode())

    data = random.Random(size).randbytes(size)
    target = server(digest).address
    with socks5(*ALLOW_LOOPBACK).connect() as client:
        client.sendall(HELLO + request(*target) + data)
        client.sendall(b"and more")
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 2) == WELCOME
        assert read_reply(client) == 0
        digest_of_both = hashlib.sha256(data + b"and more").hexdigest()
        assert read_to_eof(client).decode() == f"{size + 8} {digest_of_both}"


def test_what_is_not_socks_5_is_closed_and_logged(socks5: StartProxy) -> None:
    front = socks5()
    with nothing_kept(front):
        for data, reason in (
            (b"GET / HTTP/1.1\r\n\r\n", "the client speaks HTTP, it seems, not SOCKS 5"),
            (b"\x16\x03\x01\x02\x00\x01", "the client speaks TLS, it seems, not SOCKS 5"),
            (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", "the client speaks SOCKS 4, not SOCKS 5"),
            (b"\xff", "the client doesn't speak SOCKS 5: its first byte is 255"),
            (b"\x05\x00", "the client offers no method at all"),
        ):
            with front.connect() as client:
                client.sendall(data)
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b"", data
                front.expect(f"WARNING {name_of(client)}: {reason}$")


def test_requests_that_are_not_served(socks5: StartProxy) -> None:
    front = socks5(*ALLOW_LOOPBACK)
    with nothing_kept(front):
        for command in (2, 3, 0):  # BIND, UDP ASSOCIATE
            assert refusal(front, request("127.0.0.1", 80, command)) == NO_COMMAND
        assert refusal(front, b"\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50") == NO_ADDRESS_TYPE
        assert refusal(front, request("127.0.0.1", 0)) == 1
        assert refusal(front, request("two words", 80)) == 1
        assert refusal(front, b"\x05\x01\x01\x01\x7f\x00\x00\x01\x00\x50") == 1
    front.expect(r"WARNING 127\.0\.0\.1:\d+: client asks for command 2$")


@pytest.mark.parametrize("start", [b"", b"\x05", HELLO, HELLO + b"\x05\x01\x00\x03\x20"])
@cell(
    "the peer stands still",
    "socks5",
    "handshake",
    sees="it is closed after `--handshake-timeout`, which the log says",
    others=True,
)
def test_a_slow_client_is_cut_and_another_served_meanwhile(
    start: bytes, echo_server: Server, socks5: StartProxy
) -> None:
    front = socks5(*ALLOW_LOOPBACK, "--handshake-timeout", "0.5")
    with nothing_kept(front), front.connect() as slow:
        slow.sendall(start)
        with tunnel(front, echo_server) as other:
            assert exchange(other, b"hello") == b"hello"
            assert read_to_eof(slow) == (WELCOME if start.startswith(HELLO) else b"")
            assert exchange(other, b"still there") == b"still there"
        name = name_of(slow)
    front.expect(f"{name}: client did not complete the handshake in 0.5 s .--handshake-timeout.$")


def test_a_handshake_that_is_too_large_is_refused(socks5: StartProxy) -> None:
    front = socks5("--handshake-size", "20")
    with nothing_kept(front), front.connect() as client:
        client.sendall(b"\x05\xff" + bytes(255))
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        front.expect(
            f"{name_of(client)}: the handshake is longer than 20 bytes .--handshake-size.$"
        )


@pytest.fixture
def later() -> socket.socket:
    """Whoever looks "later.example" up in a process with NAME_THAT_WAITS connects to it."""
    return socket.create_server(("127.0.0.1", 0))


def waiting_proxy(socks5: StartProxy, later: socket.socket, *options: str) -> Proxy:
    environment = {"LATER": str(later.getsockname()[1])}
    return socks5(*ALLOW_LOOPBACK, *options, patch=NAME_THAT_WAITS, environment=environment)


def test_the_time_that_the_target_takes_is_not_the_clients(
    echo_server: Server, socks5: StartProxy, later: socket.socket
) -> None:
    with later:
        front = waiting_proxy(socks5, later, "--handshake-timeout", "0.5")
        with front.connect() as client, closing(front.connect()) as slow:
            client.sendall(HELLO + request("later.example", echo_server.address[1]))
            with later.accept()[0]:
                assert read_to_eof(slow) == b""  # which takes longer than the client had
            assert receive(client, 2) == WELCOME
            assert read_reply(client) == 0
            assert exchange(client, b"hello") == b"hello"


@pytest.mark.parametrize("how", ["FIN", "RST"])
@cell(
    "the peer resets",
    "socks5",
    "handshake",
    sees="`the handshake failed: Connection reset by peer` in the log; nothing is dialled",
    others=True,
)
@cell(
    "the peer closes",
    "socks5",
    "handshake",
    sees="`client closed the connection during the handshake` in the log; nothing is dialled",
    others=True,
)
def test_a_client_that_leaves_before_its_request_is_whole(
    how: str, echo_server: Server, socks5: StartProxy
) -> None:
    front = socks5(*ALLOW_LOOPBACK, "--log-level", "debug")
    reason = {
        "FIN": "client closed the connection during the handshake",
        "RST": "the handshake failed: (Connection reset by peer|Broken pipe)",
    }[how]
    with tunnel(front, echo_server) as other:
        with nothing_kept(front):
            for start in (b"", b"\x05", HELLO, HELLO + b"\x05\x01\x00\x03"):
                client = arrive(front)
                name = name_of(client)
                client.sendall(start)
                if start.startswith(HELLO):  # behind a FIN, the answer would be met by a reset
                    assert receive(client, 2) == WELCOME
                leave(client, how)
                front.expect(f"WARNING {name}: {reason}$")
        assert exchange(other, b"hello") == b"hello"


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("found", [True, False])
@cell(
    "the peer closes",
    "socks5",
    "dialling",
    sees="it may want an answer, and is joined to its target",
    others=True,
)
@cell(
    "the peer resets",
    "socks5",
    "dialling",
    sees="of the client: the log says it",
    others=True,
)
def test_a_client_that_leaves_while_its_target_is_dialled(
    found: bool,
    how: str,
    echo_server: Server,
    refusing: socket.socket,
    socks5: StartProxy,
    later: socket.socket,
) -> None:
    port = (echo_server.address if found else refusing.getsockname())[1]
    with later:
        front = waiting_proxy(socks5, later)
        with tunnel(front, echo_server) as other:
            with nothing_kept(front):
                client = front.connect()
                name = name_of(client)
                client.sendall(HELLO + request("later.example", port))
                with later.accept()[0]:
                    assert receive(client, 2) == WELCOME
                    leave(client, how)
                if not found:
                    front.expect(f"WARNING {name}: cannot connect to later.example:{port}")
                elif how == "RST":
                    front.expect(f"WARNING {name}: .*(Connection reset by peer|Broken pipe)")
                else:  # it may have closed one direction alone
                    front.expect(f"INFO {name} -> 127.0.0.1:{port} .*: 0 bytes up, 0 bytes down")
            assert exchange(other, b"hello") == b"hello"


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_right_after_the_answer(
    how: str, echo_server: Server, socks5: StartProxy
) -> None:
    front = socks5(*ALLOW_LOOPBACK)
    with tunnel(front, echo_server) as other:
        with nothing_kept(front):
            client = tunnel(front, echo_server)
            name = name_of(client)
            leave(client, how)
            reason = {"FIN": "eof", "RST": r"\w+ error \(client: Connection reset by peer\)"}[how]
            front.expect(f"INFO {name} -> .*: 0 bytes up, 0 bytes down, {reason}, ")
        assert exchange(other, b"hello") == b"hello"
