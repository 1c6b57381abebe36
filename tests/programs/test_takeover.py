"""A restart by --takeover: the next process has the listening sockets before the first lets go."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from freebsd_splice._cli import passing
from freebsd_splice._cli.stopping import Stopping
from freebsd_splice._cli.takeover import Takeover, shared_out
from freebsd_splice.proxies import Address
from programs.processes import PATIENCE, Forwarder, Server, closing_all, exchange, until

StartForwarder = Callable[..., Forwarder]

#: The new process ends when it would begin to serve.
DIES = """
import os
import freebsd_splice._cli.serving as serving
async def die(*args):
    os._exit(3)
serving._run = die
"""

#: There is none to be had for who waits for the next process.
NO_THREAD = """
import freebsd_splice._cli.handover as handover
def fail(*args):
    raise RuntimeError("can't start new thread")
handover.start_thread = fail
"""

#: The process at the other end is a stranger's.
STRANGER_ASKS = """
import freebsd_splice._cli.handover as handover
handover.peer_user = lambda sock: 4711
"""
STRANGER_GIVES = """
import freebsd_splice._cli.takeover as takeover
takeover.peer_user = lambda sock: 4711
"""

HANDED_OVER = "another process has taken the listening sockets over"


class Load:
    """Clients that come at a steady rate, each with a connection of its own."""

    def __init__(self, address: tuple[str, int], *, rate: int, clients: int) -> None:
        self._address = address
        self._pause = clients / rate
        self._ends = threading.Event()
        self.served = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number / rate,)) for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait until so many more have been served."""
        wanted = self.served + count
        until(lambda: self.served >= wanted or self.failures)
        assert self.failures == []

    def _run(self, offset: float) -> None:
        due = time.monotonic() + offset
        while not self._ends.wait(max(0.0, due - time.monotonic())):
            due += self._pause
            try:
                self._ask()
            except (OSError, AssertionError) as error:
                with self._lock:
                    self.failures.append(repr(error))
            else:
                with self._lock:
                    self.served += 1

    def _ask(self) -> None:
        with socket.create_connection(self._address, PATIENCE) as client:
            assert exchange(client, b"hello") == b"hello"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""


class Succession:
    """Processes that follow each other on one port."""

    def __init__(self, start: StartForwarder, target: Server, path: Path) -> None:
        self._start = start
        self._target = target.address
        self.path = path
        self.listen = "127.0.0.1:0"

    def start(self, *options: str, patch: str = "") -> Forwarder:
        takeover = ("--takeover", str(self.path))
        started = self._start(self._target, *takeover, *options, listen=self.listen, patch=patch)
        if not patch:
            self.listen = f"127.0.0.1:{started.port}"
        return started

    def follow(self, first: Forwarder, *options: str) -> Forwarder:
        """Start the next process; the first stops."""
        following = self.start(*options)
        first.expect(HANDED_OVER)
        return following


@pytest.fixture
def succession(forwarder: StartForwarder, echo_server: Server, tmp_path: Path) -> Succession:
    return Succession(forwarder, echo_server, tmp_path / "takeover")


