"""The HTTP proxy as a process: curl, a browser's requests, and clients that are none."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import socket
import ssl
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
    read_head,
    read_to_eof,
    send_byte_by_byte,
)
from programs.processes import (
    PATIENCE,
    Program,
    Proxy,
    Server,
    digest_to_eof,
    exchange,
    receive,
)

pytest.importorskip("h11", reason="it is what the proxy parses requests with")

import h11

from freebsd_splice.proxies.connect import RequestError, RequestReader

StartProxy = Callable[..., Proxy]
StartServer = Callable[..., Server]

BODY = b"from the other side\n"


@pytest.fixture
def connect(opened: ExitStack) -> StartProxy:
    """Starts the proxy on a free port."""

    def start(
        *options: str,
        listen: str = "127.0.0.1:0",
        patch: str = "",
        environment: dict[str, str] | None = None,
    ) -> Proxy:
        return opened.enter_context(
            closing(Proxy("connect", *options, listen, patch=patch, environment=environment))
        )

    return start


def request(target: str, *headers: str, method: str = "CONNECT") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: proxy.example", *headers, "", ""]
    return "\r\n".join(lines).encode()


def to(server: Server) -> str:
    """A request's target."""
    host, port = server.address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def status(head: bytes) -> int:
    """Of an answer; 0 where none came."""
    return int(head.split()[1]) if head else 0


def tunnel(front: Proxy, server: Server) -> socket.socket:
    """A client that has been told that it is connected to the server."""
    client = front.connect()
    client.sendall(request(to(server)))
    assert status(read_head(client)) == 200
    return client


def answer(front: Proxy, data: bytes) -> tuple[int, bytes]:
    """To a client that sends this: the status, and all that came; it is the end."""
    with front.connect() as client:
        client.sendall(data)
        everything = read_to_eof(client)
    return status(everything), everything


def refusal(front: Proxy, data: bytes) -> int:
    """The status of an answer that is whole, says what it is, and is the last one."""
    number, everything = answer(front, data)
    head, _, body = everything.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n"
    return number


def test_curl_reaches_names_and_addresses(server: StartServer, connect: StartProxy) -> None:
    four, six = server(page(BODY)), server(page(BODY), "::1")
    front = connect(*ALLOW_LOOPBACK)
    for target in (f"localhost:{four.address[1]}", to(four), to(six)):
        proxy = f"http://127.0.0.1:{front.port}"
        run = curl("--proxytunnel", "--proxy", proxy, f"http://{target}/")
        assert run.stdout == BODY, run.stderr
    name = r"( \(localhost:\d+\))?"
    front.expect(rf"-> 127\.0\.0\.1:{four.address[1]}{name}: \d+ bytes up, \d+ bytes down, eof", 2)
    front.expect(rf"-> \[::1\]:{six.address[1]}: \d+ bytes up, \d+ bytes down, eof")
    no_accidents(front)


def test_curl_reaches_the_proxy_over_ipv6(server: StartServer, connect: StartProxy) -> None:
    target = to(server(page(BODY)))
    front = connect(*ALLOW_LOOPBACK, listen="[::1]:0")
    run = curl("--proxytunnel", "--proxy", f"http://[::1]:{front.port}", f"http://{target}/")
    assert run.stdout == BODY, run.stderr
    front.expect(r"INFO \[::1\]:\d+ -> 127\.0\.0\.1:")


def test_https_goes_through_from_end_to_end(
    server: StartServer, connect: StartProxy, tmp_path: Path
) -> None:
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)
    port = server(certificates.server(page(BODY), "localhost")).address[1]
    front = connect(*ALLOW_LOOPBACK)
    proxy = ["--proxy", f"http://127.0.0.1:{front.port}"]
    run = curl(*proxy, "--cacert", certificates.path, f"https://localhost:{port}/")
    assert run.stdout == BODY, run.stderr
    # It is the server's certificate that counts.
    assert curl(*proxy, f"https://localhost:{port}/").returncode == 60


def test_a_download_is_whole(server: StartServer, connect: StartProxy) -> None:
    body = random.Random(1).randbytes(30_000_007)
    target = to(server(page(body)))
    front = connect(*ALLOW_LOOPBACK)
    proxy = f"http://127.0.0.1:{front.port}"
    run = curl("--proxytunnel", "--proxy", proxy, f"http://{target}/")
    assert hashlib.sha256(run.stdout).digest() == hashlib.sha256(body).digest()


