"""What a reload, a restart by --takeover and Unix sockets have to do with each other."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice import _cli
from freebsd_splice._cli import handover, listeners
from freebsd_splice._cli.options import UsageError
from freebsd_splice._cli.plan import Made, Planned
from freebsd_splice._cli.takeover import Takeover
from freebsd_splice.proxies import UnixAddress
from freebsd_splice.proxies._listening import close_listener, listen_on
from programs.clients import no_accidents
from programs.processes import (
    PATIENCE,
    Proxy,
    Served,
    Server,
    connect_to,
    exchange,
    is_refused,
    until,
    where,
)

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

StartServed = Callable[..., Served]
StartServer = Callable[..., Server]

both_ways = pytest.mark.parametrize("workers", ["1", "2"])

HANDED_OVER = "another process has taken the listening sockets over"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "listen"


def named(name: bytes) -> Callable[[socket.socket], None]:
    """A server that answers everything with its name."""

    def answer(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            connection.sendall(name)

    return answer


def forward(server: Server, *listen: str, more: str = "") -> str:
    tables = (
        f'[[forward]]\nlisten = "{each}"\ntarget = "{where(server)}"\n{more}\n' for each in listen
    )
    return "".join(tables)


def at(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def told(client: socket.socket) -> bytes:
    """Which server a new client gets."""
    with client:
        client.sendall(b"?")
        return client.recv(1)


# Reloads


@both_ways
def test_a_unix_socket_stays_as_long_as_it_is_wanted(
    workers: str, path: Path, served: StartServed, server: StartServer
) -> None:
    old, new = server(named(b"1")), server(named(b"2"))
    tcp = forward(old, "127.0.0.1:0")
    run = served(tcp + forward(old, f"unix:{path}"), "--workers", workers)
    run.expect(f"listening on unix:{re.escape(str(path))}$")
    made = path.stat().st_ino
    for times in (1, 2):  # and the file of the duplicate of a duplicate
        run.reload(tcp + forward(new, f"unix:{path}", more='socket-mode = "660"'), times=times)
        until(lambda: told(at(path)) == b"2")
        assert path.stat().st_ino == made
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    run.reload(tcp, times=3)
    until(lambda: not path.exists())
    run.reload(tcp + forward(new, f"unix:{path}"), times=4)
    until(lambda: path.exists() and told(at(path)) == b"2")
    assert run.stop() == 0
    assert not path.exists()
    no_accidents(run)


@both_ways
def test_a_reload_that_fails_leaves_unix_sockets_alone(
    workers: str, path: Path, served: StartServed, echo_server: Server
) -> None:
    text = forward(echo_server, f"unix:{path}")
    run = served(text, "--workers", workers)
    run.expect("listening on unix:")
    nowhere = path.parent / "nowhere" / "listen"
    refusal = f"not reloaded, .* cannot listen on unix:{re.escape(str(nowhere))}"
    run.reload(text + forward(echo_server, f"unix:{nowhere}"), refusal)
    with at(path) as client:
        assert exchange(client, b"hello") == b"hello"
    assert run.stop() == 0
    assert not path.exists()


def test_the_mode_of_a_file_of_another_user_takes_a_restart(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after --user: the file is root's."""

    def planned(*options: str) -> Planned:
        arguments = ["forward", *options, f"unix:{path}", "127.0.0.1:1"]
        return Planned(_cli._parser().parse_args(arguments), lambda options: Made(None))  # type: ignore[arg-type]

    (listener,) = listen_on(UnixAddress(str(path)), 5)
    try:
        served = listeners.Served(planned(), None, None, [[listener]])  # type: ignore[arg-type]
        kept = listeners.Kept([served])
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
        with pytest.raises(UsageError, match=r"socket-mode: .* is another user's"):
            kept.find(planned("--socket-mode", "660"))
        listeners.close(kept.find(planned()))
    finally:
        close_listener(listener)
    assert not path.exists()


def test_two_proxies_cannot_have_one_path(served: StartServed, path: Path) -> None:
    table = f'[[socks5]]\nlisten = "unix:{path}"\n'
    run = served(2 * table, "--check")
    assert run.end() == 2
    (line,) = run.lines
    assert line.endswith(f"[[socks5]] 2: listen: [[socks5]] 1 listens on unix:{path} as well")


