"""Clients that hang up while something else than their bytes is awaited."""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.cells import cell
from freebsd_splice.proxies import (
    Address,
    Client,
    HandshakeError,
    ProxyServer,
    _addresses,
    _hangups,
    _resolving,
)
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._handshake import Handshake
from freebsd_splice.proxies._loop_relay import LoopRelays
from freebsd_splice.proxies._passwords import make_entry
from programs.clients import ALLOW_LOOPBACK, NAME_THAT_WAITS, name_of, no_accidents
from programs.processes import PATIENCE, Forwarder, Proxy, Server, receive, reset
from programs.test_server import OpenedTarget, running

#: Has the hash of every password computed when somebody connects to the port in LATER.
PASSWORDS_THAT_WAIT = """
import hashlib, os, socket
compute = hashlib.scrypt
def scrypt(*args, **options):
    with socket.create_connection(("127.0.0.1", int(os.environ["LATER"]))) as until:
        until.recv(1)
    return compute(*args, **options)
hashlib.scrypt = scrypt
"""

#: A client has one place, and nothing gives up by itself while a test runs.
PATIENT = ("--max-per-client", "1", "--connect-timeout", "1000")

#: CONNECT of SOCKS 5 to 127.0.0.1:1, and what precedes it.
GREETING, CREDENTIALS = b"\x05\x01\x02", b"\x01\x05alice\x06secret"


@pytest.fixture
def later() -> socket.socket:
    """What in the proxy waits connects to it."""
    return socket.create_server(("127.0.0.1", 0))


def connect_to(host: str, port: int, *headers: str) -> bytes:
    return "\r\n".join([f"CONNECT {host}:{port} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


def expect_hangup(front: Proxy, name: str, stage: str) -> None:
    front.expect(f"WARNING {name}: client closed the connection {stage}$")


@cell(
    "the peer resets",
    "forward",
    "dialling",
    sees="of the client: `client closed the connection while connecting to …` in the log, at once",
)
def test_while_the_target_does_not_answer(
    silent: socket.socket, forwarder: Callable[..., Forwarder]
) -> None:
    """Its place is free again at once: the next client is not refused."""
    port = silent.getsockname()[1]
    front = forwarder(("127.0.0.1", port), *PATIENT, "--log-level", "debug")
    for _ in range(2):
        client = front.connect()
        name = name_of(client)
        front.expect(f"DEBUG {name}: accepted$")
        reset(client)
        expect_hangup(front, name, f"while connecting to 127.0.0.1:{port}")
    assert not front.find("refused")
    no_accidents(front)


@cell(
    "the name server is dead or slow",
    "connect",
    "dialling",
    sees="a client that leaves meanwhile is let go at once, whenever the name server answers",
    others=True,
)
def test_while_the_name_is_looked_up(
    echo_server: Server, proxy: Callable[..., Proxy], later: socket.socket
) -> None:
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    port = echo_server.address[1]
    environment = {"LATER": str(later.getsockname()[1])}
    options = [*ALLOW_LOOPBACK, *PATIENT, "127.0.0.1:0"]
    front = proxy("connect", *options, patch=NAME_THAT_WAITS, environment=environment)
    with later:
        client = front.connect()
        name = name_of(client)
        client.sendall(connect_to("later.example", port) + b"and more, which nobody has read")
        with later.accept()[0]:
            reset(client)
            expect_hangup(front, name, f"while connecting to later.example:{port}")
            with front.connect() as other:
                other.sendall(connect_to("127.0.0.1", port))
                assert other.recv(12) == b"HTTP/1.1 200"
    no_accidents(front)


@pytest.mark.parametrize("command", ["connect", "socks5"])
def test_while_the_password_is_verified(
    command: str, proxy: Callable[..., Proxy], later: socket.socket, tmp_path: Path
) -> None:
    if command == "connect":
        pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "secret") + "\n")
    environment = {"LATER": str(later.getsockname()[1])}
    options = ["--passwords", str(path), *PATIENT, "--handshake-timeout", "1000", "127.0.0.1:0"]
    front = proxy(command, *options, patch=PASSWORDS_THAT_WAIT, environment=environment)
    with later, front.connect() as client:
        name = name_of(client)
        if command == "connect":
            credentials = base64.b64encode(b"alice:secret").decode()
            header = f"Proxy-Authorization: Basic {credentials}"
            client.sendall(connect_to("127.0.0.1", 1, header))
        else:
            client.sendall(GREETING)
            assert receive(client, 2) == b"\x05\x02"
            client.sendall(CREDENTIALS)
        with later.accept()[0]:
            reset(client)
            expect_hangup(front, name, "while verifying its password")
    no_accidents(front)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set the name "slow" isn't answered; then it is the port's loopback address."""
    answer = threading.Event()
    look_up = _addresses.look_up

    def look_up_slowly(address: Address, flags: int = 0) -> list[Resolved]:
        if address.host != "slow":
            return look_up(address, flags)
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        assert answer.wait(PATIENCE)
        return [Resolved(socket.AF_INET, ("127.0.0.1", address.port))]

    monkeypatch.setattr(_resolving, "look_up", look_up_slowly)
    return answer


class Looks:
    """Has clients looked at often, and counts it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        #: How many of them found that the client is gone.
        self.lost = 0
        is_lost = Handshake.is_lost

        def counted(handshake: Handshake) -> bool:
            lost = is_lost(handshake)
            self.count += 1
            self.lost += lost
            return lost

        monkeypatch.setattr(_hangups, "LOOK_EVERY", 0.01)
        monkeypatch.setattr(Handshake, "is_lost", counted)

    async def more(self, count: int) -> None:
        until = self.count + count
        while self.count < until:
            await asyncio.sleep(0.01)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