class WithPasswords:
    """curl through a proxy that wants one."""

    def __init__(self, front: Proxy, target: str) -> None:
        self._arguments = ["--proxytunnel", "--proxy", f"http://127.0.0.1:{front.port}"]
        self._url = f"http://{target}/"

    def get(self, user: str | None) -> tuple[str, bytes]:
        """The status of the CONNECT, and the page."""
        credentials = [] if user is None else ["--proxy-user", user]
        told = ["-w", "%{stderr}%{http_connect}"]
        run = curl(*self._arguments, *credentials, *told, self._url)
        return run.stderr.decode()[-3:], run.stdout


def test_a_password_is_asked_for(server: StartServer, connect: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "pässword:1") + "\n")
    target = to(server(page(BODY)))
    front = connect(*ALLOW_LOOPBACK, "--passwords", str(path))
    client = WithPasswords(front, target)
    assert client.get("alice:pässword:1") == ("200", BODY)
    assert client.get(None) == ("407", b"")
    assert client.get("alice:password") == ("407", b"")
    assert client.get("bob:pässword:1") == ("407", b"")
    front.expect(r"WARNING 127\.0\.0\.1:\d+: no user and password$")
    front.expect(r"WARNING 127\.0\.0\.1:\d+: wrong password, or no such user: 'alice'$")

    _, told = answer(front, request(target))
    assert b'\r\nproxy-authenticate: basic realm="freebsd-splice"' in told.lower()
    no_accidents(front)


def test_a_changed_password_file_is_honoured(
    server: StartServer, connect: StartProxy, tmp_path: Path
) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "old") + "\n")
    front = connect(*ALLOW_LOOPBACK, "--passwords", str(path))
    client = WithPasswords(front, to(server(page(BODY))))
    assert client.get("alice:old") == ("200", BODY)
    path.write_text(make_entry("alice", "new") + "\n")
    assert client.get("alice:old") == ("407", b"")
    assert client.get("alice:new") == ("200", BODY)
    path.write_text("alice\n")
    assert client.get("alice:new") == ("200", BODY)
    front.expect(r"passwords, line 1: .*; the passwords read before still hold$")


def test_credentials_that_are_none(connect: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "secret") + "\n")
    front = connect("--passwords", str(path))
    for header in (
        "Basic",
        "Basic !",
        "Basic /w==",  # not UTF-8
        "Bearer YWxpY2U6c2VjcmV0",
        "Basic YWxpY2U6c2VjcmV0\r\nProxy-Authorization: Basic YWxpY2U6c2VjcmV0",
    ):
        asked = request("127.0.0.1:1", f"Proxy-Authorization: {header}")
        assert refusal(front, asked) == 407, header
    # The right one gets as far as the rules.
    right = request("127.0.0.1:1", "Proxy-Authorization: bAsIc YWxpY2U6c2VjcmV0")
    assert refusal(front, right) == 403
    no_accidents(front)


