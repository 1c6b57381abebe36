"""Addresses as the command line takes them, and as the log shows them."""

from __future__ import annotations

import socket

import pytest

from freebsd_splice.proxies._addresses import Address, look_up, parse_listen, parse_target, show


@pytest.mark.parametrize("parse", [parse_listen, parse_target])
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


def test_a_target_has_a_host() -> None:
    with pytest.raises(ValueError, match="write host:port"):
        parse_target("8080")


def test_listening_on_port_0_takes_a_free_one() -> None:
    assert parse_listen("localhost:0") == ("localhost", 0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write host:port"),
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
@pytest.mark.parametrize("parse", [parse_listen, parse_target])
def test_what_is_no_address(parse: object, text: str, complaint: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=complaint):
        parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"), [(":80", "names no host"), ("localhost:0", "port 0")]
)
def test_what_is_no_target(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_target(text)


@pytest.mark.parametrize("text", ["localhost:80", "[::1]:80", ":80"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_listen(text)) == text


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (None, "unknown"),
    ],
)
def test_a_socket_address_as_the_log_shows_it(address: tuple[str, int] | None, text: str) -> None:
    assert show(address) == text


def test_an_address_that_a_name_has_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
        return [row, row]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert look_up(Address("twice", 80)) == [(socket.AF_INET, ("127.0.0.1", 80))]
