"""Connecting from the client's own address."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from freebsd_splice.proxies import Address, _transparent, forwarder
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._transparent import bind_as, why_not_transparent
from programs.processes import MAIN, PATIENCE, Forwarder, Program, Server, needs_address
from programs.test_server import running

StartForwarder = Callable[..., Forwarder]

#: An option that any system takes and that changes nothing here, in place of IP_BINDANY.
HARMLESS = {
    socket.AF_INET: (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    socket.AF_INET6: (socket.SOL_SOCKET, socket.SO_REUSEADDR),
}

#: The program takes this for a system that has it.
AS_IF_IT_COULD = """
import freebsd_splice._cli.forward as forward
forward.why_not_transparent = lambda: None
"""


def say_who_it_is(connection: socket.socket) -> None:
    connection.sendall(connection.getpeername()[0].encode())


async def who_am_i(address: tuple[str, int], source: str) -> bytes:
    """What the target says; "" where it was not reached."""
    reader, writer = await asyncio.open_connection(*address[:2], local_addr=(source, 0))
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()


def test_the_target_sees_the_clients_own_address(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_address("127.0.0.2")
    monkeypatch.setattr(_transparent, "_OPTIONS", HARMLESS)
    target = Address(*server(say_who_it_is).address)

    async def main() -> None:
        async with running(forwarder(target, transparent=True)) as address:
            for source in ("127.0.0.2", "127.0.0.1"):
                assert await who_am_i(address, source) == source.encode()
        async with running(forwarder(target)) as address:
            assert await who_am_i(address, "127.0.0.2") == b"127.0.0.1"

    asyncio.run(main())


def test_ipv6_as_well(server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transparent, "_OPTIONS", HARMLESS)
    target = Address(*server(say_who_it_is, "::1").address)

    async def main() -> None:
        front = forwarder(target, transparent=True)
        (address,) = front.listen(Address("::1", 0))
        task = asyncio.ensure_future(front.run())
        assert await who_am_i(address[:2], "::1") == b"::1"
        front.stop()
        await task

    asyncio.run(main())


def test_only_a_client_of_another_family_is_closed(
    server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_transparent, "_OPTIONS", HARMLESS)
    target = Address(*server(say_who_it_is).address)

    async def main() -> None:
        front = forwarder(target, transparent=True)
        (six,) = front.listen(Address("::1", 0))
        async with running(front) as four:
            assert await who_am_i(six[:2], "::1") == b""
            assert await who_am_i(four, "127.0.0.1") == b"127.0.0.1"

    asyncio.run(main())
    (record,) = (record for record in caplog.records if "cannot" in record.getMessage())
    assert f"cannot connect to {target}" in record.getMessage()
    assert "ddress family not supported" in record.getMessage()
    assert not [record for record in caplog.records if record.exc_info]


class Socket:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def setsockopt(self, *arguments: int) -> None:
        self.told.append(arguments)

    def bind(self, address: tuple[Any, ...]) -> None:
        self.told.append(address)


@pytest.mark.parametrize(
    ("client", "option", "bound"),
    [
        (("192.0.2.1", 4000), (0, 24, 1), ("192.0.2.1", 0)),
        # As a listener for both families shows it.
        (("::ffff:192.0.2.1", 4000, 0, 0), (0, 24, 1), ("192.0.2.1", 0)),
        (("2001:db8::1", 4000, 0, 0), (41, 64, 1), ("2001:db8::1", 0, 0, 0)),
        (("fe80::1", 4000, 0, 7), (41, 64, 1), ("fe80::1", 0, 0, 7)),
    ],
)
def test_the_option_is_freebsds_and_the_port_the_systems_choice(
    client: tuple[Any, ...], option: tuple[int, ...], bound: tuple[Any, ...]
) -> None:
    """netinet/in.h: IP_BINDANY 24; netinet6/in6.h: IPV6_BINDANY 64."""
    sock = Socket()
    family = socket.AF_INET6 if option[0] == 41 else socket.AF_INET
    bind_as(client)(sock, Resolved(family, bound))  # type: ignore[arg-type]
    assert sock.told == [option, bound]


def test_a_client_without_an_address_is_nobody_to_connect_as() -> None:
    with pytest.raises(OSError, match="assign requested address"), socket.socket() as sock:
        bind_as(())(sock, Resolved(socket.AF_INET, ("127.0.0.1", 1)))


@pytest.mark.parametrize(
    ("platform", "uid", "reason"),
    [
        ("freebsd15", 0, None),
        ("freebsd14", 1000, "IP_BINDANY needs root's privileges"),
        ("linux", 0, "it needs IP_BINDANY, which only FreeBSD has"),
        ("openbsd7", 0, "it needs IP_BINDANY, which only FreeBSD has"),
    ],
)
def test_where_it_can_be_done(
    platform: str, uid: int, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert why_not_transparent() == reason


@pytest.mark.skipif(sys.platform.startswith("freebsd"), reason="FreeBSD can do it")
def test_where_it_cannot_be_done_the_program_says_so(program: Callable[..., Program]) -> None:
    run = program(*MAIN, "forward", "--transparent", "127.0.0.1:0", "127.0.0.1:80")
    assert run.end() == 1
    assert run.lines == [
        "freebsd-splice: --transparent: it needs IP_BINDANY, which only FreeBSD has"
    ]


def test_it_does_not_go_with_giving_up_roots_privileges(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    options = ("--transparent", "--user", "nobody")
    front = forwarder(echo_server.address, *options, patch=AS_IF_IT_COULD)
    assert front.end() == 2
    (line,) = front.lines
    assert "error: --transparent needs root's privileges, which --user gives up; see " in line


def test_the_option_reaches_the_connecting(
    server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    needs_address("127.0.0.2")
    patch = f"""{AS_IF_IT_COULD}
import freebsd_splice.proxies._transparent as transparent
transparent._OPTIONS = {{
    int(family): tuple(map(int, option)) for family, option in {_plain(HARMLESS)}
}}
"""
    front = forwarder(server(say_who_it_is).address, "--transparent", patch=patch)
    address = ("127.0.0.1", front.port)
    with socket.create_connection(address, PATIENCE, ("127.0.0.2", 0)) as client:
        assert client.recv(100) == b"127.0.0.2"
    assert front.stop() == 0


def _plain(options: dict[socket.AddressFamily, tuple[int, int]]) -> list[Any]:
    return [(int(family), tuple(map(int, option))) for family, option in options.items()]
