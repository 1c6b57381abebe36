"""Processes that are stopped, go on, or are killed: the proxy, one of its workers, its target."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults.bystanders import PIECE
from faults.cells import cell
from programs.clients import no_accidents, read_to_eof
from programs.fronts import PATIENT, Front
from programs.processes import (
    PATIENCE,
    Forwarder,
    Program,
    Server,
    exchange,
    receive,
    until,
)
from support.slowness import SLOWNESS

DATA = os.urandom(2_000_000)
HERE = Path(__file__).parent


@pytest.fixture
def stopped(opened: ExitStack) -> Callable[[int], None]:
    """Stops a process, which goes on at the latest when the test is over."""

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        opened.callback(_go_on, pid)

    return stop


def _go_on(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass  # it has ended


GOES_ON = "everybody waits, and is served on; who connects meanwhile waits in the system's queue"


@cell("SIGSTOP and SIGCONT", "forward", "moving", sees=GOES_ON, counted="all", others=True)
@cell("suspend", "forward", "moving", sees=f"as of SIGSTOP: {GOES_ON}", counted="all", others=True)
def test_a_proxy_that_was_stopped_goes_on(
    server: Callable[..., Server], front: Callable[..., Front], stopped: Callable[[int], None]
) -> None:
    half, go_on = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(DATA[:1_000_000])
        half.set()
        assert go_on.wait(PATIENCE)
        connection.sendall(DATA[1_000_000:])

    made = front("forward", server(serve).address, *PATIENT)
    with made.ask() as client:
        got = receive(client, 1_000_000)
        stopped(made.proxy.pid)
        go_on.set()
        with made.proxy.connect() as late:  # the echo's, whose turn it is
            late.sendall(PIECE)
            os.kill(made.proxy.pid, signal.SIGCONT)
            got += read_to_eof(client)
            assert got == DATA
            assert receive(late, len(PIECE)) == PIECE


@pytest.mark.slow
@cell(
    "SIGSTOP and SIGCONT",
    "forward",
    "any",
    sees="bytes that came while it was stopped count as traffic: `--idle-timeout` ends nothing",
    counted="all",
)
@cell(
    "suspend",
    "forward",
    "any",
    sees="bytes that came meanwhile count as traffic: `--idle-timeout` ends nothing",
    counted="all",
)
def test_what_came_while_it_was_stopped_is_traffic(
    echo_server: Server, forwarder: Callable[..., Forwarder], stopped: Callable[[int], None]
) -> None:
    """The time limit has passed when it goes on, and so it is due at once."""
    front = forwarder(echo_server.address, "--idle-timeout", str(2 * SLOWNESS))
    with front.connect() as client:
        assert exchange(client, PIECE) == PIECE
        stopped(front.pid)
        client.sendall(PIECE)
        threading.Event().wait(3 * SLOWNESS)  # more than the limit
        os.kill(front.pid, signal.SIGCONT)
        assert receive(client, len(PIECE)) == PIECE
    no_accidents(front)


@cell(
    "SIGSTOP and SIGCONT",
    "processes",
    "any",
    sees="clients of the worker that is stopped wait; it is not replaced, and serves them on",
    counted="all",
    others=True,
)
@pytest.mark.skipif(sys.platform != "linux", reason="who serves a client is read from /proc")
def test_a_worker_that_is_stopped_holds_up_its_own(
    echo_server: Server, forwarder: Callable[..., Forwarder], stopped: Callable[[int], None]
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", *PATIENT)
    with ExitStack() as clients:
        by_worker: dict[int, socket.socket] = {}
        while len(by_worker) < 2:
            client = clients.enter_context(front.connect())
            assert exchange(client, PIECE) == PIECE
            by_worker[_worker_of(front, client)] = client
        (worker, one), (_, other) = by_worker.items()
        stopped(worker)
        one.sendall(PIECE)
        for _ in range(3):
            assert exchange(other, PIECE) == PIECE
        os.kill(worker, signal.SIGCONT)
        assert receive(one, len(PIECE)) == PIECE
    assert front.stop() == 0
    assert not front.find("has died")


def _worker_of(front: Forwarder, client: socket.socket) -> int:
    """The process that has the other end of a client's connection."""
    port = client.getsockname()[1]
    here = f"0100007F:{front.port:04X} 0100007F:{port:04X} 01"
    table = Path("/proc/net/tcp").read_text().splitlines()
    (inode,) = (line.split()[9] for line in table if here in line)
    children = Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text().split()
    for child in children:
        for link in Path(f"/proc/{child}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(link) == f"socket:[{inode}]":
                    return int(child)
    raise AssertionError("no worker has it")


@cell(
    "a worker is killed",
    "processes",
    "moving",
    sees="its clients' connections are ended by the system; `worker 1 (process …) has died` in "
    "the log, and another one starts",
    counted="no line in the log for them: nobody is left to write it",
    others=True,
)
@pytest.mark.skipif(sys.platform != "linux", reason="who serves a client is read from /proc")
def test_a_worker_that_is_killed_takes_its_own_with_it(
    echo_server: Server, forwarder: Callable[..., Forwarder]
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", *PATIENT)
    with ExitStack() as clients:
        by_worker: dict[int, socket.socket] = {}
        while len(by_worker) < 2:
            client = clients.enter_context(front.connect())
            assert exchange(client, PIECE) == PIECE
            by_worker[_worker_of(front, client)] = client
        (worker, one), (_, other) = by_worker.items()
        os.kill(worker, signal.SIGKILL)
        assert one.recv(1) == b""
        assert exchange(other, PIECE) == PIECE
        front.expect(rf"ERROR worker \d \(process {worker}\) has died: signal 9$")
        with front.connect() as late:
            assert exchange(late, PIECE) == PIECE
        assert exchange(other, PIECE) == PIECE
    assert front.stop() == 0


@pytest.fixture
def stranger(program: Callable[..., Program]) -> tuple[Program, tuple[str, int]]:
    """An echo in a process of its own."""
    running = program(str(HERE / "echo_server.py"))
    return running, ("127.0.0.1", int(running.expect(r"echo on port (\d+)$")[0][1]))


@cell(
    "the peer stands still",
    "forward",
    "moving",
    sees="nothing, within `--idle-timeout`: what is sent meanwhile waits, and goes on with it",
    counted="all",
    others=True,
)
def test_a_target_that_was_stopped_goes_on(
    stranger: tuple[Program, tuple[str, int]],
    front: Callable[..., Front],
    stopped: Callable[[int], None],
) -> None:
    process, target = stranger
    made = front("forward", target, *PATIENT)
    with made.ask() as client:
        assert exchange(client, PIECE) == PIECE
        stopped(process.pid)
        client.sendall(PIECE)
        made.served()
        process.signal(signal.SIGCONT)
        assert receive(client, len(PIECE)) == PIECE


@cell(
    "the peer stands still",
    "forward",
    "dialling",
    sees="its system still accepts: nothing, within `--idle-timeout`; then `idle` in the log",
    counted="what its system has taken is counted; it has answered nothing",
    others=True,
)
@pytest.mark.slow
def test_a_target_that_stands_still_is_idle(
    stranger: tuple[Program, tuple[str, int]],
    front: Callable[..., Front],
    stopped: Callable[[int], None],
) -> None:
    process, target = stranger
    made = front("forward", target, "--idle-timeout", str(5 * SLOWNESS))
    stopped(process.pid)

    def is_over() -> bool:
        made.served()  # less than the idle time after the last one
        return bool(made.proxy.find(", idle"))

    with made.ask() as client:
        client.sendall(PIECE)
        until(is_over)
        assert read_to_eof(client) == b""
    made.proxy.expect(f"{len(PIECE)} bytes up, 0 bytes down, idle")