# Takeovers


@both_ways
def test_each_proxy_takes_over_what_it_listens_on(
    workers: str, path: Path, served: StartServed, server: StartServer, tmp_path: Path
) -> None:
    """Of two with port 0 each gets the port that its place in the file had."""
    one, two, three = (server(named(name)) for name in (b"1", b"2", b"3"))
    takeover = f'takeover = "{tmp_path / "next"}"\n'
    first = served(
        takeover
        + forward(one, "127.0.0.1:0")
        + forward(two, "127.0.0.1:0")
        + forward(three, f"unix:{path}"),
        *("--workers", workers),
    )
    ports = first.ports(2)
    first.expect("listening on unix:")
    made = path.stat().st_ino
    assert [told(connect_to(port)) for port in ports] == [b"1", b"2"]
    second = served(
        takeover
        + forward(two, "127.0.0.1:0", f"127.0.0.1:{ports[1]}", f"unix:{path}")
        + forward(three, "127.0.0.1:0"),
        *("--workers", "2"),
    )
    first.expect(HANDED_OVER)
    assert first.end() == 0
    new = second.ports(3)
    assert new[:2] == ports
    assert [told(connect_to(port)) for port in new] == [b"2", b"2", b"3"]
    assert told(at(path)) == b"2"
    assert path.stat().st_ino == made
    assert not second.find("not listened on any more")
    assert second.stop() == 0
    assert not path.exists()
    assert not (tmp_path / "next").exists()
    no_accidents(first)
    no_accidents(second)


@both_ways
def test_what_a_reload_has_brought_is_taken_over(
    workers: str, path: Path, served: StartServed, echo_server: Server, tmp_path: Path
) -> None:
    takeover = f'takeover = "{tmp_path / "next"}"\n'
    options = ("--workers", workers)
    first = served(takeover + forward(echo_server, "127.0.0.1:0"), *options)
    (gone,) = first.ports(1)
    first.reload(takeover + forward(echo_server, "[::1]:0", f"unix:{path}"))
    (found,) = first.expect(r"listening on \[::1\]:(\d+)$")
    first.expect("listening on unix:")
    until(lambda: is_refused(("127.0.0.1", gone)))
    listen = f"[::1]:{found[1]}"
    second = served(takeover + forward(echo_server, listen, f"unix:{path}"), *options)
    first.expect(HANDED_OVER)
    assert first.end() == 0
    assert not second.find("not listened on any more")
    with at(path) as client:
        assert exchange(client, b"hello") == b"hello"
    with socket.create_connection(("::1", int(found[1])), PATIENCE) as client:
        assert exchange(client, b"hello") == b"hello"
    assert second.stop() == 0
    no_accidents(first)


@both_ways
def test_a_takeover_while_others_finish(
    workers: str,
    served: StartServed,
    proxy: Callable[..., Proxy],
    server: StartServer,
    tmp_path: Path,
) -> None:
    """Connections from before a reload have their grace as those from after it have."""
    old, new = server(named(b"1")), server(named(b"2"))
    takeover = f'takeover = "{tmp_path / "next"}"\ngrace = 1000\n'
    first = served(takeover + forward(old, "127.0.0.1:0"), "--workers", workers)
    (port,) = first.ports(1)
    with connect_to(port) as before:
        assert exchange(before, b"?") == b"1"
        first.path.write_text(takeover + forward(new, "127.0.0.1:0"))
        first.signal(signal.SIGHUP)
        second = proxy("serve", "--workers", workers, str(first.path))
        first.expect(HANDED_OVER)
        assert exchange(before, b"?") == b"1"
        assert told(connect_to(port)) == b"2"
    assert first.end() == 0
    assert second.stop() == 0
    no_accidents(first)
    assert not first.find("cutting")


def test_what_cannot_be_handed_over_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process goes on, and lets go of the sockets from before."""
    takeover = Takeover(str(tmp_path / "next"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        takeover.listen([[listener]])
        takeover.serve([[listener]], lambda: None)
        where = listener.getsockname()

        def fail(sets: object) -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(handover, "_duplicates", fail)
        takeover.replace([[listener]])
    takeover.close()
    assert "cannot take the listening sockets over: Too many open files" in caplog.text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, PATIENCE)
