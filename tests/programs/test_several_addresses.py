"""Names with several addresses of which some don't answer, as targets of all four proxies."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from conformance.harness import silent_listener
from freebsd_splice.proxies import Address, RefusedTargetError, TargetError, _attempts, _connecting
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._connecting import Dialer
from programs.clients import (
    ALLOW_LOOPBACK,
    Certificates,
    arrive,
    curl,
    no_accidents,
    nothing_kept,
    page,
    read_to_eof,
)
from programs.processes import (
    PATIENCE,
    Forwarder,
    Proxy,
    Server,
    descriptors_left,
    exchange,
    reset,
    until,
)

#: A share of it would be a test's whole time.
CONNECT_TIMEOUT = 1000.0
PATIENT = ("--connect-timeout", "1000")

#: Gives the name "several.example" the addresses in SEVERAL, whatever the port.
NAME_WITH_ADDRESSES = """
import os, socket
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, flags=0, **options):
    if host != "several.example" or flags:
        return look_up(host, *args, flags=flags, **options)
    known = [each.rsplit(":", 1) for each in os.environ["SEVERAL"].split()]
    return [found for host, port in known for found in look_up(host, int(port), **options)]
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def several_silent(opened: ExitStack) -> list[socket.socket]:
    """Connections to none of them are made or refused."""
    return [silent_listener(opened.enter_context) for _ in range(6)]


def several(*addresses: tuple[str, int]) -> dict[str, str]:
    """The environment of NAME_WITH_ADDRESSES."""
    return {"SEVERAL": " ".join("{}:{}".format(*address) for address in addresses)}


def dial(
    *addresses: tuple[str, int],
    refusal: Callable[[Resolved], str | None] = lambda resolved: None,
    seconds: float = CONNECT_TIMEOUT,
) -> socket.socket:
    """Connect to a name with these addresses, in this process."""

    async def look_up(address: Address, seconds: float, client: str) -> list[Resolved]:
        return [Resolved(socket.AF_INET, each) for each in addresses]

    dialling = Dialer(seconds).dial(Address("several", 80), refusal=refusal, look_up=look_up)
    return asyncio.run(dialling)


def test_an_address_that_does_not_answer_costs_the_delay(
    silent: socket.socket, echo_server: Server
) -> None:
    """And not a share of the connect timeout, for which this test would have to wait."""
    with dial(silent.getsockname(), echo_server.address) as connected:
        assert connected.getpeername() == echo_server.address


def test_those_that_do_not_answer_make_room_for_others(
    several_silent: list[socket.socket], echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attempts, "MAKES_ROOM_AFTER", 0.6)
    silent = [each.getsockname() for each in several_silent[:3]]
    with dial(*silent, echo_server.address) as connected:
        assert connected.getpeername() == echo_server.address


def test_the_second_attempt_is_of_the_other_family() -> None:
    asked: list[Resolved] = []
    six = [Resolved(socket.AF_INET6, (f"2001:db8::{number}", 80, 0, 0)) for number in range(20)]
    four = Resolved(socket.AF_INET, ("192.0.2.1", 80))

    async def look_up(address: Address, seconds: float, client: str) -> list[Resolved]:
        return [*six, four]

    def refusal(resolved: Resolved) -> str:
        asked.append(resolved)
        return "not now"

    dialling = Dialer(PATIENCE).dial(Address("several", 80), refusal=refusal, look_up=look_up)
    with pytest.raises(RefusedTargetError):
        asyncio.run(dialling)
    assert asked == [six[0], four, *six[1:15]]


def test_no_address_is_dialled_that_is_refused(
    silent: socket.socket, server: Callable[..., Server], echo_server: Server
) -> None:
    """Whichever attempt it would be: the first, one after a delay, or one after a failure."""
    secret = server(lambda connection: pytest.fail("it was connected to"))
    addresses = [secret.address, silent.getsockname(), secret.address, echo_server.address]

    def refusal(resolved: Resolved) -> str | None:
        return "secret" if resolved.address == secret.address else None

    with dial(*addresses, refusal=refusal) as connected:
        assert connected.getpeername() == echo_server.address
    assert not secret._connections


def test_the_error_names_each_address_that_was_tried(
    silent: socket.socket, refusing: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attempts, "ATTEMPT_DELAY", 0.01)
    with pytest.raises(TargetError) as caught:
        dial(silent.getsockname(), refusing.getsockname(), seconds=1.0)
    names = ["{}:{}".format(*each.getsockname()) for each in (silent, refusing)]
    assert str(caught.value) == (
        f"cannot connect to several:80 ({names[0]}: no answer in time, see --connect-timeout; "
        f"{names[1]}: {os.strerror(errno.ECONNREFUSED)})"
    )


