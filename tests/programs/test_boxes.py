"""The model of several boxes (bench/farm.py) says of two what two real ones do."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from programs.processes import PATIENCE, Forwarder, Server, receive

if TYPE_CHECKING:
    from bench import balancing, steps
else:
    pytest.importorskip("simpy", reason="the model is made of it: the extra bench")
    reason = "the model is the benchmark's, which is not part of the package"
    balancing = pytest.importorskip("bench.balancing", reason=reason)
    steps = pytest.importorskip("bench.steps", reason=reason)

SCENARIOS: dict[str, list[tuple[str, int]]] = {
    "a takeover, and the other box dies": [
        ("connect", 6),
        ("take over", 0),
        ("connect", 4),
        ("end", 0),
        ("end", 2),
        ("end", 4),
        ("die", 1),
        ("connect", 2),
        ("look", 0),
        ("connect", 2),
        ("come back", 1),
        ("look", 0),
        ("connect", 2),
    ],
    "the grace passes": [("connect", 6), ("restart", 1), ("connect", 4), ("restart", 0)],
    "a box dies amid a takeover": [
        ("connect", 4),
        ("take over", 0),
        ("connect", 4),
        ("die", 0),
        ("connect", 2),
        ("look", 0),
        ("connect", 3),
    ],
    "nobody is there": [("take over", 0), ("connect", 1), ("die", 0), ("die", 1), ("connect", 2)],
}


class Boxes:
    """Two processes that serve, their successors, and clients that are dealt out by turns."""

    def __init__(
        self,
        start: Callable[..., Forwarder],
        server: Callable[..., Server],
        opened: ExitStack,
        directory: Path,
        grace: str,
    ) -> None:
        self._start, self._server, self._opened = start, server, opened
        self._directory, self._grace = directory, grace
        #: By their names: the box's number, and which of its processes it is.
        self._processes: dict[str, Forwarder] = {}
        #: The one of each box that accepts.
        self._accepting: dict[int, str] = {}
        self._started = [0, 0]
        self._ports = [0, 0]
        self._known = [0, 1]
        self._last = -1
        self._sockets: dict[int, socket.socket] = {}
        self._clients = 0
        self.serving: dict[int, str] = {}
        self.cut: list[int] = []
        self.refused: list[int] = []
        for box in self._known:
            self._begin(box)

    def step(self, word: str, number: int) -> dict[str, Any]:
        getattr(self, "do_" + word.replace(" ", "_"))(number)
        self._ask_all()
        self._reap()
        return {
            "serving": dict(sorted(self.serving.items(), key=lambda each: (each[1], each[0]))),
            "cut": sorted(self.cut),
            "refused": sorted(self.refused),
            "processes": sorted(self._processes),
        }

    def do_connect(self, number: int) -> None:
        for _ in range(number):
            client, self._clients = self._clients, self._clients + 1
            self._last = min([box for box in self._known if box > self._last] or self._known)
            try:
                sock = socket.create_connection(("127.0.0.1", self._ports[self._last]), PATIENCE)
            except ConnectionRefusedError:
                self.refused.append(client)
                continue
            self._sockets[client] = self._opened.enter_context(sock)
            self.serving[client] = _ask(sock)

    def do_end(self, client: int) -> None:
        sock = self._sockets.pop(client)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        del self.serving[client]

    def do_take_over(self, box: int) -> None:
        """The one before says that it stops once it accepts no more."""
        before = self._accepting[box]
        self._begin(box, f"127.0.0.1:{self._ports[box]}")
        self._processes[before].expect("stopping: ")

    def do_restart(self, box: int) -> None:
        before = self._processes[self._accepting[box]]
        self.do_take_over(box)
        assert before.end() == 0

    def do_die(self, box: int) -> None:
        for name in [name for name in self._processes if name[0] == str(box)]:
            self._processes[name].signal(signal.SIGKILL)
            self._processes.pop(name).end()
        del self._accepting[box]

    def do_come_back(self, box: int) -> None:
        self._begin(box)

    def do_look(self, _: int) -> None:
        self._known = sorted(self._accepting)

    def _begin(self, box: int, listen: str = "127.0.0.1:0") -> None:
        name = f"{box}{'abc'[self._started[box]]}"
        self._started[box] += 1
        target = self._server(_named(name))
        takeover = str(self._directory / f"takeover-{box}")
        options = ("--takeover", takeover, "--grace", self._grace)
        self._processes[name] = self._start(target.address, *options, listen=listen)
        self._ports[box] = self._processes[name].port
        self._accepting[box] = name

    def _ask_all(self) -> None:
        """Who is served still, and by whom."""
        for client in list(self.serving):
            try:
                self.serving[client] = _ask(self._sockets[client])
            except ConnectionError:
                self.cut.append(client)
                del self.serving[client]

    def _reap(self) -> None:
        """Those that have been taken over from, and have no clients, end by themselves."""
        for name in set(self._processes) - set(self._accepting.values()):
            if name not in self.serving.values():
                assert self._processes.pop(name).end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_model_says_what_two_boxes_do(
    scenario: str,
    forwarder: Callable[..., Forwarder],
    server: Callable[..., Server],
    opened: ExitStack,
    tmp_path: Path,
) -> None:
    todo = SCENARIOS[scenario]
    modelled: Sequence[dict[str, Any]] = steps.play(todo)
    passes = any(word == "restart" for word, _ in todo)
    boxes = Boxes(forwarder, server, opened, tmp_path, "1" if passes else "1000")
    for step, expected in zip(todo, modelled, strict=True):
        assert boxes.step(*step) == expected, step


def test_consistent_hashing_moves_a_dead_boxs_clients_alone() -> None:
    hashing = balancing.ConsistentHash()
    hashing.know([0, 1, 2, 3])
    before = [hashing.choose(client, {}) for client in range(1_000)]
    hashing.know([0, 1, 3])
    after = [hashing.choose(client, {}) for client in range(1_000)]
    assert all(now == then for now, then in zip(after, before, strict=True) if then != 2)
    moved = [now for now, then in zip(after, before, strict=True) if then == 2]
    assert set(moved) == {0, 1, 3}


def test_the_fewest_connections_win() -> None:
    fewest = balancing.LeastConnections()
    assert fewest.choose(0, {0: 0}) is None
    fewest.know([0, 2])
    assert fewest.choose(0, {0: 5, 1: 0, 2: 4}) == 2


def _named(name: str) -> Callable[[socket.socket], None]:
    """A target that answers each byte with its name, by which its proxy is known."""

    def serve(connection: socket.socket) -> None:
        while connection.recv(1):
            connection.sendall(name.encode())

    return serve


def _ask(sock: socket.socket) -> str:
    """The name of the process that serves a client; ConnectionError if none does any more."""
    with contextlib.suppress(AssertionError):
        sock.sendall(b"?")
        return receive(sock, 2).decode()
    raise ConnectionResetError
