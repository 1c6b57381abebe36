"""The TLS proxy as a process: TLS clients and servers beside it, and clients that are none."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from faults.cells import cell
from programs.clients import (
    Certificates,
    arrive,
    curl,
    leave,
    name_of,
    names_of,
    no_accidents,
    nothing_kept,
    page,
    read_head,
    read_to_eof,
    send_byte_by_byte,
)
from programs.processes import PATIENCE, Program, Proxy, Server, receive

pytest.importorskip("trustme", reason="it makes the certificates")

StartServer = Callable[..., Server]

#: The alert, in a record: fatal.
DECODE_ERROR = bytes([21, 3, 3, 0, 2, 2, 50])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class StartSni:
    """Starts the proxy on a free port, with a file of routes."""

    def __init__(self, directory: Path, opened: ExitStack) -> None:
        self._path = directory / "routes.toml"
        self._opened = opened

    def __call__(
        self, *routes: tuple[str, object], default: Server | None = None, options: str = ""
    ) -> Proxy:
        """Routes are what is between their quotes, with ``TARGET`` for the servers."""
        lines = [] if default is None else [f'default = "{where(default)}"']
        for name, targets in routes:
            listed = targets if isinstance(targets, list) else [targets]
            lines += ["[[route]]", name, f"target = {[where(each) for each in listed]}"]
        self._path.write_text("\n".join(lines))
        front = Proxy("sni", *options.split(), str(self._path), "127.0.0.1:0")
        return self._opened.enter_context(closing(front))


@pytest.fixture
def sni(tmp_path: Path, opened: ExitStack) -> StartSni:
    return StartSni(tmp_path, opened)


def where(target: object) -> str:
    """A server's address, or that of a socket, as a route has it."""
    address = target.address if isinstance(target, Server) else target.getsockname()  # type: ignore[attr-defined]
    return "{}:{}".format(*address)


def greeter(certificates: Certificates, name: str, *protocols: str) -> Callable[..., None]:
    """A server that says its name to whoever says something."""

    def greet(connection: ssl.SSLSocket) -> None:
        if connection.recv(100):
            connection.sendall(name.encode())

    return certificates.server(greet, name, f"*.{name}", protocols=protocols)


def greeting(front: Proxy, context: ssl.SSLContext, name: str) -> str:
    """What a server says, if it is that name's."""
    with context.wrap_socket(front.connect(), server_hostname=name) as client:
        client.sendall(b"hello")
        certificate = names_of(client.getpeercert())
        said = read_to_eof(client).decode()
    assert certificate[0] == said
    return said


