"""A proxy's client or target resets, closes, reads no more, or doesn't answer, in each phase."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from faults.cells import cell
from programs.clients import name_of, read_to_eof
from programs.fronts import COMMANDS, PATIENT, Front
from programs.processes import PATIENCE, receive, reset
from support.slowness import SLOWNESS

UP, DOWN = b"a request", b"an answer to it"

StartFront = Callable[..., Front]

each_command = pytest.mark.parametrize("command", COMMANDS)
ALL = "the line of the log has all that was moved, either way"
RESET = (
    "the other side is reset; `error (client: Connection reset by peer)`, or `target`, in the log"
)


@pytest.fixture
def listener(opened: ExitStack) -> socket.socket:
    """The target of those clients that the test is about."""
    return opened.enter_context(socket.create_server(("127.0.0.1", 0)))


EOF = "EOF is passed on, the other direction goes on; `eof` in the log"


@cell("the peer resets", "{command}", "initial", sees=RESET, counted=ALL, others=True)
@cell("the peer resets", "{command}", "moving", sees=RESET, counted=ALL, others=True)
@cell("the peer resets", "{command}", "half-closed", sees=RESET, counted=ALL, others=True)
@cell("the peer closes", "{command}", "moving", sees=EOF, counted=ALL, others=True)
@cell("the peer closes", "{command}", "half-closed", sees=EOF, counted=ALL, others=True)
@each_command
def test_an_end_is_passed_on_and_logged(
    command: str, listener: socket.socket, front: StartFront
) -> None:
    made = front(command, listener.getsockname(), *PATIENT)
    for who in ("client", "target"):
        for phase in ("initial", "moving", "half-closed"):
            _reset_in(phase, who, made, listener)
            made.served()
        _close(who, made, listener)
        made.served()


def _reset_in(phase: str, who: str, front: Front, listener: socket.socket) -> None:
    joined = front.join(listener)
    breaker, other = (joined.client, joined.target)[:: 1 if who == "client" else -1]
    up, down = 0, 0
    if phase != "initial":
        joined.client.sendall(UP)
        assert receive(joined.target, len(UP)) == UP
        joined.target.sendall(DOWN)
        assert receive(joined.client, len(DOWN)) == DOWN
        up, down = len(UP), len(DOWN)
    if phase == "half-closed":  # the one that resets goes on, the other has ended
        other.shutdown(socket.SHUT_WR)
        assert breaker.recv(1) == b""
    reset(breaker)
    with other, pytest.raises(ConnectionResetError):
        receive(other, 1)
    front.logged(joined, up, down, rf"\w+ error \({who}: Connection reset by peer\)")


def _close(who: str, front: Front, listener: socket.socket) -> None:
    joined = front.join(listener)
    first, other = (joined.client, joined.target)[:: 1 if who == "client" else -1]
    joined.client.sendall(UP)
    assert receive(joined.target, len(UP)) == UP
    first.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    other.sendall(DOWN)
    assert receive(first, len(DOWN)) == DOWN
    first.close()
    other.close()
    to_client = who == "client"
    up, down = (len(UP), len(DOWN)) if to_client else (len(UP) + len(DOWN), 0)
    front.logged(joined, up, down, "eof, ")


FULL = "`idle` in the log after `--idle-timeout`, and both are reset"


@cell("the peer stops reading for ever", "{command}", "moving", sees=FULL, others=True)
@cell("the peer stops reading for ever", "{command}", "half-closed", sees=FULL, others=True)
@pytest.mark.slow
@each_command
def test_a_peer_that_reads_no_more_is_idle(
    command: str, listener: socket.socket, front: StartFront
) -> None:
    """The bystander says something in less than that time, again and again."""
    made = front(command, listener.getsockname(), "--idle-timeout", str(3 * SLOWNESS))
    with ExitStack() as busy:
        busy.enter_context(_served_all_the_time(made))
        for phase in ("moving", "half-closed"):
            for who in ("client", "target"):
                joined = made.join(listener)
                still, writer = (joined.client, joined.target)[:: 1 if who == "client" else -1]
                if phase == "half-closed":
                    still.shutdown(socket.SHUT_WR)
                    assert writer.recv(1) == b""
                with contextlib.suppress(ConnectionError):
                    while True:
                        writer.sendall(bytes(1 << 16))
                writer.close()
                made.proxy.expect(f"INFO {joined.name} .*-> .*, idle")
                with still, pytest.raises(ConnectionResetError):
                    read_to_eof(still)


STILL = "nothing, within `--idle-timeout`: what is sent meanwhile waits, and goes on with it"


@cell("the peer stands still", "{command}", "moving", sees=STILL, counted=ALL, others=True)
@cell("the peer stands still", "{command}", "half-closed", sees=STILL, counted=ALL, others=True)
@each_command
def test_a_peer_that_stands_still_is_waited_for(
    command: str, listener: socket.socket, front: StartFront
) -> None:
    made = front(command, listener.getsockname(), *PATIENT)
    for half_closed in (False, True):
        joined = made.join(listener)
        with joined.client as client, joined.target as target:
            if half_closed:
                target.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            client.sendall(UP)
            made.served()
            assert receive(target, len(UP)) == UP
            client.shutdown(socket.SHUT_WR)
            assert target.recv(1) == b""
        made.logged(joined, len(UP), 0, "eof, ")


@contextlib.contextmanager
def _served_all_the_time(front: Front) -> Iterator[None]:
    over = threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            while not over.wait(0.05):
                front.served()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)
    assert not failures


#: What a client is told whose target refuses, or does not answer.
ANSWERS = {
    "connect": (b"HTTP/1.1 502 ", b"HTTP/1.1 504 "),
    "socks5": (b"\5\0\5\5", b"\5\0\5\4"),
    "sni": (b"\x15\x03", b"\x15\x03"),
}
TOLD = {
    "connect": ("502", "504"),
    "socks5": ("reply 5 (connection refused)", "reply 4 (host unreachable)"),
    "sni": ("the TLS alert internal_error", "the TLS alert internal_error"),
}
REFUSED, SILENT = "Connection refused", "no answer in time, see --connect-timeout"


@pytest.mark.parametrize(
    ("command", "how"),
    [
        pytest.param(command, how, marks=cell(
            fault, command, "dialling", others=True,
            sees=f"{TOLD[command][number]}; `cannot connect to … ({reason})` in the log",
        ))
        for command in ANSWERS
        for number, (how, fault, reason) in enumerate([
            ("refusing", "the peer resets", REFUSED), ("silent", "the peer vanishes", SILENT),
        ])
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_reached_is_told(
    command: str, how: str, front: StartFront, request: pytest.FixtureRequest
) -> None:
    target = request.getfixturevalue(how).getsockname()
    seconds = 1000 if how == "refusing" else 2 * SLOWNESS
    made = front(command, target, *PATIENT, "--connect-timeout", str(seconds))
    with made.ask() as client:
        made.served()
        assert read_to_eof(client).startswith(ANSWERS[command][how == "silent"])
        reason = REFUSED if how == "refusing" else SILENT
        where = f"127.0.0.1:{target[1]}"
        made.proxy.expect(f"WARNING {name_of(client)}.*: cannot connect to {where} .*{reason}")


@cell(
    "the peer resets",
    "forward",
    "dialling",
    others=True,
    sees="the next target serves the client; the one that refused is skipped for `--retry-after`",
)
def test_the_next_target_serves_for_one_that_refuses(
    refusing: socket.socket, front: StartFront
) -> None:
    made = front("forward", refusing.getsockname(), *PATIENT)
    with made.ask() as client:
        client.sendall(UP)
        assert receive(client, len(UP)) == UP
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