@asynccontextmanager
async def client_of(server: ProxyServer) -> AsyncIterator[socket.socket]:
    """Of a server that runs meanwhile: a non-blocking socket."""
    loop = asyncio.get_running_loop()
    async with running(server) as address:
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            yield sock


async def read_to_eof(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while piece := await asyncio.wait_for(loop.sock_recv(sock, 1000), PATIENCE):
        received += piece
    return received


@pytest.mark.parametrize("ends", ["nothing", "FIN"])
def test_a_client_that_has_sent_all_it_wants_is_served(
    ends: str, echo_server: Server, slow: threading.Event, looks: Looks
) -> None:
    """Bytes and a FIN that nobody has read yet are no hangup, and none of them is lost."""

    async def open_target(client: Client) -> OpenedTarget:
        assert await client.handshake.read(lambda piece: piece) == b"head"
        client.handshake.take(4)
        target = await client.dial(Address("slow", echo_server.address[1]))
        return target, (bytes(client.handshake.received), b"")

    async def main() -> None:
        async with client_of(ProxyServer(open_target)) as sock:
            sock.sendall(b"head")
            await looks.more(3)
            sock.sendall(b"all the rest")
            if ends == "FIN":
                sock.shutdown(socket.SHUT_WR)
            await looks.more(10)
            slow.set()
            if ends == "nothing":
                loop = asyncio.get_running_loop()
                assert await asyncio.wait_for(loop.sock_recv(sock, 12), PATIENCE)
                sock.shutdown(socket.SHUT_WR)
            else:
                assert await read_to_eof(sock) == b"all the rest"

    asyncio.run(main())


def test_a_reset_behind_a_fin_is_noticed(
    slow: threading.Event, looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    async def open_target(client: Client) -> OpenedTarget:
        return await client.dial(Address("slow", 1)), (b"", b"")

    async def main() -> None:
        async with client_of(ProxyServer(open_target)) as sock:
            sock.sendall(b"something")
            sock.shutdown(socket.SHUT_WR)
            await looks.more(3)
            reset(sock)
            while "client closed the connection while connecting to slow:1" not in caplog.text:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    slow.set()


@pytest.mark.parametrize("lacks", ["dial", "relay"])
def test_while_descriptors_are_short(
    lacks: str,
    echo_server: Server,
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    target = Address(*echo_server.address)

    async def open_target(client: Client) -> OpenedTarget:
        return await client.dial(target), (b"", b"")

    async def main() -> None:
        server = ProxyServer(open_target, connect_timeout=1000)
        if lacks == "relay":
            monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")  # the loop has relays there
            monkeypatch.setattr(LoopRelays, "begin", fail)
        else:
            monkeypatch.setattr(server._dialing._dialer, "dial", fail)
        async with client_of(server) as sock:
            while "accepting pauses" not in caplog.text:
                await asyncio.sleep(0.01)
            reset(sock)
            while "client closed the connection" not in caplog.text:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    stage = "waiting for descriptors" if lacks == "relay" else f"connecting to {target}"
    assert f": client closed the connection while {stage}\n" in caplog.text


def test_whatever_a_proxy_of_ones_own_waits_for(
    looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    """And it may tidy up: it is cancelled once."""
    tidied: list[int] = []

    async def open_target(client: Client) -> OpenedTarget:
        try:
            await asyncio.sleep(1000)
        finally:
            for _ in range(20):
                await asyncio.sleep(0.01)
            tidied.append(1)
        raise AssertionError

    async def main() -> None:
        async with client_of(ProxyServer(open_target)) as sock:
            await looks.more(1)
            reset(sock)
            while not tidied:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert ": client closed the connection during the handshake\n" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_is_refused_may_leave(
    looks: Looks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is what it is told to do: the log says why it was refused."""
    monkeypatch.setattr(_hangups, "LOOK_EVERY", 0.0)

    async def open_target(client: Client) -> OpenedTarget:
        await client.handshake.refuse(b"no")
        raise HandshakeError(errno.EACCES, "you are not wanted")

    async def main() -> None:
        async with client_of(ProxyServer(open_target)) as sock:
            sent = 0
            while sent < 200_000:
                sent += await _send_some(sock)
            sock.shutdown(socket.SHUT_WR)
            assert await read_to_eof(sock) == b"no"
            while not caplog.records:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert looks.count
    assert not looks.lost  # a cancelling would be lost in asyncio.wait_for, up to Python 3.11
    assert "you are not wanted" in caplog.text
    assert "client closed" not in caplog.text


async def _send_some(sock: socket.socket) -> int:
    data = bytes(20_000)
    await asyncio.get_running_loop().sock_sendall(sock, data)
    return len(data)


def test_a_refused_client_that_resets_gives_its_place_back(
    looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    """It doesn't keep it for the time that it has to take its answer."""
    seconds: list[float] = []

    async def open_target(client: Client) -> OpenedTarget:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await client.handshake.refuse(b"no")
        seconds.append(loop.time() - start)
        raise HandshakeError(errno.EACCES, "you are not wanted")

    async def main() -> None:
        async with client_of(ProxyServer(open_target)) as sock:
            loop = asyncio.get_running_loop()
            assert await asyncio.wait_for(loop.sock_recv(sock, 2), PATIENCE) == b"no"
            reset(sock)
            while not seconds:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert seconds[0] < 1.9
    assert "you are not wanted" in caplog.text


def test_nobody_is_looked_at_once_all_are_joined(echo_server: Server, looks: Looks) -> None:
    async def open_target(client: Client) -> OpenedTarget:
        return await client.dial(Address(*echo_server.address)), (b"", b"")

    async def main() -> None:
        server = ProxyServer(open_target)
        async with client_of(server) as sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"hello")
            assert await asyncio.wait_for(loop.sock_recv(sock, 5), PATIENCE) == b"hello"
            assert not server._hangups._watched
            while server._hangups._timer is not None:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_the_end_of_the_server_is_no_hangup(
    slow: threading.Event, looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def open_target(client: Client) -> OpenedTarget:
        return await client.dial(Address("slow", 1)), (b"", b"")

    async def main() -> None:
        async with client_of(ProxyServer(open_target)):
            await looks.more(2)

    asyncio.run(main())
    slow.set()
    assert "cutting 1 connections" in caplog.text
    assert "client closed" not in caplog.text


def test_a_client_that_is_read_or_written_needs_no_looks() -> None:
    """That fails by itself, and what arrived before the end comes first."""
    clients: list[Client] = []

    async def open_target(client: Client) -> OpenedTarget:
        clients.append(client)
        await client.handshake.read(lambda piece: piece)
        await client.handshake.send(bytes(1 << 26))  # more than is on its way without a reader
        raise AssertionError

    async def main() -> None:
        async with client_of(ProxyServer(open_target)) as sock:
            while not clients:
                await asyncio.sleep(0.01)
            handshake = clients[0].handshake
            assert handshake.stage is None
            sock.sendall(b"head")
            assert len(await asyncio.wait_for(_peek(sock), PATIENCE)) == 1
            assert handshake.stage is None

    asyncio.run(main())


async def _peek(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            await asyncio.sleep(0.01)
