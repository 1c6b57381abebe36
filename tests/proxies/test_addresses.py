"""Addresses as the command line takes them, and as the log shows them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from freebsd_splice.proxies import Routes, Rules
from freebsd_splice.proxies._addresses import (
    Address,
    Resolved,
    UnixAddress,
    look_up,
    parse_authority,
    parse_listen,
    parse_target,
    show,
)
from freebsd_splice.proxies._unix_sockets import AF_UNIX, UnixPeer

needs_unix_sockets = pytest.mark.skipif(AF_UNIX is None, reason="Python has none on Windows")


@pytest.mark.parametrize("parse", [parse_listen, parse_target, parse_authority])
@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:80", ("localhost", 80)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("[fe80::1%em0]:8080", ("fe80::1%em0", 8080)),
        ("a.example.:0080", ("a.example.", 80)),
    ],
)
def test_host_and_port(parse: object, text: str, address: tuple[str, int]) -> None:
    assert callable(parse)
    assert parse(text) == address


def test_listening_without_a_host_is_on_every_address() -> None:
    assert parse_listen(":8080") == ("", 8080)


def test_listening_on_a_port_alone_is_on_loopback() -> None:
    """Nothing is open to the world by leaving something out."""
    assert parse_listen("8080") == ("127.0.0.1", 8080)


def test_a_target_that_is_a_port_alone_is_on_loopback() -> None:
    assert parse_target("8080") == ("127.0.0.1", 8080)


def test_what_a_client_asks_for_has_a_host() -> None:
    """It chooses among other machines; a port alone would be one of the proxy's."""
    with pytest.raises(ValueError, match="write host:port"):
        parse_authority("8080")


def test_listening_on_port_0_takes_a_free_one() -> None:
    assert parse_listen("localhost:0") == ("localhost", 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write host:port"),
        ("http://localhost:80", "not a URL: write host:port"),
        ("https://localhost/path", "not a URL: write host:port"),
        ("localhost", "write host:port"),
        ("localhost:", "the port must be a number from 0 to 65535"),
        ("localhost:http", "the port must be a number"),
        ("localhost:65536", "the port must be a number"),
        ("localhost:-1", "the port must be a number"),
        ("localhost:+1", "the port must be a number"),
        ("localhost:1_0", "the port must be a number"),
        ("localhost: 80", "the port must be a number"),
        ("localhost:\u0663", "the port must be a number"),
        (" localhost:80", "write host:port"),
        ("::1", "in brackets"),
        ("::1:80", "in brackets"),
        ("a:b:80", "in brackets"),
        ("[::1]", "write host:port or"),
        ("[::1:80", "write host:port or"),
        ("[::1]]:80", "write host:port"),
        ("[]:80", "no IPv6 address between the brackets"),
        ("[localhost]:80", "no IPv6 address between the brackets"),
        ("local[host:80", "write host:port"),
    ],
)
@pytest.mark.parametrize("parse", [parse_listen, parse_target, parse_authority])
def test_what_is_no_address(parse: object, text: str, complaint: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=complaint):
        parse(text)


@pytest.mark.parametrize(("text", "complaint"), [(":80", "has no host"), ("localhost:0", "port 0")])
def test_what_is_no_target(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_target(text)


@needs_unix_sockets
@pytest.mark.parametrize("parse", [parse_listen, parse_target])
def test_a_unix_socket_is_written_as_nginx_has_it(parse: Callable[[str], Address]) -> None:
    address = parse("unix:/run/app.sock")
    assert isinstance(address, UnixAddress)
    assert (address.host, str(address)) == ("/run/app.sock", "unix:/run/app.sock")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/run/app.sock", "write the path of a Unix socket as unix:/path"),
        ("unix@/run/app.sock", "write the path of a Unix socket as unix:/path"),
        ("unix:", "write the whole path of the Unix socket, as unix:/path"),
        ("unix:app.sock", "write the whole path of the Unix socket, as unix:/path"),
        ("unix:///run/app.sock", "write the whole path of the Unix socket, as unix:/path"),
        (f"unix:/{'x' * 107}", "the path of a Unix socket has 10[37] bytes at most"),
        (f"unix:/{chr(0xE9) * 54}", "the path of a Unix socket has 10[37] bytes at most"),
        ("unix:/run/\0", "a path has no NUL"),
    ],
)
@pytest.mark.parametrize("parse", [parse_listen, parse_target])
def test_what_is_no_unix_socket(parse: Callable[[str], Address], text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(text)


def test_a_host_can_have_the_name_unix() -> None:
    assert parse_target("unix:80") == ("unix", 80)


def test_no_client_can_ask_for_a_unix_socket() -> None:
    with pytest.raises(ValueError, match="the port must be a number"):
        parse_authority("unix:/run/app.sock")


def test_no_rule_lets_a_client_reach_a_unix_socket() -> None:
    path: Any = "/run/app.sock"
    refused = Rules().refusal("*", Resolved(AF_UNIX, path))
    assert refused == "a Unix socket, which no rule allows"


@needs_unix_sockets
def test_a_route_can_lead_to_a_unix_socket() -> None:
    assert Routes({"default": "unix:/run/app.sock"}).targets() == [UnixAddress("/run/app.sock")]


@pytest.mark.parametrize("text", ["localhost:80", "[::1]:80", ":80"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_listen(text)) == text


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (None, "unknown"),
        ("/a", "unix:/a"),
        (UnixPeer(1000), "unix:uid=1000"),
        (UnixPeer(None), "unix"),
    ],
)
def test_a_socket_address_as_the_log_shows_it(
    address: tuple[Any, ...] | str | None, text: str
) -> None:
    assert show(address) == text


def test_an_address_that_a_name_has_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
        return [row, row]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert look_up(Address("twice", 80)) == [(socket.AF_INET, ("127.0.0.1", 80))]


def test_a_mapped_address_is_the_ipv4_address_that_it_is() -> None:
    """FreeBSD and OpenBSD have no way to it over IPv6, and no IPv6-only socket is bound to it."""
    for host in ("::ffff:192.0.2.1", "::ffff:c000:201", "0:0:0:0:0:FFFF:192.0.2.1"):
        assert look_up(Address(host, 80)) == [(socket.AF_INET, ("192.0.2.1", 80))], host


@pytest.mark.parametrize("host", ["::192.0.2.1", "::ffff:0:192.0.2.1", "64:ff9b::192.0.2.1", "::1"])
def test_other_addresses_with_ipv4_in_them_are_ipv6_addresses(host: str) -> None:
    [resolved] = look_up(Address(host, 80))
    assert resolved.family == socket.AF_INET6


def test_a_name_with_a_mapped_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is the same as that in its A record."""
    stream = socket.SOCK_STREAM

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6, stream, 6, "", ("::ffff:192.0.2.1", port, 0, 0)),
            (socket.AF_INET6, stream, 6, "", ("fe80::1%lo", port, 0, 1)),
            (socket.AF_INET, stream, 6, "", ("192.0.2.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert look_up(Address("mapped.example", 80)) == [
        (socket.AF_INET, ("192.0.2.1", 80)),
        (socket.AF_INET6, ("fe80::1%lo", 80, 0, 1)),
    ]
