"""Several processes for one proxy: they share the clients, are replaced, and stop together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from faults.cells import cell
from freebsd_splice._cli import connect_socks5, serving, signals, workers
from freebsd_splice.proxies import Address, Passwords
from freebsd_splice.proxies._listening import listen_on
from freebsd_splice.proxies._passwords import make_entry
from programs.processes import PATIENCE, Forwarder, Server, closing_all, exchange, until

StartForwarder = Callable[..., Forwarder]

#: As on systems that can't deal out a port's clients among several sockets.
WITHOUT_SHARING = """
import freebsd_splice._cli.workers as workers
workers.share_option = lambda: None
"""

#: A group of its own for the program, as a shell makes one for each command.
OWN_GROUP = "import os; os.setpgid(0, 0)"

WORKERS_THAT_DIE_AT_ONCE = """
import os
import freebsd_splice._cli.serving as serving
import freebsd_splice._cli.workers as workers
async def die(*args):
    os._exit(3)
serving._run = die
workers._SHORT_LIFE = 0.4
"""

WORKERS_WITH_A_DEFECT = """
import freebsd_splice._cli.serving as serving
async def fail(*args):
    raise ZeroDivisionError
serving._run = fail
"""

#: The second fork fails once.
NO_PROCESS_TO_BE_HAD = """
import errno, os
import freebsd_splice._cli.workers as workers
workers._SHORT_LIFE = 0.2
fork = os.fork
calls = 0
def scarce():
    global calls
    calls += 1
    if calls == 2:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = scarce
"""

#: A child that isn't the program's own ends after its first worker has.
ANOTHERS_CHILD = """
import os, sys, time
go, tell = os.pipe()
if not os.fork():
    os.close(tell)
    os.read(go, 1)
    os._exit(0)
os.close(go)
import freebsd_splice._cli.serving as serving
say = serving._say_listening
def end_the_child_and_say(served):
    os.close(tell)
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    say(served)
serving._say_listening = end_the_child_and_say
"""

SAYS_WHEN_IT_STARTS_A_WORKER = """
import sys
import freebsd_splice._cli.forward as forward
class Made(forward.Made):
    def before_fork(self):
        print("another worker", file=sys.stderr)
forward.Made = Made
"""

#: Whoever stops the program does so when its workers have not yet said what to do then.
STOPPED_AT_THE_START = """
import os, select, signal
import freebsd_splice._cli.workers as workers
obey = workers.obey
def obey_late(parent, *calls):
    os.kill(os.getppid(), signal.SIGTERM)
    select.select([parent], [], [])
    obey(parent, *calls)
workers.obey = obey_late
"""


def serve_one(front: Forwarder, clients: list[socket.socket]) -> None:
    clients.append(front.connect())
    assert exchange(clients[-1], b"hello") == b"hello"


def workers_of(front: Forwarder) -> set[int]:
    """Those that have served somebody to the end."""
    return {int(found[1]) for found in front.find(r" \[(\d+)\] INFO .* bytes up")}


def connect_until(front: Forwarder, holds: Callable[[], object]) -> None:
    """Have clients served, one after another, until it holds."""

    def look() -> bool:
        before = len(front.find("bytes up"))
        with front.connect() as client:
            assert exchange(client, b"hello") == b"hello"
        front.expect("bytes up", before + 1)
        return bool(holds())

    until(look)


@pytest.mark.parametrize("patch", ["", WITHOUT_SHARING], ids=["of the system", "one socket"])
def test_all_workers_get_clients_of_one_port(
    patch: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    if not patch and workers.share_option() is None:
        pytest.skip("this system can't deal out the clients of a port")
    front = forwarder(echo_server.address, "--workers", "3", patch=patch)
    with closing_all() as clients:
        for _ in range(60):
            serve_one(front, clients)
    front.expect("bytes up", 60)
    # Who accepts from a shared socket is the first to wake up: that can be one and the same.
    connect_until(front, lambda: len(workers_of(front)) == 3)
    assert front.pid not in workers_of(front)
    assert front.stop() == 0
    assert len(front.find("listening on")) == 1
    assert len(front.find("stopping: 0 connections live")) == 3
    assert not front.find("ERROR|Traceback")


@pytest.mark.parametrize("group", [False, True], ids=["the parent", "the whole group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_lets_connections_end_a_second_cuts_them(
    number: signal.Signals, group: bool, echo_server: Server, forwarder: StartForwarder
) -> None:
    """A terminal's Ctrl-C and systemd signal the parent and the workers, and that is one signal."""
    front = forwarder(echo_server.address, "--workers", "3", "--grace", "1000", patch=OWN_GROUP)

    def send() -> None:
        if group:
            os.killpg(front.pid, number)
        else:
            front.signal(number)

    with closing_all() as clients:
        for _ in range(12):
            serve_one(front, clients)
        send()
        front.expect("stopping: ", 3)
        with pytest.raises(ConnectionRefusedError):
            front.connect()
        for client in clients:
            assert exchange(client, b"still here") == b"still here"
        clients.pop().close()
        front.expect("15 bytes up, 15 bytes down, eof")
        send()
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert front.end() == 0
    assert not front.find("ERROR|Traceback")


