"""What the log says at the start about what can't be meant so."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice._cli.loops import warn_of_loops
from freebsd_splice.proxies import Address, Passwords, Routes
from freebsd_splice.proxies._passwords import make_entry
from programs.processes import Forwarder, Proxy, Server, exchange, free_port

StartProxy = Callable[..., Proxy]
StartForwarder = Callable[..., Forwarder]


def test_a_forward_to_itself(forwarder: StartForwarder) -> None:
    port = free_port()
    front = forwarder(f"localhost:{port}", listen=str(port))
    front.expect(
        rf"WARNING the target localhost:{port} is this proxy itself \(127\.0\.0\.1:{port}\)"
    )
    assert front.port == port
    assert front.stop() == 0


def test_a_route_to_the_proxy_itself(proxy: StartProxy, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "routes.toml").write_text(f'default = "{port}"')
    front = proxy("sni", str(tmp_path / "routes.toml"), str(port))
    front.expect(rf"WARNING the target 127\.0\.0\.1:{port} is this proxy itself")
    assert front.port == port
    assert front.stop() == 0


def test_a_target_that_is_a_port_alone(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(str(echo_server.address[1]))
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert not front.find("itself")


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """Gives the warnings about targets of a socket that listens on that host."""

    def warn(listening: str, *targets: str) -> list[str]:
        with socket.create_server((listening, 0)) as listener:
            port = listener.getsockname()[1]
            caplog.clear()
            warn_of_loops([Address(target, port) for target in targets], [listener])
        return [record.getMessage().split(":")[0] for record in caplog.records]

    return warn


@pytest.mark.parametrize(
    ("listening", "target", "itself"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", "192.0.2.1", False),
        ("0.0.0.0", "192.0.2.1", False),
        ("127.0.0.1", "no-such-host.invalid", False),
    ],
)
def test_which_targets_are_the_proxy_itself(
    listening: str, target: str, itself: bool, warned: Callable[..., list[str]]
) -> None:
    assert len(warned(listening, target, target)) == itself


def test_another_port_is_another_program(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        warn_of_loops([Address("127.0.0.1", listener.getsockname()[1] - 1)], [listener])
    assert not caplog.records


def test_no_name_server_is_asked_at_the_start(
    monkeypatch: pytest.MonkeyPatch, warned: Callable[..., list[str]]
) -> None:
    look_up = socket.getaddrinfo

    def numeric_alone(host: str, port: int, *, type: int, flags: int) -> object:
        assert flags & socket.AI_NUMERICHOST, host
        return look_up(host, port, type=type, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", numeric_alone)
    assert not warned("127.0.0.1", "backend.example")


def test_a_target_that_cannot_be_looked_at_holds_up_no_start(
    monkeypatch: pytest.MonkeyPatch, warned: Callable[..., list[str]]
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert not warned("127.0.0.1", "localhost")


@pytest.mark.parametrize("text", ["", "# nobody yet\n\n"])
def test_a_password_file_without_users(text: str, proxy: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(text)
    front = proxy("socks5", "--passwords", str(path), "--workers", "2", "127.0.0.1:0")
    front.expect(rf"WARNING {path} has no users: nobody can use the proxy$")
    assert front.port
    assert front.stop() == 0
    assert len(front.find("has no users")) == 1


def test_a_password_file_that_loses_its_users(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "secret") + "\n")
    passwords = Passwords(path)
    assert not caplog.records
    path.write_text("")
    for _ in range(2):
        passwords.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} has no users: nobody can use the proxy"
    ]


def test_a_route_for_an_address(caplog: pytest.LogCaptureFixture) -> None:
    names = ["www.example.org", "10.0.0.5", "*.example.org"]
    caplog.set_level(logging.INFO)
    Routes({"route": [{"name": name, "target": "a:1"} for name in names]})
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("route 2 ('10.0.0.5') is for an address, but clients ")
