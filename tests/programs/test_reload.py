"""SIGHUP: another configuration without a cut, and all of it or nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice import _cli
from freebsd_splice._cli import listeners
from freebsd_splice._cli.plan import Made, Planned
from freebsd_splice.proxies import Address
from freebsd_splice.proxies._listening import listen_on
from freebsd_splice.proxies._passwords import make_entry
from programs.clients import NAME_THAT_WAITS, curl, no_accidents, page, read_to_eof
from programs.every_backend import BACKENDS
from programs.processes import (
    Forwarder,
    Program,
    Proxy,
    Served,
    Server,
    connect_to,
    is_refused,
    receive,
    until,
    where,
)

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

StartProxy = Callable[..., Proxy]
StartForwarder = Callable[..., Forwarder]
StartServer = Callable[..., Server]
StartServed = Callable[..., Served]

both_ways = pytest.mark.parametrize("workers", ["1", "2"])


def named(name: bytes) -> Callable[[socket.socket], None]:
    """A server that answers everything with its name."""

    def answer(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            connection.sendall(name)

    return answer


def forward(server: Server, *more: str, listen: str = "127.0.0.1:0") -> str:
    lines = ["[[forward]]", f'listen = "{listen}"', f'target = "{where(server)}"', *more]
    return "\n".join(lines) + "\n"


def asked(client: socket.socket, size: int = 1) -> bytes:
    client.sendall(b"?")
    return receive(client, size)


def told(port: int) -> bytes:
    """Which server a new client gets."""
    with connect_to(port) as client:
        return asked(client)


def until_told(port: int, name: bytes) -> None:
    """Workers from before, which are told just before the log says so, may accept one more."""
    until(lambda: told(port) == name)


@both_ways
def test_live_connections_go_on_and_new_ones_get_what_is_new(
    workers: str, served: StartServed, server: StartServer
) -> None:
    old, new = server(named(b"1")), server(named(b"2"))
    run = served(forward(old), "--workers", workers)
    (port,) = run.ports(1)
    with connect_to(port) as client:
        assert asked(client) == b"1"
        for times, target, name in ((1, new, b"2"), (2, old, b"1"), (3, new, b"2")):
            run.reload(forward(target), times=times)
            until_told(port, name)
            assert asked(client) == b"1"
    run.expect(rf"-> {where(old)}: .*eof")
    assert run.stop() == 0
    assert len(run.find("listening on")) == 1
    no_accidents(run)


def test_what_served_before_leaves_no_buffers(served: StartServed, echo_server: Server) -> None:
    """Its worker's megabyte does not wait for the collector, which may come hours later."""
    if sys.platform != "linux":
        pytest.skip("only /proc says how much memory a program has")
    run = served(forward(echo_server), patch="import gc; gc.disable()")
    run.ports(1)
    sizes = []
    for times in range(1, 11):
        run.reload(forward(echo_server), times=times)
        sizes.append(resident(run))
    # Of six reloads, each with a worker of its own.
    until(lambda: resident(run) - sizes[3] < 3 << 20)


