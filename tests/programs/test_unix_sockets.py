"""Unix sockets to listen on, and as targets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from freebsd_splice import proxies
from freebsd_splice.proxies import Address, ProxyServer, TargetError, UnixAddress
from freebsd_splice.proxies import _unix_sockets as unix_sockets
from freebsd_splice.proxies._addresses import show
from freebsd_splice.proxies._connecting import Dialer
from freebsd_splice.proxies._proxy_protocol import ProxyHeader, read_header
from freebsd_splice.proxies._transparent import bind_as
from freebsd_splice.proxies._unix_sockets import UnixPeer, listen_at, peer_user
from programs.processes import PATIENCE, Forwarder, Server, echo, exchange, receive

StartForwarder = Callable[..., Forwarder]

USER = f"unix:uid={os.geteuid()}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "listen"


@pytest.fixture
def unix_server(opened: ExitStack, tmp_path: Path) -> Callable[..., str]:
    """Starts a server at a path, and gives its address as a target."""

    def start(serve: Callable[[socket.socket], None]) -> str:
        path = tmp_path / "target"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        opened.enter_context(contextlib.closing(Server(serve, listener=listener)))
        return f"unix:{path}"

    return start


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def is_socket(path: Path) -> bool:
    return path.exists() and stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_from_one_unix_socket_to_another(
    workers: str, path: Path, unix_server: Callable[..., str], forwarder: StartForwarder
) -> None:
    target = unix_server(echo)
    front = forwarder(target, "--workers", workers, listen=f"unix:{path}")
    front.expect(f"listening on unix:{re.escape(str(path))}$")
    for _ in range(3):
        with connect(path) as client:
            assert exchange(client, b"hello") == b"hello"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    ended = rf"INFO {USER} -> {re.escape(target)}: 5 bytes up, 5 bytes down, eof, .* userspace/"
    front.expect(ended, 3)
    assert is_socket(path)
    assert front.stop() == 0
    assert not path.exists()
    assert not front.find("WARNING|ERROR|Traceback")


def test_much_goes_through_unix_sockets(
    path: Path, unix_server: Callable[..., str], forwarder: StartForwarder
) -> None:
    """A busy flow is moved in another way, by os.splice where the system has it."""
    sent = os.urandom(1 << 20) * 8
    received = []

    def take(connection: socket.socket) -> None:
        received.append(receive(connection, len(sent)))
        connection.sendall(b"taken")
        assert connection.recv(1) == b""

    front = forwarder(unix_server(take), listen=f"unix:{path}")
    front.expect("listening on")
    with connect(path) as client:
        client.sendall(sent)
        assert receive(client, 5) == b"taken"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert received == [sent]
    front.expect(f"{len(sent)} bytes up, 5 bytes down, eof")


def test_a_file_is_for_its_owner_unless_another_mode_is_given(
    path: Path, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, listen=f"unix:{path}")
    front.expect("listening on")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert front.stop() == 0
    front = forwarder(echo_server.address, "--socket-mode", "660", listen=f"unix:{path}")
    front.expect("listening on")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.parametrize("mode", ["rw", "8", "1777", "66", "-1"])
def test_a_mode_that_is_none_is_wrong_usage(mode: str, forwarder: StartForwarder) -> None:
    front = forwarder("127.0.0.1:80", f"--socket-mode={mode}")
    assert front.end() == 2
    assert "write permissions in octal, as 660" in front.text


def test_a_file_that_is_left_over_is_replaced(
    path: Path, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, listen=f"unix:{path}")
    front.expect("listening on")
    front.signal(signal.SIGKILL)
    front.end()
    assert is_socket(path)
    front = forwarder(echo_server.address, listen=f"unix:{path}")
    front.expect("listening on")
    with connect(path) as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.stop() == 0
    assert not path.exists()


def test_nobody_elses_file_is_removed(
    path: Path, echo_server: Server, forwarder: StartForwarder
) -> None:
    complaint = f"freebsd-splice: cannot listen on unix:{path}: Address already in use"
    path.write_text("no socket")
    front = forwarder(echo_server.address, listen=f"unix:{path}")
    assert front.end() == 1
    assert front.lines == [complaint]
    assert path.read_text() == "no socket"
    path.unlink()
    with listen_at(str(path), backlog=10, mode=0o600) as listener:
        front = forwarder(echo_server.address, listen=f"unix:{path}")
        assert front.end() == 1
        assert front.lines == [complaint]
        assert is_socket(path)
        unix_sockets.remove_file(listener)
    assert not path.exists()


def test_one_refusal_is_no_proof_where_full_queues_refuse(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the BSDs: the queue has room again at the second look."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        monkeypatch.setattr(unix_sockets, "_PROBES", 2)
        monkeypatch.setattr(time, "sleep", lambda seconds: listener.listen())
        with pytest.raises(OSError, match="Address already in use"):
            listen_at(str(path), backlog=1, mode=0o600)


def test_another_file_at_the_path_is_left_there(path: Path) -> None:
    """Another program can have begun to listen there meanwhile."""
    with listen_at(str(path), backlog=1, mode=0o600) as listener:
        path.unlink()
        path.write_text("another")
        unix_sockets.remove_file(listener)
    assert path.read_text() == "another"


def test_a_forked_process_removes_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen_at(str(path), backlog=1, mode=0o600) as listener:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            unix_sockets.remove_file(listener)
        assert is_socket(path)
        unix_sockets.remove_file(listener)
        assert not path.exists()


def test_the_users_of_a_socket_are_its_clients(
    path: Path, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--max-per-client", "1", listen=f"unix:{path}")
    front.expect("listening on")
    with connect(path) as first, connect(path) as second:
        assert exchange(first, b"hello") == b"hello"
        assert second.recv(1) == b""
    front.expect(f"WARNING {USER}: refused: the client already has 1 connections")


def test_who_has_connected_is_known() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_user(left) == os.geteuid()


@pytest.mark.parametrize(
    ("what", "reason"),
    [("nothing", "No such file or directory"), ("left over", "Connection refused")],
)
def test_a_target_that_is_not_there(
    what: str, reason: str, path: Path, forwarder: StartForwarder
) -> None:
    if what == "left over":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    front = forwarder(f"unix:{path}")
    with front.connect() as client:
        assert client.recv(1) == b""
    front.expect(rf"WARNING .*: cannot connect to unix:{re.escape(str(path))} \({reason}\)$")


@pytest.mark.skipif(sys.platform != "linux", reason="the BSDs refuse where a queue is full")
def test_a_full_queue_is_waited_for(path: Path) -> None:
    async def dial() -> None:
        loop = asyncio.get_running_loop()
        with listen_at(str(path), backlog=0, mode=0o600) as listener, connect(path):
            with pytest.raises(TargetError, match="no answer in time"):
                await Dialer(0.1).dial(UnixAddress(str(path)))
            dialling = loop.create_task(Dialer(PATIENCE).dial(UnixAddress(str(path))))
            await asyncio.sleep(0)
            listener.accept()[0].close()
            (await dialling).close()
            unix_sockets.remove_file(listener)

    asyncio.run(dial())


def test_a_target_that_is_the_proxy_is_a_warning(path: Path, forwarder: StartForwarder) -> None:
    front = forwarder(f"unix:{path}", listen=f"unix:{path}")
    front.expect(rf"WARNING the target unix:{re.escape(str(path))} is this proxy itself")


def test_a_header_says_that_it_knows_no_address(
    path: Path, server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    """In v2 too: HAProxy and nginx take no header about a Unix socket."""
    heard: list[bytes] = []
    target = server(lambda connection: heard.append(connection.recv(4096)))
    for version in ("v1", "v2"):
        front = forwarder(target.address, "--send-proxy", version, listen=f"unix:{path}")
        front.expect("listening on")
        with connect(path) as client:
            client.sendall(b"hello")
            assert client.recv(1) == b""
        assert front.stop() == 0
    assert heard[0].startswith(b"PROXY UNKNOWN\r\n")
    assert read_header(heard[1]) == (ProxyHeader("v2"), 16)


@pytest.mark.parametrize("may_send", [True, False])
def test_clients_of_a_socket_can_be_senders_of_headers(
    may_send: bool, path: Path, echo_server: Server, forwarder: StartForwarder
) -> None:
    senders = "10.0.0.0/8,unix:" if may_send else "10.0.0.0/8"
    front = forwarder(echo_server.address, "--accept-proxy", senders, listen=f"unix:{path}")
    front.expect("listening on")
    with connect(path) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\nhello")
        if may_send:
            assert client.recv(5) == b"hello"
        else:
            front.expect(f"WARNING {USER}: client sent a PROXY header")
    if may_send:
        front.expect(f"INFO 192.0.2.7:1000 via {USER} -> ")


def test_no_address_can_be_taken_of_a_client_that_has_none() -> None:
    """A user's number is not an IPv4 address."""
    with socket.socket() as sock, pytest.raises(OSError, match="assign requested address"):
        bind_as(UnixPeer(1000))(sock, None)  # type: ignore[arg-type]


def test_a_library_listens_at_a_path_too(path: Path, echo_server: Server) -> None:
    async def serve(server: ProxyServer) -> bytes:
        running = asyncio.get_running_loop().create_task(server.run())
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"hello")
        answer = await reader.readexactly(5)
        writer.close()
        await writer.wait_closed()
        server.stop()
        await running
        return answer

    server = proxies.forwarder(Address(*echo_server.address))
    (address,) = server.listen(UnixAddress(str(path)), mode=0o666)
    assert show(address) == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert asyncio.run(serve(server)) == b"hello"
    assert not path.exists()
