"""Who the log names: the user, what the client asked for, and the server name."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice.proxies._log import quoted_unless_plain
from freebsd_splice.proxies._passwords import make_entry
from programs.clients import ALLOW_LOOPBACK, curl, page
from programs.processes import PATIENCE, Program, Proxy, Server

StartProxy = Callable[..., Proxy]
StartServer = Callable[..., Server]

BODY = b"from the other side\n"


@pytest.fixture
def passwords(tmp_path: Path) -> str:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "secret") + "\n")
    return str(path)


def listening_port(front: Proxy) -> int:
    return int(front.expect(r'"address": "127\.0\.0\.1:(\d+)"')[0][1])


def event(front: Program, name: str) -> dict[str, Any]:
    front.expect(f'"event": "{name}"')
    lines = [json.loads(line) for line in list(front.lines)]
    return next(line for line in lines if line.get("event") == name)


@pytest.fixture(params=["connect", "socks5"])
def command(request: pytest.FixtureRequest) -> str:
    if request.param == "connect":
        pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    return str(request.param)


def fetch(command: str, port: int, url: str, user: str = "alice:secret") -> bytes:
    """Through a proxy that is to look names up itself."""
    scheme = {"connect": "http", "socks5": "socks5h"}[command]
    tunnel = ["--proxytunnel"] if command == "connect" else []
    proxy = f"{scheme}://127.0.0.1:{port}"
    return curl("-4", *tunnel, "--proxy", proxy, "--proxy-user", user, url).stdout


def test_a_connection_names_the_user_and_what_was_asked_for(
    command: str, server: StartServer, proxy: StartProxy, passwords: str
) -> None:
    port = server(page(BODY)).address[1]
    options = (*ALLOW_LOOPBACK, "--passwords", passwords)
    front = proxy(command, *options, "127.0.0.1:0")
    assert fetch(command, front.port, f"http://localhost:{port}/") == BODY
    who = r"INFO 127\.0\.0\.1:\d+ \(user alice\) -> 127\.0\.0\.1:"
    front.expect(rf"{who}{port} \(localhost:{port}\): \d+ bytes up")
    assert fetch(command, front.port, f"http://127.0.0.1:{port}/") == BODY
    front.expect(rf"{who}{port}: \d+ bytes up")  # once is enough

    front = proxy(command, *options, "--log-format", "json", "127.0.0.1:0")
    assert fetch(command, listening_port(front), f"http://localhost:{port}/") == BODY
    line = event(front, "connection")
    assert (line["user"], line["requested"]) == ("alice", f"localhost:{port}")
    assert line["target"] == f"127.0.0.1:{port}"
    assert "server_name" not in line


def test_a_failure_names_the_user_and_what_was_asked_for(
    command: str, proxy: StartProxy, passwords: str
) -> None:
    options = ("--passwords", passwords, "--deny", "*")
    front = proxy(command, *options, "127.0.0.1:0")
    assert fetch(command, front.port, "http://www.example.org/") == b""
    front.expect(
        r"WARNING 127\.0\.0\.1:\d+ \(user alice\): www\.example\.org:80 is refused: denied by"
    )
    front = proxy(command, *options, "--log-format", "json", "127.0.0.1:0")
    assert fetch(command, listening_port(front), "http://www.example.org/") == b""
    line = event(front, "failed")
    assert (line["user"], line["requested"]) == ("alice", "www.example.org:80")


def test_a_wrong_password_makes_nobody_a_user(
    command: str, proxy: StartProxy, passwords: str
) -> None:
    options = ("--passwords", passwords, "--log-format", "json", "127.0.0.1:0")
    front = proxy(command, *options)
    assert fetch(command, listening_port(front), "http://a.example/", "alice:wrong") == b""
    front.expect("wrong password, or no such user: 'alice'")
    lines = [json.loads(line) for line in list(front.lines)]
    assert not any("user" in line for line in lines)


def test_the_server_name_is_in_the_line(
    server: StartServer, proxy: StartProxy, tmp_path: Path
) -> None:
    target = server(close_after_a_byte)
    routes = tmp_path / "routes.toml"
    address = "{}:{}".format(*target.address)
    routes.write_text(f'[[route]]\nname = "one.example"\ntarget = "{address}"\n')
    front = proxy("sni", str(routes), "127.0.0.1:0")
    greet(front.connect(), "one.example")
    front.expect(rf"INFO 127\.0\.0\.1:\d+ \(server name one\.example\) -> {address}: \d+ bytes up")
    greet(front.connect(), "two.example")
    front.expect(r"WARNING 127\.0\.0\.1:\d+ \(server name two\.example\): no route for this server")

    front = proxy("sni", "--log-format", "json", str(routes), "127.0.0.1:0")
    port = listening_port(front)
    for name, kind in (("one.example", "connection"), ("two.example", "failed")):
        greet(socket.create_connection(("127.0.0.1", port), PATIENCE), name)
        assert event(front, kind)["server_name"] == name


def close_after_a_byte(connection: socket.socket) -> None:
    connection.recv(1)


def greet(client: socket.socket, name: str) -> None:
    """Begin TLS with that server name; the server knows none."""
    context = ssl.create_default_context()
    with client, pytest.raises(OSError):
        context.wrap_socket(client, server_hostname=name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("www.example.org:443", "www.example.org:443"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("jürgen", "jürgen"),
        ("a) -> b: 5 bytes up", "'a) -> b: 5 bytes up'"),
        ("a\nb\u202e", r"'a\nb\u202e'"),
        ("", "''"),
    ],
)
def test_a_name_cannot_imitate_the_remainder_of_a_line(name: str, shown: str) -> None:
    assert quoted_unless_plain(name) == shown