def test_a_word_to_stop_that_comes_early_is_kept(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", patch=STOPPED_AT_THE_START)
    assert front.end() == 0
    assert len(front.find("stopping: ")) == 2


def test_a_signal_to_a_worker_alone_is_none(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, "--workers", "2")
    connect_until(front, lambda: len(workers_of(front)) == 2)
    for worker in workers_of(front):
        handled = (*signals.STOPPING, *signals.RELOADING, *signals.SHOWING, *signals.WITHOUT_EFFECT)
        for number in handled:
            os.kill(worker, number)
    with closing_all() as clients:
        for _ in range(10):
            serve_one(front, clients)
    assert front.stop() == 0
    assert len(front.find("stopping: ")) == 2, front.text
    assert not front.find("SIG|has died|connections live$")


@cell(
    "a worker is killed",
    "processes",
    "dialling",
    sees="clients in its queue wait for the next worker: none is refused",
    others=True,
)
def test_a_worker_that_dies_is_replaced_and_no_client_is_refused(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "3")
    connect_until(front, lambda: len(workers_of(front)) == 3)
    first = workers_of(front)
    dead = min(first)
    os.kill(dead, signal.SIGKILL)
    with closing_all() as clients:
        # Some of these are the dead one's: they wait in the queue for the next.
        for _ in range(60):
            serve_one(front, clients)
    front.expect(rf"\[{front.pid}\] ERROR worker \d \(process {dead}\) has died: signal 9$")
    connect_until(front, lambda: workers_of(front) - first)
    assert front.stop() == 0
    assert len(front.find("has died")) == 1
    assert len(front.find("listening on")) == 1


@cell(
    "a worker is killed",
    "processes",
    "any",
    sees="where all are dead, clients wait until another one has started",
)
def test_with_every_worker_dead_clients_wait(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2")
    connect_until(front, lambda: len(workers_of(front)) == 2)
    for worker in workers_of(front):
        os.kill(worker, signal.SIGKILL)
    with closing_all() as clients:
        for _ in range(10):
            serve_one(front, clients)
    front.expect("has died: signal 9", 2)


def test_the_parent_is_asked_before_each_worker_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: list[str] = []
    begun: list[tuple[int, int]] = []

    def fork() -> int:
        begun.append((len(begun), len(known)))
        return 1000 + len(begun)

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(workers, "_SHORT_LIFE", 0)
    supervisor = workers._Supervisor(2, lambda *_: None, lambda: None, lambda: known.append("more"))
    with closing(_Channels(supervisor)):
        supervisor._start_missing()
        supervisor._channels.pop(1).close()  # it has died
        supervisor._missing.append(1)
        supervisor._start_missing()
        # A worker that reads nothing holds up nobody, however many signals come.
        assert not any(channel.getblocking() for channel in supervisor._channels.values())
        supervisor._stop()  # nor does one that has just died: these have no reader
    assert begun == [(0, 1), (1, 2), (2, 3)]


def test_the_parent_rereads_the_passwords_for_the_next_worker(tmp_path: Path) -> None:
    """Where the worker itself can't, whoever was deleted long ago would be known again."""
    file = tmp_path / "passwords"
    known: list[Passwords] = []

    def proxy(*, passwords: Passwords, **_: object) -> Any:
        known.append(passwords)

    file.write_text(f"{make_entry('gone', 'secret')}\n")
    before_fork = connect_socks5.make(Namespace(passwords=file, rules=[]), proxy).before_fork
    (passwords,) = known
    with closing(passwords):
        for content, names in (
            (f"{make_entry('somebody', 'secret')}\n", ["somebody"]),
            ("nonsense", ["somebody"]),
            (None, ["somebody"]),
        ):
            file.unlink() if content is None else file.write_text(content)
            before_fork()
            assert list(passwords._entries) == names


def test_what_a_proxy_does_before_a_worker_starts_is_done(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", patch=SAYS_WHEN_IT_STARTS_A_WORKER)
    front.expect("listening on")
    front.expect("another worker", 2)
    connect_until(front, lambda: len(workers_of(front)) == 2)
    os.kill(min(workers_of(front)), signal.SIGKILL)
    front.expect("another worker", 3)
    assert front.stop() == 0


def test_workers_that_die_at_once_are_restarted_after_a_while(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    assert workers._SHORT_LIFE == 1.0
    front = forwarder(echo_server.address, "--workers", "2", patch=WORKERS_THAT_DIE_AT_ONCE)
    front.expect("has died: status 3", 2)
    start = time.monotonic()
    front.expect("has died: status 3", 6)
    assert time.monotonic() - start > 0.6  # less what this process slept on of the first 0.4
    for number in (0, 1):
        assert front.find(f"ERROR worker {number} ")
    if sys.platform == "linux":
        front.expect("has died", 8)
        found = front.descriptors()
        assert found["pipe"] + found["unix"] <= 2 + 2  # its output, and one for each of them
    assert front.stop() == 0
    # Two at the beginning, and two after each 0.4 s.
    assert len(front.find("has died")) <= 2 + 2 * (time.monotonic() - start + 1) / 0.4


def test_a_signal_ends_it_while_dead_workers_wait_for_their_time(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    patch = WORKERS_THAT_DIE_AT_ONCE.replace("0.4", "1000")
    front = forwarder(echo_server.address, "--workers", "2", patch=patch)
    front.expect("has died", 2)
    assert front.stop() == 0


def test_what_a_worker_dies_of_is_in_the_log(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", patch=WORKERS_WITH_A_DEFECT)
    front.expect(r"ERROR worker 0 has failed$")
    front.expect(r"^ +ZeroDivisionError$", 2)
    front.expect("has died: status 1", 2)


@cell(
    "no memory",
    "processes",
    "any",
    sees="fork fails: the log says it, and it is tried again",
)
def test_a_worker_that_cannot_be_started_is_tried_again(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", patch=NO_PROCESS_TO_BE_HAD)
    front.expect("ERROR cannot start worker 1: ")
    connect_until(front, lambda: len(workers_of(front)) == 2)
    assert front.stop() == 0


def test_others_children_are_none_of_its_business(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    """It gets them as process 1, or from whoever was this process before ``exec``."""
    front = forwarder(echo_server.address, "--workers", "2", patch=ANOTHERS_CHILD)
    connect_until(front, lambda: len(workers_of(front)) == 2)
    assert front.stop() == 0
    assert not front.find("has died|Traceback")


@cell(
    "the first process is killed",
    "processes",
    "moving",
    sees="its workers accept nobody more, let live connections go on for `--grace`, and end",
    counted="all",
    others=True,
)
def test_workers_end_with_their_parent(
    echo_server: Server, forwarder: StartForwarder, opened: ExitStack
) -> None:
    front = forwarder(echo_server.address, "--workers", "3", "--grace", "1000")
    connect_until(front, lambda: len(workers_of(front)) == 3)
    for worker in workers_of(front):
        opened.callback(_kill, worker)  # nobody else would, if they did not end
    with closing_all() as clients:
        serve_one(front, clients)
        front.process.kill()
        front.expect("stopping: ", 3)
        assert exchange(clients[0], b"still here") == b"still here"
    front.end()  # all hold the pipe that it reads to the end
    until(lambda: not any(map(_exists, workers_of(front))))


@cell(
    "the first process is killed",
    "processes",
    "closing",
    sees="a stop that is under way goes on: nobody is cut",
    counted="all",
    others=True,
)
def test_their_parents_end_cuts_nothing_while_they_are_stopping(
    echo_server: Server, forwarder: StartForwarder, opened: ExitStack
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", "--grace", "1000")
    connect_until(front, lambda: len(workers_of(front)) == 2)
    for worker in workers_of(front):
        opened.callback(_kill, worker)
    with closing_all() as clients:
        serve_one(front, clients)
        front.signal(signal.SIGTERM)
        front.expect("stopping: ", 2)
        front.process.kill()
        front.process.wait()
        # The other one, which serves nobody, has nothing to wait for.
        until(lambda: sum(map(_exists, workers_of(front))) == 1)
        assert exchange(clients[0], b"still here") == b"still here"
    front.end()
    assert not front.find("cutting")


def test_a_parent_that_ends_with_a_word_unread_has_ended() -> None:
    ours, theirs = socket.socketpair()
    stops: list[None] = []
    failures: list[object] = []

    async def obey() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.set_exception_handler(lambda _, context: failures.append(context))

        def stop() -> None:
            stops.append(None)
            over.set()

        workers.obey(ours.fileno(), stop, lambda: None, lambda: None)
        ours.send(b"+")
        theirs.close()
        await asyncio.wait_for(over.wait(), PATIENCE)

    with ours, theirs:
        asyncio.run(obey())
    assert len(stops) == 1
    assert failures == []


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_parent_sleeps_while_its_workers_serve(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    if sys.platform != "linux":
        pytest.skip("only /proc tells of a running program's CPU time")
    front = forwarder(echo_server.address, "--workers", "2")
    connect_until(front, lambda: len(workers_of(front)) == 2)
    before = front.voluntary_switches()
    with closing_all() as clients:
        for _ in range(20):
            serve_one(front, clients)
    assert front.voluntary_switches() == before


@pytest.mark.parametrize(
    ("platform", "option"),
    [
        ("linux", getattr(socket, "SO_REUSEPORT", None)),
        ("freebsd15", 0x10000),
        ("openbsd7", None),
        ("darwin", None),
    ],
)
def test_what_deals_out_a_ports_clients(
    platform: str, option: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert workers.share_option() == option


class _Options:
    """Of the command line, for ``_listen``."""

    backlog = 5
    buffer_size = None

    def __init__(self, workers: int) -> None:
        self.workers = workers


def test_each_worker_has_sockets_of_its_own_on_one_free_port() -> None:
    if workers.share_option() is None:
        pytest.skip("this system can't deal out the clients of a port")
    sets = serving._listen(_Options(3), Address("127.0.0.1", 0))  # type: ignore[arg-type]
    with closing_all() as sockets:
        sockets += [listener for several in sets for listener in several]
        assert len(sockets) == 3
        assert len({listener.getsockname() for listener in sockets}) == 1


def test_another_program_that_shares_the_port_is_an_error(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2")
    where = f"127.0.0.1:{front.port}"
    another = forwarder(echo_server.address, "--workers", "2", listen=where)
    assert another.end() == 1
    assert another.lines == [f"freebsd-splice: cannot listen on {where}: Address already in use"]
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"


def test_one_worker_does_not_share_its_port() -> None:
    """Or another program's start on it would not fail."""
    ((listener,),) = serving._listen(_Options(1), Address("127.0.0.1", 0))  # type: ignore[arg-type]
    with listener:
        option = workers.share_option()
        assert option is None or not listener.getsockopt(socket.SOL_SOCKET, option)


def test_where_ports_are_not_shared_all_workers_have_one_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "share_option", lambda: None)
    ((listener,),) = serving._listen(_Options(3), Address("127.0.0.1", 0))  # type: ignore[arg-type]
    with listener:
        assert listener.getsockname()[1]


def test_the_zone_of_an_address_is_every_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it nothing can listen on a link-local address."""

    class LinkLocal:
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("fe80::1", 80, 0, socket.if_nametoindex(interface))

    interface = socket.if_nameindex()[0][1]
    asked: list[Address] = []

    def listen(address: Address, *_: object, **__: object) -> list[LinkLocal]:
        asked.append(address)
        return [LinkLocal()]

    monkeypatch.setattr(serving, "listen_on", listen)
    monkeypatch.setattr(workers, "share_option", lambda: 1)
    given = Address(f"fe80::1%{interface}", 0)
    serving._listen(_Options(2), given)  # type: ignore[arg-type]
    assert asked == [given, Address(f"fe80::1%{interface}", 80)]


def test_a_port_is_shared_by_those_alone_that_ask_for_it() -> None:
    share = workers.share_option()
    if share is None:
        pytest.skip("this system can't deal out the clients of a port")
    (first,) = listen_on(Address("127.0.0.1", 0), 5, share=share)
    with first:
        where = Address(*first.getsockname())
        (second,) = listen_on(where, 5, share=share)
        second.close()
        with pytest.raises(OSError, match="Address already in use"):
            listen_on(where, 5)


def test_the_alarm_for_the_next_start_is_never_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0 seconds, and what the system rounds to that, would mean never."""
    asked: list[float] = []
    times = iter([10.0, 11.0 - 1e-9, 11.0 - 1e-9])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: asked.append(seconds))
    supervisor = workers._Supervisor(1, lambda *_: None, lambda: None, lambda: None)
    with closing(_Channels(supervisor)):
        supervisor._started[0] = next(times)
        supervisor._start_missing()
    assert len(asked) == 1
    assert asked[0] >= 0.001


class _Channels:
    def __init__(self, supervisor: workers._Supervisor) -> None:
        self._supervisor = supervisor

    def close(self) -> None:
        for channel in self._supervisor._channels.values():
            channel.close()
