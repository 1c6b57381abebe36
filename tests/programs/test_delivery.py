"""What a proxy has taken is delivered before a reset, whoever resets and whoever cuts."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from faults.cells import cell
from freebsd_splice._platform.send_queue import unacknowledged
from programs.processes import PATIENCE, Forwarder, Server, receive, reset, until

StartForwarder = Callable[..., Forwarder]

#: More than the receive buffer of a slow reader holds, and any system's buffers take it.
SENT = random.Random(9).randbytes(16_000)
_SMALL = 8_192


@pytest.mark.parametrize("size", [16_000, 400_000])
@cell(
    "the peer resets",
    "forward",
    "closing",
    sees="of the target: the client gets all that was counted, then the reset",
    counted="all that was counted arrives",
)
def test_an_answer_arrives_whole_before_the_reset_behind_it(
    size: int, server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    """A server that closes with request bytes unread resets, and has sent everything before."""
    answer = random.Random(size).randbytes(size)
    has_reset = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(1)  # not all of the request
        connection.sendall(answer)
        until(lambda: not unacknowledged(connection))
        reset(connection)
        has_reset.set()

    front = forwarder(server(serve).address)
    with front.connect() as client:
        client.sendall(b"a request")
        if size <= len(SENT):  # else it takes somebody reading, where buffers are small
            assert has_reset.wait(PATIENCE)
            _let_a_reset_come(client)
        assert receive(client, size) == answer
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert front.expect(f"9 bytes up, {size} bytes down, (source|drain) error")


@cell(
    "the peer resets",
    "forward",
    "closing",
    sees="of the client: the target gets all that was counted, then the reset",
    counted="all that was counted arrives",
)
def test_an_upload_arrives_whole_before_the_reset_behind_it(
    server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    go_on = threading.Event()
    got: list[bytes | type[OSError]] = []

    def serve(connection: socket.socket) -> None:
        assert go_on.wait(PATIENCE)
        _let_a_reset_come(connection)
        got.append(receive(connection, len(SENT)))
        try:
            connection.recv(1)
        except OSError as error:
            got.append(type(error))

    front = forwarder(server(serve).address, "--buffer-size", str(_SMALL))
    client = front.connect()
    client.sendall(SENT)
    until(lambda: not unacknowledged(client))
    reset(client)
    go_on.set()
    until(lambda: len(got) == 2)
    assert got == [SENT, ConnectionResetError]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cut_answer_is_delivered_as_far_as_taken_and_reset(
    workers: int, server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    front = forwarder(server(_sends).address, "--grace", "1000", "--workers", str(workers))
    with _slow_reader(front) as client:
        _stop_twice(front)
        _let_a_reset_come(client)
        got = _read_until_reset(client)
    assert front.end() == 0
    assert front.expect(f"{len(got)} bytes down, cancelled, [^;]*$")
    assert SENT.startswith(got)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_third_signal_waits_for_nobody(
    workers: int, server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    front = forwarder(server(_sends).address, "--grace", "1000", "--workers", str(workers))
    with _slow_reader(front) as client:
        _stop_twice(front)
        front.signal(signal.SIGTERM)
        [line] = front.expect(r"(\d+) bytes down, cancelled, .* not have arrived: (\d+) down$")
        assert 0 < int(line[2]) <= int(line[1])
        assert front.end() == 0
        assert len(_read_until_reset(client)) < int(line[1])


def _sends(connection: socket.socket) -> None:
    connection.sendall(SENT)
    connection.recv(1)


@contextlib.contextmanager
def _slow_reader(front: Forwarder) -> Iterator[socket.socket]:
    """Something is on the way to it, of which it has read nothing yet."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", front.port))
        client.recv(1, socket.MSG_PEEK)
        until(lambda: _is_full(client))
        yield client


def _is_full(client: socket.socket) -> bool:
    """Whether the receive buffer has no room for more of it."""
    return len(client.recv(len(SENT), socket.MSG_PEEK)) >= _SMALL // 2


def _stop_twice(front: Forwarder) -> None:
    front.signal(signal.SIGTERM)
    front.expect("stopping: 1 connections live")
    front.signal(signal.SIGTERM)
    front.expect("cutting 1 connections")


def _read_until_reset(client: socket.socket) -> bytes:
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(len(SENT)):
            got += piece
        raise AssertionError("a FIN, which says that all is well")
    return bytes(got)


def _let_a_reset_come(sock: socket.socket) -> None:
    """One that comes too early comes at once; nothing tells that none will come."""
    poll = select.poll()
    poll.register(sock, 0)
    poll.poll(300)