def test_one_descriptor_is_enough_for_several_addresses(
    silent: socket.socket, refusing: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt waits until the first gives it back."""
    real = _connecting._until_writable

    async def until_writable(sock: socket.socket, seconds: float) -> None:
        await real(sock, 0.6)

    monkeypatch.setattr(_connecting, "_until_writable", until_writable)

    async def look_up(address: Address, seconds: float, client: str) -> list[Resolved]:
        return [Resolved(socket.AF_INET, each.getsockname()) for each in (silent, refusing)]

    async def main() -> None:
        with descriptors_left(1):
            await Dialer(CONNECT_TIMEOUT).dial(Address("several", 80), look_up=look_up)

    with pytest.raises(TargetError, match=os.strerror(errno.ECONNREFUSED)):
        asyncio.run(main())


@pytest.mark.parametrize("command", ["connect", "socks5"])
def test_a_client_that_asks_for_the_name_is_served(
    command: str, silent: socket.socket, server: Callable[..., Server], proxy: Callable[..., Proxy]
) -> None:
    if command == "connect":
        pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    web = server(page(b"hello"))
    front = proxy(
        *(command, *ALLOW_LOOPBACK, *PATIENT, "127.0.0.1:0"),
        patch=NAME_WITH_ADDRESSES,
        environment=several(silent.getsockname(), web.address),
    )
    scheme = "http" if command == "connect" else "socks5h"
    through = f"{scheme}://127.0.0.1:{front.port}"
    said = curl("--proxytunnel", "--proxy", through, "http://several.example/")
    assert (said.returncode, said.stdout) == (0, b"hello"), said.stderr
    no_accidents(front)


def test_a_client_of_a_server_name_is_served(
    silent: socket.socket,
    server: Callable[..., Server],
    proxy: Callable[..., Proxy],
    tmp_path: Path,
) -> None:
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)
    web = server(certificates.server(lambda each: each.sendall(b"hello"), "www.example.org"))
    routes = tmp_path / "routes.toml"
    routes.write_text('[[route]]\nname = "www.example.org"\ntarget = "several.example:443"\n')
    front = proxy(
        *("sni", *PATIENT, str(routes), "127.0.0.1:0"),
        patch=NAME_WITH_ADDRESSES,
        environment=several(silent.getsockname(), web.address),
    )
    context = certificates.client()
    with context.wrap_socket(front.connect(), server_hostname="www.example.org") as client:
        assert read_to_eof(client) == b"hello"
    no_accidents(front)


def test_connections_that_lost_are_not_kept(
    several_silent: list[socket.socket], echo_server: Server, forwarder: Callable[..., Forwarder]
) -> None:
    addresses = [each.getsockname() for each in several_silent[:2]]
    front = forwarder(
        *("several.example:80", *PATIENT),
        patch=NAME_WITH_ADDRESSES,
        environment=several(*addresses, echo_server.address),
    )
    with nothing_kept(front):
        clients = [front.connect() for _ in range(5)]
        for client in clients:
            with client:
                assert exchange(client, b"hello") == b"hello"
    front.expect("5 bytes up, 5 bytes down, eof", 5)


@pytest.mark.skipif(sys.platform != "linux", reason="its descriptors are counted")
def test_a_client_that_leaves_ends_all_attempts(
    several_silent: list[socket.socket], forwarder: Callable[..., Forwarder]
) -> None:
    """There are three of them at most, however many addresses there are."""
    front = forwarder(
        *("several.example:80", *PATIENT, "--log-level", "debug"),
        patch=NAME_WITH_ADDRESSES,
        environment=several(*(each.getsockname() for each in several_silent)),
    )
    client = arrive(front)
    until(lambda: front.descriptors()["tcp"] == 1 + 1 + 3)  # its listener, the client, and those
    reset(client)
    front.expect("client closed the connection while connecting to several.example:80$")
    until(lambda: front.descriptors()["tcp"] == 1)
    no_accidents(front)


def test_the_header_goes_to_the_connection_that_is_taken(
    silent: socket.socket, server: Callable[..., Server], forwarder: Callable[..., Forwarder]
) -> None:
    """To that one alone: others are closed before they could carry a byte."""
    heard: list[bytes] = []
    target = server(lambda connection: heard.append(read_to_eof(connection)))
    front = forwarder(
        *("several.example:80", *PATIENT, "--send-proxy", "v1"),
        patch=NAME_WITH_ADDRESSES,
        environment=several(silent.getsockname(), target.address),
    )
    with socket.create_connection(("127.0.0.1", front.port), PATIENCE) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    (said,) = heard
    assert said.startswith(b"PROXY TCP4 127.0.0.1 ")
    assert said.endswith(b"\r\nhello")