def test_a_file_that_is_not_there_is_named(program: Callable[..., Program], tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    run = program("-m", "freebsd_splice", "connect", "--passwords", path, "127.0.0.1:0")
    assert run.end() == 1
    assert run.lines == [f"freebsd-splice: {path}: No such file or directory"]


def test_addresses_of_this_machine_are_refused(server: StartServer, connect: StartProxy) -> None:
    """However they are written, and whatever name has them."""
    port = server(page(BODY)).address[1]
    six = server(page(BODY), "::1").address[1]
    front = connect(patch=NAME_OF_PRIVATE_ADDRESSES)
    with nothing_kept(front):
        for host in (
            "127.0.0.1",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "127.1",
            "0x7f000001",
            "0177.0.0.1",
            "2130706433",
            "0.0.0.0",
            "0",
            "localhost",
            "LOCALHOST",
            "private.example",
        ):
            assert refusal(front, request(f"{host}:{port}")) == 403, host
        for host in ("[::1]", "[::]"):
            assert refusal(front, request(f"{host}:{six}")) == 403, host
    front.expect(rf"127\.1:{port} is refused: 127\.0\.0\.1 is not a global address; a rule that")
    front.expect(r"private\.example:\d+ is refused: 10\.1\.2\.3 is not .*; 127\.0\.0\.1 is not ")


def test_rules_allow_a_network_and_deny_names_and_ports(
    echo_server: Server, connect: StartProxy
) -> None:
    port = echo_server.address[1]
    front = connect(
        *("--deny", "example.org", "--deny", f"localhost:{port}", "--deny", "*:25"),
        *("--allow", f"127.0.0.0/8:{port}"),
    )
    for target in (f"127.0.0.1:{port}", f"[::ffff:127.0.0.1]:{port}", f"127.1:{port}"):
        with front.connect() as client:
            client.sendall(request(target))
            assert status(read_head(client)) == 200, target
            assert exchange(client, b"hello") == b"hello"
    for target in (
        "example.org:443",
        "www.example.org:443",
        "www.EXAMPLE.org.:443",
        f"localhost:{port}",
        "127.0.0.1:25",
        f"127.0.0.1:{port - 1}",
    ):
        assert refusal(front, request(target)) == 403, target
    front.expect(r"www\.example\.org:443 is refused: denied by the rule example\.org$")
    front.expect(r"127\.0\.0\.1:25 is refused: denied by the rule \*:25$")
    no_accidents(front)


def test_other_methods_are_not_allowed(connect: StartProxy) -> None:
    front = connect()
    with nothing_kept(front):
        for method in ("GET", "HEAD", "POST", "OPTIONS", "PRI"):
            data = request("http://127.0.0.1/", "Content-Length: 5", method=method) + b"12345"
            number, everything = answer(front, data)
            assert number == 405, method
            head, _, body = everything.partition(b"\r\n\r\n")
            assert b"allow: connect" in head.lower()
            assert b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n"
            assert (b"Ask for an https:// URL" in body) == (method != "HEAD")
            front.expect(rf"WARNING .*: client asks for {method}: only CONNECT is served$")


def test_curl_shows_what_to_do_for_a_plain_url(server: StartServer, connect: StartProxy) -> None:
    """And what it says works."""
    front = connect(*ALLOW_LOOPBACK)
    url = f"http://{to(server(page(BODY)))}/"
    proxy = f"http://127.0.0.1:{front.port}"
    shown = curl("--proxy", proxy, url).stdout
    assert b"curl --proxytunnel --proxy http://PROXY:PORT http://HOST/" in shown
    assert curl("--proxytunnel", "--proxy", proxy, url).stdout == BODY


NO_TUNNELS = [
    b"garbage\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
    b"\x05\x01\x00",  # a SOCKS client
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n",  # no Host
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost : a\r\n\r\n",
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    request("127.0.0.1"),
    request("127.0.0.1:0"),
    request("127.0.0.1:65536"),
    request("::1:80"),
    request(":80"),
    request("http://127.0.0.1:80/"),
    request("127.0.0.1:1", "X: a\n b"),
    request("127.0.0.1:1", "X: a\rb"),
    request("127.0.0.1:1", "X: a\x7f"),
    request("127.0.0.1:1", f"X:{' ' * 257}"),
    request("127.0.0.1:1", "Content-Length: 5") + b"12345",
    request("127.0.0.1:1", "Content-Length: 5"),
    request("127.0.0.1:1", f"Content-Length: {'1' * 20}"),
    request("127.0.0.1:1", "Transfer-Encoding: chunked") + b"5\r\n",
    request("127.0.0.1:1", "Transfer-Encoding: chunked") + b"0\r\n\r\nHELLO",
    request("127.0.0.1:1", "Transfer-Encoding: gzip"),
]


def test_what_is_no_request_for_a_tunnel_is_a_bad_request(connect: StartProxy) -> None:
    front = connect(*ALLOW_LOOPBACK)
    with nothing_kept(front):
        for data in NO_TUNNELS:
            assert refusal(front, data) == 400, data
    why = r"WARNING .*: (not an HTTP request|not a valid target|a CONNECT request with a body)"
    front.expect(why, len(NO_TUNNELS))


def test_a_header_that_is_none_is_not_in_the_log(connect: StartProxy) -> None:
    """It can be a password with a space before the colon."""
    front = connect()
    assert refusal(front, request("127.0.0.1:1", "Proxy-Authorization : Basic c2VjcmV0")) == 400
    front.expect(r"WARNING 127\.0\.0\.1:\d+: not an HTTP request: illegal header line$")
    assert not front.find("c2VjcmV0")


def test_what_a_request_says_is_cut_in_the_log(connect: StartProxy) -> None:
    front = connect()
    assert refusal(front, request("/", method="M" * 5_000)) == 405
    (line,) = front.expect(r"WARNING .*: (client asks for M+)\.\.\. \(\d+ characters\)$")
    assert len(line[1]) == 500


def test_unusual_requests_for_a_tunnel(echo_server: Server, connect: StartProxy) -> None:
    front = connect(*ALLOW_LOOPBACK)
    for start in (
        "CONNECT {} HTTP/1.0\r\n\r\n",
        "CONNECT {} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "CONNECT {} HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n",
        f"CONNECT {{}} HTTP/1.1\r\nHost: a\r\nX:{' ' * 256}y\t\r\n\r\n",
        "CONNECT {} HTTP/1.1\nHost: a\n\n",
    ):
        with front.connect() as client:
            client.sendall(start.format(to(echo_server)).encode())
            assert status(read_head(client)) == 200, start
            assert exchange(client, b"hello") == b"hello"


@pytest.mark.parametrize(("size", "options"), [(3_000, ["--handshake-size", "2000"]), (90_000, [])])
def test_a_request_that_is_too_large_is_told_so(
    size: int, options: list[str], connect: StartProxy
) -> None:
    """And the answer arrives, though more is on its way to the proxy."""
    front = connect(*options)
    with nothing_kept(front), front.connect() as client:
        client.sendall(request("127.0.0.1:1", "X: " + "x" * size))
        client.sendall(bytes(900_000))
        assert status(read_to_eof(client)) == 431


def test_a_request_with_too_many_headers_is_told_so(
    echo_server: Server, connect: StartProxy
) -> None:
    front = connect(*ALLOW_LOOPBACK)
    most = [f"X-{number}:" for number in range(99)]  # and Host
    with front.connect() as client:
        # What is behind the request has lines as well.
        client.sendall(request(to(echo_server), *most) + b"\n" * 200)
        assert status(read_head(client)) == 200
        assert receive(client, 200) == b"\n" * 200
    assert refusal(front, request(to(echo_server), *most, "X:")) == 431
    front.expect(r"WARNING .*: more than 100 header lines$")


def test_the_size_of_a_handshake_is_an_option(echo_server: Server, connect: StartProxy) -> None:
    front = connect(*ALLOW_LOOPBACK, "--handshake-size", "300000")
    with front.connect() as client:
        client.sendall(request(to(echo_server), "X: " + "x" * 250_000))
        assert status(read_head(client)) == 200
        assert exchange(client, b"hello") == b"hello"


def test_a_request_can_come_byte_by_byte(echo_server: Server, connect: StartProxy) -> None:
    with connect(*ALLOW_LOOPBACK).connect() as client:
        send_byte_by_byte(client, request(to(echo_server), "X-Header: something"))
        assert status(read_head(client)) == 200
        assert exchange(client, b"hello") == b"hello"


@pytest.mark.parametrize("size", [5, 300_000])
def test_bytes_behind_the_request_reach_the_target_first(
    size: int, server: StartServer, connect: StartProxy
) -> None:
    def digest(connection: socket.socket) -> None:
        count, digest = digest_to_eof(connection)
        connection.sendall(f"{count} {digest}".encode())

    data = random.Random(size).randbytes(size)
    with connect(*ALLOW_LOOPBACK).connect() as client:
        client.sendall(request(to(server(digest))) + data)
        client.sendall(b"and more")
        client.shutdown(socket.SHUT_WR)
        assert status(read_head(client)) == 200
        digest_of_both = hashlib.sha256(data + b"and more").hexdigest()
        assert read_to_eof(client).decode() == f"{size + 8} {digest_of_both}"


@pytest.mark.parametrize("start", [b"", b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost"])
@cell(
    "the peer stands still",
    "connect",
    "handshake",
    sees="it is closed after `--handshake-timeout`, which the log says",
    others=True,
)
def test_a_slow_client_is_cut_and_another_served_meanwhile(
    start: bytes, echo_server: Server, connect: StartProxy
) -> None:
    front = connect(*ALLOW_LOOPBACK, "--handshake-timeout", "0.5")
    with nothing_kept(front), front.connect() as slow:
        slow.sendall(start)
        with tunnel(front, echo_server) as other:
            assert exchange(other, b"hello") == b"hello"
            assert status(read_to_eof(slow)) == 408
            assert exchange(other, b"still there") == b"still there"
        name = name_of(slow)
    front.expect(f"{name}: client did not complete the handshake in 0.5 s .--handshake-timeout.$")


@cell(
    "the peer stops reading for ever",
    "connect",
    "handshake",
    sees="one that is refused and does not read that: it is closed all the same",
)
def test_one_that_never_reads_its_refusal_is_closed(connect: StartProxy) -> None:
    front = connect()
    with nothing_kept(front), front.connect() as client:
        client.sendall(b"garbage\r\n\r\n")
        front.expect(rf"{name_of(client)}: not an HTTP request")


def test_a_target_that_refuses_is_a_bad_gateway(
    refusing: socket.socket, connect: StartProxy
) -> None:
    front = connect(*ALLOW_LOOPBACK)
    port = refusing.getsockname()[1]
    assert refusal(front, request(f"127.0.0.1:{port}")) == 502
    front.expect(rf"WARNING .*: cannot connect to 127\.0\.0\.1:{port} \(.*: Connection refused\)$")
    assert refusal(front, request("no-such-host.invalid:80")) == 502
    front.expect(r"WARNING .*: cannot look up no-such-host\.invalid: ")
    assert refusal(front, request(f"{'a' * 64}.example:80")) == 502
    no_accidents(front)


def test_a_target_that_never_answers_is_a_gateway_timeout(
    silent: socket.socket, connect: StartProxy
) -> None:
    front = connect(*ALLOW_LOOPBACK, "--connect-timeout", "0.5")
    assert refusal(front, request(f"127.0.0.1:{silent.getsockname()[1]}")) == 504
    front.expect(r"WARNING .*: no answer in time, see --connect-timeout\)$")


@pytest.fixture
def later() -> socket.socket:
    """Whoever looks "later.example" up in a process with NAME_THAT_WAITS connects to it."""
    return socket.create_server(("127.0.0.1", 0))


def waiting_proxy(connect: StartProxy, later: socket.socket, *options: str) -> Proxy:
    environment = {"LATER": str(later.getsockname()[1])}
    return connect(*ALLOW_LOOPBACK, *options, patch=NAME_THAT_WAITS, environment=environment)


def test_the_time_that_the_target_takes_is_not_the_clients(
    echo_server: Server, connect: StartProxy, later: socket.socket
) -> None:
    with later:
        front = waiting_proxy(connect, later, "--handshake-timeout", "0.5")
        with front.connect() as client, closing(front.connect()) as slow:
            client.sendall(request(f"later.example:{echo_server.address[1]}"))
            looking_up, _ = later.accept()
            with looking_up:
                # Which takes longer than the client had.
                assert status(read_to_eof(slow)) == 408
            assert status(read_head(client)) == 200
            assert exchange(client, b"hello") == b"hello"


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("start", [b"", b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost"])
@cell(
    "the peer resets",
    "connect",
    "handshake",
    sees="`the handshake failed: Connection reset by peer` in the log; nothing is dialled",
    others=True,
)
@cell(
    "the peer closes",
    "connect",
    "handshake",
    sees="`client closed the connection during the handshake` in the log; nothing is dialled",
    others=True,
)
def test_a_client_that_leaves_before_its_request_is_whole(
    start: bytes, how: str, echo_server: Server, connect: StartProxy
) -> None:
    front = connect(*ALLOW_LOOPBACK, "--log-level", "debug")
    with tunnel(front, echo_server) as other:
        with nothing_kept(front):
            client = arrive(front)
            name = name_of(client)
            client.sendall(start)
            leave(client, how)
            reason = {
                "FIN": "client closed the connection during the handshake",
                "RST": "the handshake failed: Connection reset by peer",
            }[how]
            front.expect(f"WARNING {name}: {reason}$")
        assert exchange(other, b"hello") == b"hello"


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("found", [True, False])
@cell(
    "the peer closes",
    "connect",
    "dialling",
    sees="it may want an answer, and is joined to its target",
    others=True,
)
@cell(
    "the peer resets",
    "connect",
    "dialling",
    sees="of the client: the log says it",
    others=True,
)
def test_a_client_that_leaves_while_its_target_is_dialled(
    found: bool,
    how: str,
    echo_server: Server,
    refusing: socket.socket,
    connect: StartProxy,
    later: socket.socket,
) -> None:
    port = (echo_server.address if found else refusing.getsockname())[1]
    with later:
        front = waiting_proxy(connect, later)
        with tunnel(front, echo_server) as other:
            with nothing_kept(front):
                client = front.connect()
                name = name_of(client)
                client.sendall(request(f"later.example:{port}"))
                with later.accept()[0]:
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
    how: str, echo_server: Server, connect: StartProxy
) -> None:
    front = connect(*ALLOW_LOOPBACK)
    with tunnel(front, echo_server) as other:
        with nothing_kept(front):
            client = tunnel(front, echo_server)
            name = name_of(client)
            leave(client, how)
            reason = {"FIN": "eof", "RST": r"\w+ error \(client: Connection reset by peer\)"}[how]
            front.expect(f"INFO {name} -> .*: 0 bytes up, 0 bytes down, {reason}, ")
        assert exchange(other, b"hello") == b"hello"


def test_a_client_in_its_handshake_does_not_hold_up_the_end(
    connect: StartProxy,
) -> None:
    front = connect("--grace", "0.1")
    with front.connect() as client:
        client.sendall(b"CONNECT")
        front.expect("listening")
        assert front.stop() == 0
        with contextlib.suppress(ConnectionResetError):  # whether what it sent was read or not
            assert client.recv(1) == b""
    no_accidents(front)


def test_tls_from_a_python_client_half_closes(
    server: StartServer, connect: StartProxy, tmp_path: Path
) -> None:
    """What urllib3 and the like do: the tunnel first, then TLS in it."""
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)

    def greet(connection: ssl.SSLSocket) -> None:
        connection.sendall(read_head(connection))

    target = server(certificates.server(greet, "localhost"))
    with tunnel(connect(*ALLOW_LOOPBACK), target) as client:
        context = certificates.client()
        with context.wrap_socket(client, server_hostname="localhost") as wrapped:
            wrapped.settimeout(PATIENCE)
            wrapped.sendall(b"hello\r\n\r\n")
            assert receive(wrapped, 9) == b"hello\r\n\r\n"


class WatchedConnection(h11.Connection):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self.given = b""

    def receive_data(self, data: bytes) -> None:
        self.given += data
        super().receive_data(data)


def feed(connection: h11.Connection, data: bytes, size: int) -> h11.Request:
    """A request in pieces of that size."""
    reader = RequestReader(connection)
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    return next(found for piece in pieces if (found := reader.feed(piece)) is not None)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 4_096, 100_000])
@pytest.mark.parametrize(
    "blanks", [" " * 65_000, "\t" * 257, " \r\n" * 20_000, " \n" * 300], ids=len
)
def test_h11_never_sees_what_it_would_be_long_over(blanks: str, size: int) -> None:
    """It takes seconds for a value of 65,000 blanks and a NUL, and nobody is served meanwhile."""
    connection = WatchedConnection()
    with pytest.raises(RequestError) as raised:
        feed(connection, request("127.0.0.1:1", f"a:{blanks}\0"), size)
    assert raised.value.status == 400
    assert b"\0" not in connection.given
    assert len(max(re.findall(rb"\s*", connection.given), key=len)) <= 256


@pytest.mark.parametrize("size", [1, 2, 3, 100_000])
def test_what_is_behind_a_request_may_be_anything(size: int) -> None:
    for end in ("\r\n", "\n"):
        asked = request("127.0.0.1:1", "X: a").decode().replace("\r\n", end).encode()
        behind = b"\0\r\r\n" + b" " * 300
        connection = WatchedConnection()
        assert feed(connection, asked + behind, size).target == b"127.0.0.1:1"
        assert connection.given.startswith(asked)


@pytest.mark.parametrize("size", [1, 2, 3, 100_000])
@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n", b"\n\r\n\n"])
def test_empty_lines_before_a_request_are_ignored(empty: bytes, size: int) -> None:
    """RFC 9112, 2.2."""
    connection = WatchedConnection()
    asked = request("127.0.0.1:1", "X: a")
    behind = b"\r\n\r\nbehind it"
    data = empty + asked + behind
    assert feed(connection, data, size).target == b"127.0.0.1:1"
    assert connection.given.startswith(asked)


@pytest.mark.parametrize("size", [1, 2, 100_000])
@pytest.mark.parametrize("start", [b"\r", b"\r\n\r", b"\r\r\n", b" \r\n", b"\r\n \r\n"])
def test_other_blanks_before_a_request_are_not(start: bytes, size: int) -> None:
    with pytest.raises(RequestError) as raised:
        feed(WatchedConnection(), start + request("127.0.0.1:1"), size)
    assert raised.value.status == 400


def test_a_request_behind_empty_lines_is_served(echo_server: Server, connect: StartProxy) -> None:
    front = connect(*ALLOW_LOOPBACK, "--handshake-size", "2000")
    with front.connect() as client:
        send_byte_by_byte(client, b"\r\n\r\n" + request(to(echo_server)))
        assert status(read_head(client)) == 200
        assert exchange(client, b"hello") == b"hello"
    # They count, as all else that a client sends.
    assert refusal(front, b"\r\n" * 1_500) == 431