def resident(run: Proxy) -> int:
    """The bytes of memory that it has now."""
    pages = Path(f"/proc/{run.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transfer_goes_on_over_each_backend(
    backend: str, served: StartServed, server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the bytes before, half after; the answer to the end comes after it."""
    for name, value in BACKENDS[backend].items():
        monkeypatch.setenv(name, value)
    data = random.Random(5).randbytes(1_000_000)
    half = len(data) // 2

    def turn(connection: socket.socket) -> None:
        connection.sendall(receive(connection, half))
        connection.sendall(read_to_eof(connection)[::-1])

    run = served(forward(server(turn)))
    (port,) = run.ports(1)
    with connect_to(port) as client:
        client.sendall(data[:half])
        run.reload(forward(server(named(b"2"))))
        assert told(port) == b"2"
        assert receive(client, half) == data[:half]
        client.sendall(data[half:])
        client.shutdown(socket.SHUT_WR)
        assert read_to_eof(client) == data[half:][::-1]
    run.expect(f"{len(data)} bytes up, {len(data)} bytes down, eof")
    assert run.stop() == 0
    no_accidents(run)


@both_ways
def test_a_file_with_a_mistake_changes_nothing(
    workers: str, served: StartServed, server: StartServer
) -> None:
    old, new = server(named(b"1")), server(named(b"2"))
    run = served(forward(old), "--workers", workers)
    (port,) = run.ports(1)
    wrong = forward(new) + "[[sock5]]\n" + forward(new, "idle-timeout = -1")
    run.reload(wrong, "ERROR not reloaded", 2)
    assert [
        found[1] for found in run.find(r"not reloaded, all stays as it was: .*?toml: (.*)$")
    ] == [
        "unknown key 'sock5'; did you mean 'socks5'?",
        "[[forward]] 2: idle-timeout: '-1' is not a number of seconds",
    ]
    assert told(port) == b"1"
    run.path.unlink()
    run.signal(signal.SIGHUP)
    run.expect("ERROR not reloaded.* No such file or directory$")
    assert told(port) == b"1"
    run.reload(forward(new))
    until_told(port, b"2")
    assert run.stop() == 0


@both_ways
def test_nothing_is_opened_where_one_address_cannot_be(
    workers: str, served: StartServed, server: StartServer, echo_server: Server
) -> None:
    """The first of the two new ones could be."""
    old, new = server(named(b"1")), server(named(b"2"))
    run = served(forward(old), "--workers", workers)
    (port,) = run.ports(1)
    before = run.descriptors() if sys.platform == "linux" else None
    taken = where(echo_server)
    text = forward(new) + forward(new) + forward(new, listen=taken)
    run.reload(text, f"ERROR not reloaded.* cannot listen on {taken}: Address already in use$")
    assert told(port) == b"1"
    if before is not None:
        until(lambda: run.descriptors()["tcp"] <= before["tcp"])
    assert run.stop() == 0
    assert len(run.find("listening on")) == 1


@both_ways
def test_what_is_new_is_opened_and_what_is_gone_is_closed(
    workers: str, served: StartServed, server: StartServer
) -> None:
    """A connection that came through a socket that is closed goes on."""
    one, two = server(named(b"1")), server(named(b"2"))
    run = served(forward(one), "--workers", workers)
    run.ports(1)
    run.reload(forward(one) + forward(two))
    first, second = run.ports(2)
    until_told(first, b"1")
    until_told(second, b"2")
    with connect_to(second) as client:
        assert asked(client) == b"2"
        run.reload(forward(one), times=2)
        until(lambda: is_refused(("127.0.0.1", second)))
        assert asked(client) == b"2"
        assert told(first) == b"1"
    assert run.stop() == 0
    assert len(run.find("listening on")) == 2
    no_accidents(run)


@both_ways
def test_no_client_is_refused_or_cut_meanwhile(
    workers: str, served: StartServed, server: StartServer
) -> None:
    one, two = server(named(b"1")), server(named(b"2"))
    run = served(forward(one), "--workers", workers)
    (port,) = run.ports(1)
    over = threading.Event()
    answers: list[bytes] = []
    failures: list[OSError] = []

    def ask() -> None:
        while not over.is_set():
            try:
                answers.append(told(port))
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for times in range(1, 5):
            run.reload(forward(two if times % 2 else one), times=times)
            seen = len(answers)
            until(lambda seen=seen: len(answers) > seen + 5 or failures)  # type: ignore[misc]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert set(answers) == {b"1", b"2"}
    assert run.stop() == 0
    no_accidents(run)


@both_ways
@pytest.mark.parametrize("late", [False, True], ids=["grace", "cut"])
def test_a_signal_ends_those_from_before_as_well(
    workers: str, late: bool, served: StartServed, server: StartServer
) -> None:
    old, new = server(named(b"1")), server(named(b"2"))
    options = ("--workers", workers)
    run = served(forward(old, "grace = 1000"), *options)
    (port,) = run.ports(1)
    with connect_to(port) as first:
        assert asked(first) == b"1"
        run.reload(forward(new, "grace = 1000"))
        until_told(port, b"2")
        run.signal(signal.SIGTERM)
        run.expect("stopping: 1 connections live")
        assert asked(first) == b"1"
        if late:
            run.signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                first.recv(1)
    assert run.end() == 0


def test_workers_from_before_end_with_their_last_connection(
    served: StartServed, server: StartServer
) -> None:
    if sys.platform != "linux":
        pytest.skip("only /proc tells of a program's children")
    one = server(named(b"1"))
    run = served(forward(one), "--workers", "2")
    (port,) = run.ports(1)
    with connect_to(port) as client:
        assert asked(client) == b"1"
        until(lambda: len(children(run)) == 2)
        before = children(run)
        channels = run.descriptors()["unix"]
        run.reload(forward(one))
        until(lambda: len(children(run) & before) == 1)
        assert asked(client) == b"1"
        assert len(children(run)) == 3
    until(lambda: not children(run) & before)
    assert len(children(run)) == 2
    until(lambda: run.descriptors()["unix"] <= channels)
    assert not run.find("has died")
    os.kill(min(children(run)), signal.SIGKILL)
    run.expect("has died: signal 9")
    until(lambda: len(children(run)) == 2)
    assert told(port) == b"1"
    assert run.stop() == 0


def test_workers_go_on_until_all_others_are_started(
    served: StartServed, server: StartServer, tmp_path: Path
) -> None:
    """While there are no processes to be had, the former ones serve as they did."""
    run = served(
        forward(server(named(b"1"))), "--workers", "2", patch=FEW_PROCESSES.format(tmp_path)
    )
    (port,) = run.ports(1)
    assert told(port) == b"1"
    run.reload(forward(server(named(b"2"))), "cannot start worker [01]", 3)
    assert told(port) == b"1"
    if sys.platform == "linux":  # one that dies meanwhile is not told to finish
        os.kill(min(children(run)), signal.SIGKILL)
        run.expect("has died: signal 9")
    assert not run.find("INFO reloaded")
    (tmp_path / "more").touch()
    run.expect("INFO reloaded$")
    until_told(port, b"2")
    assert run.stop() == 0
    assert not run.find("Traceback")


FEW_PROCESSES = """
import errno, os
import freebsd_splice._cli.workers as workers
workers._SHORT_LIFE = 0.1
fork = os.fork
calls = 0
def scarce():
    global calls
    calls += 1
    if calls > 2 and not os.path.exists("{}/more"):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = scarce
"""


def test_workers_go_on_while_the_others_die_at_once(
    served: StartServed, server: StartServer, tmp_path: Path
) -> None:
    """Nothing is in force before it serves, and nobody has to wait until it does."""
    run = served(
        forward(server(named(b"1"))), "--workers", "2", patch=DIES_MEANWHILE.format(tmp_path)
    )
    (port,) = run.ports(1)
    assert told(port) == b"1"
    run.expect("^begun$", 2)
    (tmp_path / "die").touch()
    run.reload(forward(server(named(b"2"))), "has died: status 3", 4)
    for _ in range(10):
        assert told(port) == b"1"
    assert not run.find("INFO reloaded")
    (tmp_path / "die").unlink()
    run.expect("INFO reloaded$")
    until_told(port, b"2")
    assert run.stop() == 0
    assert not run.find("Traceback")


DIES_MEANWHILE = """
import os
import freebsd_splice._cli.serving as serving
import freebsd_splice._cli.workers as workers
workers._SHORT_LIFE = 0.1
run = serving._run
async def run_or_die(*args):
    if os.path.exists("{}/die"):
        os._exit(3)
    os.write(1, b"begun\\n")
    await run(*args)
serving._run = run_or_die
"""


def test_workers_yet_to_serve_are_kept_while_no_other_does(
    served: StartServed, server: StartServer, tmp_path: Path
) -> None:
    """A reload right after the start: who waits for one of them would wait for the next."""
    if sys.platform != "linux":
        pytest.skip("only /proc tells of a program's children")
    (tmp_path / "silence").touch()
    one = server(named(b"1"))
    run = served(forward(one), "--workers", "2", patch=SAYS_NOTHING.format(tmp_path))
    (port,) = run.ports(1)
    until(lambda: len(children(run)) == 2)
    first = children(run)
    run.reload(forward(one), "INFO reloading$")
    until(lambda: len(children(run)) == 4)
    second = children(run) - first
    run.reload(forward(one), "INFO reloading$", 2)
    until(lambda: len(children(run)) == 4 and not children(run) & second)
    assert first < children(run)
    (tmp_path / "silence").unlink()
    run.reload(forward(one))
    until(lambda: len(children(run)) == 2)
    assert told(port) == b"1"
    assert run.stop() == 0
    no_accidents(run)


def test_workers_that_never_served_are_not_kept(
    served: StartServed, server: StartServer, tmp_path: Path
) -> None:
    """Many reloads, one after another, would leave as many of them."""
    if sys.platform != "linux":
        pytest.skip("only /proc tells of a program's children")
    one = server(named(b"1"))
    run = served(forward(one), "--workers", "2", patch=SAYS_NOTHING.format(tmp_path))
    (port,) = run.ports(1)
    run.reload(forward(one))  # says that it is over once both of the new ones serve
    until(lambda: len(children(run)) == 2)
    first = children(run)
    (tmp_path / "silence").touch()
    run.reload(forward(one), "INFO reloading$", 2)
    until(lambda: len(children(run)) == 4)
    second = children(run) - first
    run.reload(forward(one), "INFO reloading$", 3)
    until(lambda: len(children(run)) == 4 and not children(run) & second)
    assert first < children(run)
    (tmp_path / "silence").unlink()
    run.reload(forward(one), times=2)
    until(lambda: len(children(run)) == 2)
    assert told(port) == b"1"
    assert run.stop() == 0
    no_accidents(run)


SAYS_NOTHING = """
import os
import freebsd_splice._cli.workers as workers
say = workers._Supervisor._say_serving
def say_unless_silent(self, parent):
    if not os.path.exists("{}/silence"):
        say(self, parent)
workers._Supervisor._say_serving = say_unless_silent
"""


def test_a_worker_that_dies_while_it_finishes_is_named(
    served: StartServed, server: StartServer
) -> None:
    if sys.platform != "linux":
        pytest.skip("only /proc tells of a program's children")
    run = served(forward(server(named(b"1"))), "--workers", "2")
    (port,) = run.ports(1)
    with connect_to(port) as client:
        assert asked(client) == b"1"
        before = children(run)
        run.reload(forward(server(named(b"2"))))
        until(lambda: len(children(run) & before) == 1)
        (finishing,) = children(run) & before
        os.kill(finishing, signal.SIGKILL)
        run.expect(rf"ERROR worker \d \(process {finishing}\) has died: signal 9$")
    until_told(port, b"2")
    assert len(children(run)) == 2
    assert run.stop() == 0


def test_workers_from_before_end_with_the_parent_too(
    served: StartServed, server: StartServer
) -> None:
    run = served(forward(server(named(b"1")), "grace = 0.1"), "--workers", "2")
    (port,) = run.ports(1)
    with connect_to(port) as client:
        assert asked(client) == b"1"
        run.reload(forward(server(named(b"2"))))
        until_told(port, b"2")
        run.process.kill()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    run.end()  # all workers hold the pipe that it reads to the end


def test_a_reload_that_gets_no_thread_is_made_again(
    served: StartServed, server: StartServer
) -> None:
    run = served(forward(server(named(b"1"))), patch=NO_THREAD_AT_FIRST)
    (port,) = run.ports(1)
    run.reload(forward(server(named(b"2"))), "ERROR not reloaded.*: can't start new thread$")
    assert told(port) == b"1"
    run.signal(signal.SIGHUP)
    run.expect("INFO reloaded$")
    until_told(port, b"2")
    assert run.stop() == 0


NO_THREAD_AT_FIRST = """
import freebsd_splice._cli.reloading as reloading
start = reloading.start_thread
def fail(*args):
    reloading.start_thread = start
    raise RuntimeError("can't start new thread")
reloading.start_thread = fail
"""


def children(run: Program) -> set[int]:
    text = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text()
    return set(map(int, text.split()))


@pytest.mark.parametrize("ends", [False, True], ids=["reloaded", "stopped"])
def test_nobody_waits_for_a_name_that_is_looked_up(
    ends: bool, served: StartServed, server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a LISTEN: its look-up lasts until its server answers."""
    with socket.create_server(("127.0.0.1", 0)) as name_server:
        monkeypatch.setenv("LATER", str(name_server.getsockname()[1]))
        run = served(forward(server(named(b"1"))), patch=LISTEN_THAT_WAITS)
        (port,) = run.ports(1)
        with connect_to(port) as client:
            assert asked(client) == b"1"
            added = forward(server(named(b"2")), listen="later.example:0")
            run.reload(run.path.read_text() + added, "INFO reloading$")
            waiting, _ = name_server.accept()
            with waiting:
                assert asked(client) == b"1"
                assert told(port) == b"1"
                if ends:
                    client.close()
                    assert run.stop() == 0
                    return
                run.signal(signal.SIGHUP)  # one more, which follows
                waiting.sendall(b".")
                run.expect("INFO reloaded$", 2)
        assert told(run.ports(2)[1]) == b"2"
        assert run.stop() == 0


LISTEN_THAT_WAITS = NAME_THAT_WAITS.replace(" and not flags", "")


def test_many_signals_are_few_reloads(served: StartServed, server: StartServer) -> None:
    run = served(forward(server(named(b"1"))))
    (port,) = run.ports(1)
    for _ in range(50):
        run.signal(signal.SIGHUP)
    run.expect("INFO reloaded$")
    assert told(port) == b"1"
    assert run.stop() == 0
    no_accidents(run)


@both_ways
def test_what_takes_a_restart_is_said(
    workers: str, served: StartServed, server: StartServer
) -> None:
    one, two = server(named(b"1")), server(named(b"2"))
    run = served(f"workers = {workers}\n" + forward(one, "buffer-size = 30000"))
    (port,) = run.ports(1)
    run.reload(f"workers = 3\n{forward(two)}", "ERROR not reloaded")
    assert run.find(f"workers: only a restart can change it from {workers} to 3$")
    run.reload(f"workers = {workers}\n{forward(two)}", "ERROR not reloaded.*buffer-size: ", 1)
    assert told(port) == b"1"
    run.reload(f"workers = {workers}\n" + forward(two, "buffer-size = 40000"))
    until_told(port, b"2")
    assert run.stop() == 0


@both_ways
def test_buffers_that_the_system_refuses_change_nothing(
    workers: str, served: StartServed, server: StartServer
) -> None:
    """FreeBSD does, from kern.ipc.maxsockbuf on; Linux takes what it can have."""
    one, two = server(named(b"1")), server(named(b"2"))
    run = served(forward(one), "--workers", workers, patch=SMALL_BUFFERS)
    (port,) = run.ports(1)
    text = forward(two, "buffer-size = 30000") + forward(two)
    run.reload(
        text, r"ERROR not reloaded.*\[\[forward\]\] 1: buffer-size: no buffers of 30000 bytes"
    )
    assert told(port) == b"1"
    run.reload(forward(two))
    until_told(port, b"2")
    assert run.stop() == 0
    assert not run.find("Traceback")


SMALL_BUFFERS = """
import errno
import freebsd_splice._cli.listeners as listeners
from freebsd_splice.proxies._connecting import PlainError
def refuse(sock, size):
    if size is not None:
        raise PlainError(errno.EINVAL, f"no buffers of {size} bytes: No buffer space available")
listeners.set_buffers = refuse
"""


@both_ways
def test_the_log_follows_its_options(
    workers: str, served: StartServed, server: StartServer
) -> None:
    top = f"workers = {workers}\n"
    run = served(top + forward(server(named(b"1"))))
    (port,) = run.ports(1)
    quiet = top + 'log-format = "json"\nlog-level = "debug"\n'
    run.reload(quiet + forward(server(named(b"2"))), '"event": "reloaded"')
    until_told(port, b"2")
    run.expect('"level": "debug"')
    assert run.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a socket's backlog is")
def test_a_socket_that_stays_has_the_new_backlog() -> None:
    parser = _cli._parser()
    nothing: Any = None

    def planned(*options: str) -> Planned:
        arguments = ["forward", *options, "127.0.0.1:0", "127.0.0.1:1"]
        return Planned(parser.parse_args(arguments), lambda options: Made(nothing))

    (listener,) = listen_on(Address("127.0.0.1", 0), 5)
    with listener:
        former = listeners.Served(planned("--backlog", "5"), nothing, nothing, [[listener]])
        kept = listeners.Kept([former])
        ((found,),) = kept.find(planned("--backlog", "7", "--buffer-size", "30000"))
        with found:
            assert backlog_of(listener) == 5
            kept.settle()
            assert (backlog_of(listener), backlog_of(found)) == (7, 7)
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 60000  # twice, on Linux
            assert kept.find(planned()) == []  # somebody has it already


def backlog_of(listener: socket.socket) -> int:
    """tcp_info's tcpi_sacked (tcp_diag)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_INFO", 11), 104)
    return int(struct.unpack_from("I", info, 28)[0])


# The proxies of a command line


@both_ways
def test_a_command_reads_its_routes_again(
    workers: str, proxy: StartProxy, server: StartServer, tmp_path: Path
) -> None:
    file = tmp_path / "routes.toml"
    one, two = server(named(b"1")), server(named(b"2"))

    def to(target: Server) -> None:
        file.write_text(f'default = "{where(target)}"')

    to(one)
    run = proxy("sni", "--workers", workers, str(file), "127.0.0.1:0")
    hello = nameless_hello()

    def chosen() -> bytes:
        with run.connect() as client:
            client.sendall(hello)
            return client.recv(1)

    assert chosen() == b"1"
    file.write_text('defualt = "a:1"')
    run.signal(signal.SIGHUP)
    run.expect(f"ERROR not reloaded.*: {file}: unknown key 'defualt'; did you mean 'default'")
    assert chosen() == b"1"
    to(two)
    run.signal(signal.SIGHUP)
    run.expect("INFO reloaded$")
    until(lambda: chosen() == b"2")
    assert run.stop() == 0


def nameless_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


@both_ways
def test_a_command_reads_its_passwords_again(
    workers: str, proxy: StartProxy, server: StartServer, tmp_path: Path
) -> None:
    """A file that is broken is named at once, and not when the next client comes."""
    file = tmp_path / "passwords"
    web = server(page(b"a page"))

    def fetch(run: Proxy, password: str) -> bytes:
        through = f"socks5h://alice:{password}@127.0.0.1:{run.port}"
        return curl("--proxy", through, f"http://{where(web)}/").stdout

    file.write_text(make_entry("alice", "secret") + "\n")
    allow = ("--allow", "127.0.0.0/8")
    run = proxy("socks5", *allow, "--passwords", str(file), "--workers", workers, "127.0.0.1:0")
    assert fetch(run, "secret") == b"a page"
    file.write_text("alice:changed\nbob:changed\n")
    run.signal(signal.SIGHUP)
    for line in (1, 2):
        run.expect(f"ERROR not reloaded.*: {file}, line {line}: the line must be ")
    file.write_text(make_entry("alice", "changed") + "\n")
    run.signal(signal.SIGHUP)
    run.expect("INFO reloaded$")
    until(lambda: fetch(run, "changed") == b"a page")
    assert fetch(run, "secret") == b""
    assert run.stop() == 0


@both_ways
def test_a_command_without_files_goes_on(
    workers: str, forwarder: StartForwarder, server: StartServer
) -> None:
    run = forwarder(server(named(b"1")).address, "--workers", workers)
    with run.connect() as client:
        assert asked(client) == b"1"
        run.signal(signal.SIGHUP)
        run.expect("INFO reloaded$")
        assert asked(client) == b"1"
        assert told(run.port) == b"1"
    assert run.stop() == 0


@both_ways
def test_a_defect_in_a_reload_is_in_the_log(
    workers: str, served: StartServed, server: StartServer
) -> None:
    run = served(forward(server(named(b"1"))), "--workers", workers, patch=FAILS_LATER)
    (port,) = run.ports(1)
    run.signal(signal.SIGHUP)
    run.expect("ERROR a reload has failed, all stays as it was$")
    run.expect(r"^ +ZeroDivisionError")
    assert told(port) == b"1"
    assert run.stop() == 0


FAILS_LATER = """
import freebsd_splice._cli.reloading as reloading
def fail(*args):
    raise ZeroDivisionError
reloading._check_process = fail
"""