def hello(context: ssl.SSLContext, name: str | None) -> tuple[bytes, ssl.SSLObject, ssl.MemoryBIO]:
    """The first bytes of a client, which goes on with what is read into the last."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read(), client, incoming


def in_records(record: bytes, size: int) -> bytes:
    """The content of one record in as many as it takes."""
    content = record[5:]
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def wire_of(connection: ssl.SSLSocket) -> socket.socket:
    """The TCP connection below it."""
    wire = socket.socket(fileno=os.dup(connection.fileno()))
    wire.settimeout(PATIENCE)
    return wire


def nameless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def answered(context: ssl.SSLContext, front: Proxy, name: str, send: Callable[..., None]) -> str:
    """Send a hello by ``send``: whether the server's first flight fits it, and its protocol."""
    first, client, incoming = hello(context, name)
    with front.connect() as sock:
        send(sock, first)
        while True:
            incoming.write(sock.recv(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                return names_of(client.getpeercert())[0]


def test_clients_are_told_apart_by_name_and_protocol(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    """And see the certificate of the server that they get to."""
    one, below, other, h2 = (
        server(greeter(certificates, name, *protocols))
        for name, protocols in (
            ("one.example", ()),
            ("two.example", ()),
            ("other.example", ()),
            ("h2.two.example", ("h2",)),
        )
    )
    front = sni(
        ('name = "one.example"', one),
        ('name = "*.two.example"', below),
        ('name = "*.two.example"\nalpn = ["h2"]', h2),
        default=other,
    )
    plain, with_h2 = certificates.client(), certificates.client("http/1.1", "h2")
    assert greeting(front, plain, "one.example") == "one.example"
    assert greeting(front, with_h2, "one.example") == "one.example"
    assert greeting(front, plain, "ONE.example") == "one.example"
    assert greeting(front, plain, "www.two.example") == "two.example"
    assert greeting(front, certificates.client("http/1.1"), "www.two.example") == "two.example"
    assert greeting(front, with_h2, "www.h2.two.example") == "h2.two.example"
    assert greeting(front, plain, "other.example") == "other.example"
    assert greeting(front, plain, "www.other.example") == "other.example"
    front.expect(rf"-> {where(h2)}: \d+ bytes up, \d+ bytes down, ")
    no_accidents(front)


def test_curl_gets_the_page_of_the_name(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    names = ("one.example", "two.example")
    servers = [server(certificates.server(page(name.encode()), name)) for name in names]
    front = sni(*((f'name = "{name}"', each) for name, each in zip(names, servers, strict=True)))
    for name in names:
        to_proxy = ["--connect-to", f"{name}:443:127.0.0.1:{front.port}"]
        run = curl(*to_proxy, "--cacert", certificates.path, f"https://{name}/")
        assert run.stdout == name.encode(), run.stderr
    resolved = ["--resolve", f"one.example:{front.port}:127.0.0.1"]
    url = f"https://one.example:{front.port}/"
    run = curl(*resolved, "--http1.1", "--cacert", certificates.path, url)
    assert run.stdout == b"one.example", run.stderr
    no_accidents(front)


def test_a_hello_can_come_in_any_pieces(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    """Byte by byte, or in a record for each byte or few."""
    front = sni(('name = "one.example"', server(greeter(certificates, "one.example"))))
    context = certificates.client()
    found = answered(context, front, "one.example", send_byte_by_byte)
    assert found == "one.example"
    for size in (1, 7, 100):
        first, _, _ = hello(context, "one.example")
        with front.connect() as client:
            client.sendall(in_records(first, size))
            # OpenSSL itself reads a hello of so many records or refuses it: it was let through.
            assert client.recv(1)
    front.expect(r"-> 127\.0\.0\.1:\d+: \d+ bytes up, [1-9]\d* bytes down", 4)
    no_accidents(front)


def test_names_without_a_route_are_told_so(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    front = sni(('name = "one.example"', server(greeter(certificates, "one.example"))))
    with nothing_kept(front):
        for name in ("two.example", "www.one.example", None):
            with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
                nameless().wrap_socket(front.connect(), server_hostname=name).close()
        context = certificates.client("h2", "http/1.1")
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            context.wrap_socket(front.connect(), server_hostname="two.example").close()
        line = r"WARNING 127\.0\.0\.1:\d+"
        front.expect(rf"{line} \(server name two\.example\): no route for this server name$")
        front.expect(rf"{line} \(server name www\.one\.example\): no route for this server name$")
        front.expect(f"{line}: no route for a client without a server name$")
        front.expect(rf"{line} \(server name two\.example\): .* with 'h2', 'http/1\.1'$")
    assert greeting(front, certificates.client(), "one.example") == "one.example"


def test_protocols_in_the_log_are_few_and_in_one_line(server: StartServer, sni: StartSni) -> None:
    """Their names are any bytes."""
    forged = "\n2026-01-01 00:00:00,000 INFO forged\x1b[2J"
    context = nameless()
    context.set_alpn_protocols([forged, *"abcdefgh"])
    front = sni(('name = "one.example"', server(read_to_eof)))
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        context.wrap_socket(front.connect(), server_hostname="two.example").close()
    shown = re.escape(ascii(forged))
    front.expect(f"no route for this server name with {shown}, 'a', 'b', 'c' and 5 more$")
    assert not front.find("^2026-01-01")


def test_a_client_without_a_name_gets_the_default(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    front = sni(default=server(greeter(certificates, "one.example")))
    with nameless().wrap_socket(front.connect()) as client:
        client.sendall(b"hello")
        assert read_to_eof(client) == b"one.example"


def test_what_is_not_tls_is_refused_and_logged(server: StartServer, sni: StartSni) -> None:
    reached: list[object] = []
    front = sni(default=server(reached.append))
    with nothing_kept(front):
        for data, reason in (
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "not a TLS handshake record"),
            (b"\x80\x2e\x01\x00\x02", "not a TLS handshake record"),  # SSL 2
            (b"\x16\x02\x00", "not a version of TLS"),
            (b"\x16\x03\x01\xff\xff", "a record that is too large"),
            (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "the first message is not a ClientHello"),
            (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "a hello cut short"),
        ):
            with front.connect() as client:
                client.sendall(data + bytes(1_000_000))
                assert read_to_eof(client) == DECODE_ERROR, reason
                name = name_of(client)
            front.expect(f"WARNING {name}: client did not begin TLS: {reason}$")
    assert not reached


@cell(
    "the peer stands still",
    "sni",
    "handshake",
    sees="it is closed after `--handshake-timeout`, which the log says",
    others=True,
)
def test_a_slow_client_is_cut_and_another_served_meanwhile(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    target = server(greeter(certificates, "one.example"))
    front = sni(default=target, options="--handshake-timeout 0.5")
    context = certificates.client()
    first, _, _ = hello(context, "one.example")
    with nothing_kept(front), front.connect() as slow:
        slow.sendall(first[:-1])
        assert greeting(front, context, "one.example") == "one.example"
        with contextlib.suppress(ConnectionResetError):
            assert read_to_eof(slow) == b""
        front.expect(f"{name_of(slow)}: client did not complete .* in 0.5 s .--handshake-timeout.$")


def test_a_hello_that_is_too_large_is_refused(server: StartServer, sni: StartSni) -> None:
    front = sni(default=server(read_to_eof), options="--handshake-size 100")
    first, _, _ = hello(nameless(), "a" * 60 + ".example")
    with nothing_kept(front):
        with front.connect() as client:
            client.sendall(first)
            assert read_to_eof(client) == DECODE_ERROR
            name = name_of(client)
        front.expect(f"WARNING {name}: client did not begin TLS: a hello that is too large$")


def test_the_size_of_a_hello_is_an_option(server: StartServer, sni: StartSni) -> None:
    suites = (60_000).to_bytes(2, "big") + bytes(60_000)
    extension = b"\x0f\xa0" + (40_000).to_bytes(2, "big") + bytes(40_000)
    body = b"\x03\x03" + bytes(32) + b"\0" + suites + b"\x01\0"
    body += len(extension).to_bytes(2, "big") + extension
    first = in_records(bytes(5) + b"\x01" + len(body).to_bytes(3, "big") + body, 16_384)

    def compare(connection: socket.socket) -> None:
        assert receive(connection, len(first)) == first
        connection.sendall(b"got it")

    front = sni(default=server(compare), options="--handshake-size 200000")
    with front.connect() as client:
        client.sendall(first)
        assert receive(client, 6) == b"got it"


@cell(
    "the peer resets",
    "sni",
    "dialling",
    sees="the next target serves the client; the one that refused is skipped for a while",
)
def test_a_dead_target_is_skipped(
    certificates: Certificates, server: StartServer, refusing: socket.socket, sni: StartSni
) -> None:
    alive = server(greeter(certificates, "one.example"))
    front = sni(('name = "one.example"', [refusing, alive]), options="--retry-after 1000")
    for _ in range(4):
        assert greeting(front, certificates.client(), "one.example") == "one.example"
    dead = where(refusing)
    warning = rf"cannot connect to {dead} \({dead}: Connection refused\): skipped for now$"
    front.expect(rf"-> {where(alive)}: ", 4)
    assert len(front.find(warning)) == 1
    no_accidents(front)


def test_clients_take_turns_with_targets(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    several = [server(greeter(certificates, "one.example")) for _ in range(2)]
    front = sni(('name = "one.example"', several))
    for _ in range(4):
        greeting(front, certificates.client(), "one.example")
    for each in several:
        front.expect(rf"-> {where(each)}: ", 2)


def test_where_all_targets_are_dead_the_client_is_told_so(
    refusing: socket.socket, sni: StartSni
) -> None:
    front = sni(('name = "one.example"', refusing))
    with nothing_kept(front):
        with pytest.raises(ssl.SSLError, match=r"(?i)internal.error"):
            nameless().wrap_socket(front.connect(), server_hostname="one.example").close()
        front.expect(r"WARNING .* name one\.example\): cannot connect to .*: Connection refused\)$")


def test_a_download_is_whole(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    body = random.Random(2).randbytes(20_000_003)
    front = sni(default=server(certificates.server(page(body), "one.example")))
    to_proxy = ["--connect-to", f"one.example:443:127.0.0.1:{front.port}"]
    run = curl(*to_proxy, "--cacert", certificates.path, "https://one.example/")
    assert hashlib.sha256(run.stdout).digest() == hashlib.sha256(body).digest(), run.stderr


def test_a_client_that_half_closes_gets_its_answer(
    certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    """The end of TCP's way up, with TLS left open: the server's answer to it still comes."""

    def answer(connection: ssl.SSLSocket) -> None:
        asked = read_head(connection)
        # OpenSSL takes this end for an attack: it is read beside it.
        with wire_of(connection) as wire:
            assert wire.recv(1) == b""
        connection.sendall(asked * 100_000)

    front = sni(default=server(certificates.server(answer, "one.example")))
    context = certificates.client()
    with context.wrap_socket(front.connect(), server_hostname="one.example") as client:
        client.sendall(b"question\r\n\r\n")
        # After SSLSocket.shutdown what is read would be what is on the wire.
        with wire_of(client) as wire:
            wire.shutdown(socket.SHUT_WR)
        assert receive(client, 1_200_000) == b"question\r\n\r\n" * 100_000


@pytest.mark.parametrize("how", ["FIN", "RST"])
@cell(
    "the peer resets",
    "sni",
    "handshake",
    sees="`the handshake failed: Connection reset by peer` in the log; nothing is dialled",
)
@cell(
    "the peer closes",
    "sni",
    "handshake",
    sees="`client closed the connection during the handshake` in the log; nothing is dialled",
)
def test_a_client_that_leaves_costs_nobody_anything(
    how: str, certificates: Certificates, server: StartServer, sni: StartSni
) -> None:
    target = server(greeter(certificates, "one.example"))
    front = sni(default=target, options="--log-level debug")
    context = certificates.client()
    first, _, _ = hello(context, "one.example")
    early = {
        "FIN": "client closed the connection during the handshake",
        "RST": "the handshake failed: Connection reset by peer",
    }[how]
    assert greeting(front, context, "one.example") == "one.example"
    with nothing_kept(front):
        for start in (b"", first[:1], first[:-1]):
            client = arrive(front)
            name = name_of(client)
            client.sendall(start)
            leave(client, how)
            front.expect(f"WARNING {name}: {early}$")
        client = front.connect()
        name = name_of(client)
        client.sendall(first)
        assert client.recv(1) == b"\x16"
        leave(client, how)
        line = rf"INFO {name} \(server name one\.example\) -> .*"
        front.expect(rf"{line}: {len(first)} bytes up, \d+ bytes down, ")
    assert greeting(front, context, "one.example") == "one.example"


def test_a_file_that_is_not_there_is_named(program: Callable[..., Program], tmp_path: Path) -> None:
    path = str(tmp_path / "missing.toml")
    run = program("-m", "freebsd_splice", "sni", path, "127.0.0.1:0")
    assert run.end() == 1
    assert run.lines == [f"freebsd-splice: {path}: No such file or directory"]