def restart_under_load(
    succession: Succession, opened: ExitStack, workers: list[str], *, rate: int, each: int
) -> None:
    front = succession.start("--workers", workers[0])
    load = opened.enter_context(
        closing(Load(("127.0.0.1", front.port), rate=rate, clients=max(4, rate // 25)))
    )
    load.more(each)
    for count in workers[1:]:
        following = succession.follow(front, "--workers", count)
        load.more(each)
        assert front.end() == 0
        assert not front.find("cutting|ERROR|Traceback"), front.text
        front = following
    load.more(each)
    load.close()
    assert load.failures == []
    assert front.stop() == 0
    assert not front.find("cutting|ERROR|Traceback"), front.text
    assert not succession.path.exists()


@pytest.mark.parametrize("workers", [["1", "1"], ["2", "1", "3"]], ids="-".join)
def test_a_restart_refuses_nobody(
    workers: list[str], succession: Succession, opened: ExitStack
) -> None:
    restart_under_load(succession, opened, workers, rate=100, each=20)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [["1"] * 5, ["2"] * 5, ["3", "1", "4", "2", "1"]], ids="-".join)
def test_restarts_under_500_requests_a_second(
    workers: list[str], succession: Succession, opened: ExitStack
) -> None:
    restart_under_load(succession, opened, workers, rate=500, each=500)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_live_connections_go_on_where_they_began(workers: str, succession: Succession) -> None:
    first = succession.start("--workers", workers, "--grace", "1000")
    with first.connect() as old:
        assert exchange(old, b"before") == b"before"
        second = succession.follow(first, "--workers", workers)
        first.expect("stopping: ", int(workers))  # until then, one may accept
        assert exchange(old, b"after") == b"after"
        with second.connect() as new:
            assert exchange(new, b"hello") == b"hello"
        second.expect("5 bytes up, 5 bytes down, eof")
    assert first.end() == 0
    assert first.find("11 bytes up, 11 bytes down, eof")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_to_the_one_that_stops_cuts_nothing(workers: str, succession: Succession) -> None:
    """Whoever looks after it may not know that it stops; the next signal means it."""
    first = succession.start("--workers", workers, "--grace", "1000")
    with first.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        succession.follow(first)
        first.expect("stopping: 1 connections live")
        first.signal(signal.SIGTERM)
        first.signal(signal.SIGHUP)  # its files are the other's business now
        first.signal(signal.SIGUSR2)
        first.expect("SIGUSR2 does nothing")
        assert not first.find("reloading")
        assert exchange(client, b"hello") == b"hello"
        first.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert first.end() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to become another user")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_root_takes_over_from_the_user_it_becomes(workers: str, succession: Succession) -> None:
    options = ("--user", "nobody", "--workers", workers)
    first = succession.start(*options)
    second = succession.follow(first, *options)
    assert first.end() == 0
    third = succession.follow(second, *options)
    assert second.end() == 0
    with third.connect() as client:
        assert exchange(client, b"hello") == b"hello"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_that_dies_before_it_serves_changes_nothing(
    workers: str, succession: Succession
) -> None:
    first = succession.start("--workers", workers)
    failing = succession.start("--workers", workers, patch=DIES)
    if workers == "1":
        assert failing.end() == 3
    else:
        failing.expect("has died: status 3", 2)
        assert failing.stop() == 0
    first.expect("WARNING the next process does not take over: it has ended before it was ready")
    with first.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    second = succession.follow(first, "--workers", workers)
    assert first.end() == 0
    with second.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert second.stop() == 0
    assert not succession.path.exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_that_could_hand_nothing_over_changes_nothing(
    workers: str, succession: Succession
) -> None:
    first = succession.start("--workers", workers)
    failing = succession.start("--workers", workers, patch=NO_THREAD)
    assert failing.end() == 1
    failing.expect(f"^freebsd-splice: --takeover {succession.path}: can't start new thread$")
    first.expect("WARNING the next process does not take over: it has ended before it was ready")
    with first.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert first.stop() == 0


def test_one_that_cannot_start_changes_nothing(succession: Succession) -> None:
    first = succession.start()
    failing = succession.start("--user", "nobody-at-all", patch="#")
    assert failing.end() == 2
    with first.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert not first.find("does not take over")


def test_the_first_one_has_the_path_for_itself(succession: Succession) -> None:
    front = succession.start()
    assert front.port
    assert stat.S_IMODE(succession.path.stat().st_mode) == 0o600
    assert front.stop() == 0
    assert not succession.path.exists()


def test_what_a_dead_one_left_is_no_obstacle(succession: Succession) -> None:
    front = succession.start()
    assert front.port
    front.signal(signal.SIGKILL)
    front.end()
    assert succession.path.exists()
    front = succession.start()
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"


def test_strangers_are_given_nothing(succession: Succession) -> None:
    first = succession.start(patch=STRANGER_ASKS)
    assert first.port
    second = succession.start(patch="#")
    assert second.end() == 1
    assert second.lines == [
        f"freebsd-splice: --takeover {succession.path}: "
        "the running process hands nothing over, see its log"
    ]
    assert first.expect("WARNING user 4711 may not take the listening sockets over")
    with first.connect() as client:
        assert exchange(client, b"hello") == b"hello"


def test_nothing_is_taken_from_strangers(succession: Succession) -> None:
    first = succession.start()
    assert first.port
    second = succession.start(patch=STRANGER_GIVES)
    assert second.end() == 1
    (line,) = second.lines
    assert line.endswith("the process that listens there is another user's (uid 4711)")
    first.expect("does not take over")
    with first.connect() as client:
        assert exchange(client, b"hello") == b"hello"


def test_the_file_of_a_unix_socket_stays_in_place(succession: Succession, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    succession.listen = f"unix:{path}"
    first = succession.start(patch="#")
    first.expect("listening on unix:")
    made = path.stat().st_ino
    second = succession.start(patch="#")
    first.expect(HANDED_OVER)
    assert first.end() == 0
    assert path.stat().st_ino == made
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert exchange(client, b"hello") == b"hello"
    assert second.stop() == 0
    assert not path.exists()


def test_another_address_takes_the_place_of_the_first(succession: Succession) -> None:
    first = succession.start()
    old = first.port
    succession.listen = "[::1]:0"
    second = succession.start(patch="#")
    first.expect(HANDED_OVER)
    assert first.end() == 0
    second.expect(rf"WARNING 127.0.0.1:{old} is not listened on any more$")
    with second.connect("::1") as client:
        assert exchange(client, b"hello") == b"hello"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), PATIENCE)


def test_sockets_that_are_missing_are_made(succession: Succession) -> None:
    """The first has 127.0.0.1 alone, the second every address that the name stands for."""
    first = succession.start()
    port = first.port
    succession.listen = f"localhost:{port}"
    second = succession.start("--workers", "2", patch="#")
    first.expect(HANDED_OVER)
    assert first.end() == 0
    for found in second.find(r"listening on (\S+):(\d+)$"):
        with socket.create_connection((found[1].strip("[]"), int(found[2])), PATIENCE) as client:
            assert exchange(client, b"hello") == b"hello"


def test_the_process_after_has_no_listeners_left_open(succession: Succession) -> None:
    """A worker that kept one of the parent's would keep its port listening while it drains."""
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    first = succession.start("--workers", "2", "--grace", "1000")
    with first.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        second = succession.follow(first, "--workers", "2")
        first.expect("stopping: ", 2)
        assert second.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            second.connect()
    assert first.end() == 0


@pytest.mark.parametrize(
    ("sets", "workers", "shared"),
    [
        ([[1, 2]], 1, [[1, 2]]),
        ([[1], [2], [3]], 1, [[1, 2, 3]]),
        ([[1], [2], [3]], 2, [[1, 3], [2]]),
        ([[1], [2]], 4, [[1], [2]]),
        ([], 2, []),
    ],
)
def test_no_socket_is_left_out(
    sets: list[list[int]], workers: int, shared: list[list[int]]
) -> None:
    assert shared_out(sets, workers) == shared  # type: ignore[arg-type, comparison-overlap]


def test_other_sockets_can_be_handed_over_later(tmp_path: Path) -> None:
    """After a reload. Those before do not go on listening, as nobody accepts from them."""
    path = str(tmp_path / "takeover")
    over = threading.Event()
    takeover = Takeover(path)
    first, second = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    takeover.listen([[first]])
    first.setblocking(False)
    second.setblocking(False)
    with first, second:
        takeover.serve([[first]], over.set)
        takeover.replace([[second]])
        gone = first.getsockname()
        first.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(gone, PATIENCE)
        following = Takeover(path)
        wanted = Address(*second.getsockname())
        ((taken,),) = following.take(wanted, backlog=5)
        following.listen([[taken]])
        following.serve([[taken]], lambda: None)
        assert over.wait(PATIENCE)
        takeover.close()
        following.close()
        assert taken.getsockname() == second.getsockname()
        taken.close()


@pytest.mark.parametrize("has_it", [True, False])
def test_what_a_supervisor_gives_to_both_is_not_called_closed(
    has_it: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LISTEN_FDS goes before what the process before hands over: that is one socket more."""
    path = str(tmp_path / "takeover")
    with socket.create_server(("127.0.0.1", 0)) as given, given.dup() as given_again:
        given.setblocking(False)
        with closing(Takeover(path)) as takeover:
            takeover.listen([[given]])
            takeover.serve([[given]], lambda: None)
            with closing(Takeover(path)) as following:
                sets = [[given_again]] if has_it else []
                following.listen(sets)
                following.serve(sets, lambda: None)
        assert ("is not listened on any more" in caplog.text) is not has_it


def test_a_signal_and_a_takeover_together_stop_once() -> None:
    stops: list[None] = []
    stopping = Stopping(lambda: stops.append(None))
    stopping.signalled()
    stopping.handed_over()
    assert len(stops) == 1
    stopping.signalled()
    assert len(stops) == 2


# What is said between the two


def said(text: bytes) -> bytes:
    return struct.pack("!I", len(text)) + text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "hands nothing over"),
        (b"\0\0", "hands nothing over"),
        (struct.pack("!I", 1 << 20), "another protocol"),
        (said(b"{"), "another protocol"),
        (said(b"[]"), "another protocol"),
        (said(b"\xff"), "another protocol"),
        (said(b'{"version": 2, "process": 1, "sets": []}'), r"another protocol \(version 2\)"),
        (said(b'{"version": 1, "sets": []}'), "another protocol"),
        (said(b'{"version": 1, "process": 1, "sets": 1}'), "another protocol"),
        (said(b'{"version": 1, "process": 1, "sets": [-1]}'), "another protocol"),
        (said(b'{"version": 1, "process": 1, "sets": []}'), "hands nothing over"),
        (said(b'{"version": 1, "process": 1, "sets": []}') + b"x", r"another protocol \(no socket"),
        (said(b'{"version": 1, "process": 1, "sets": []}') + b"s", "Too many open files"),
    ],
)
def test_what_another_program_says_is_not_taken(answer: bytes, reason: str) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(answer)
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match=reason):
            passing.take(right)


def test_what_is_no_listener_is_not_taken() -> None:
    left, right = socket.socketpair()
    with left, right, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        passing.give(left, other, [])
        with pytest.raises(OSError, match="the control socket does not listen"):
            passing.take(right)


def test_the_sockets_arrive_in_their_sets() -> None:
    left, right = socket.socketpair()
    with left, right, closing_all() as sockets:
        sockets += [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
        control, *others = sockets
        passing.give(left, control, [others[:2], others[2:]])
        passed = passing.take(right)
        sockets += [passed.control, *(each for several in passed.sets for each in several)]
        assert passed.process == os.getpid()
        assert passed.control.getsockname() == control.getsockname()
        names = [[each.getsockname() for each in several] for several in passed.sets]
        assert names == [[each.getsockname() for each in part] for part in (others[:2], others[2:])]
        assert not any(each.get_inheritable() or each.gettimeout() for each in passed.sets[0])
