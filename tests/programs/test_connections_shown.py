"""SIGUSR1, and SIGINFO where there is one: the log shows who is connected."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice._cli import inspection
from freebsd_splice._cli.connections import table
from freebsd_splice._cli.signals import SHOWING
from freebsd_splice.proxies import Address
from freebsd_splice.proxies._passwords import make_entry
from programs.clients import ALLOW_LOOPBACK, name_of
from programs.every_backend import BACKENDS
from programs.processes import (
    PATIENCE,
    Forwarder,
    Proxy,
    Server,
    closing_all,
    exchange,
    free_port,
    receive,
    until,
)
from programs.test_signals import BLOCKED, IGNORED, OWN_GROUP
from programs.test_sni import hello, nameless

StartForwarder = Callable[..., Forwarder]
StartProxy = Callable[..., Proxy]

COLUMNS = "CLIENT +TARGET +UP +DOWN +SECONDS +BY"


def shown(front: Proxy, times: int = 1) -> None:
    front.signal(signal.SIGUSR1)
    front.expect("connections live$", times)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_has_who_and_how_much(
    backend: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, environment=BACKENDS[backend])
    target = "{}:{}".format(*echo_server.address)
    assert front.port  # from here on it handles signals
    shown(front)
    assert len(front.find("INFO 0 connections live$")) == 1
    with front.connect() as client, front.connect() as another:
        assert exchange(client, bytes(100_000)) == bytes(100_000)
        assert exchange(another, b"x") == b"x"
        shown(front, 2)
        # What its last turn moved may not be counted yet.
        front.expect(rf"INFO {name_of(client)} +{target} +\d+ +\d+ +\d+\.\d  {backend}$")
        assert exchange(another, b"x") == b"x"
        shown(front, 3)
        front.expect(rf"INFO {name_of(client)} +{target} +100000 +100000 +\d+\.\d  {backend}$")
        front.expect(rf"INFO {name_of(another)} +{target} +\d +\d +\d+\.\d  {backend}$", 2)
    assert len(front.find(f"INFO 2 connections live$|INFO {COLUMNS}$")) == 4
    assert front.stop() == 0
    assert not front.find("ERROR|Traceback|WARNING")


def test_the_oldest_is_shown_first(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address)
    with closing_all() as clients:
        for _ in range(5):
            clients.append(front.connect())
            assert exchange(clients[-1], b"x") == b"x"
        shown(front)
        lines = front.expect(r"INFO (127\.0\.0\.1:\d+) .* \d+\.\d  \w+/[\w.]+$", 5)
        names = ["{}:{}".format(*client.getsockname()) for client in clients]
        assert [line[1] for line in lines] == names


def test_all_workers_show_theirs_once(echo_server: Server, forwarder: StartForwarder) -> None:
    """A terminal sends Ctrl-T's SIGINFO to all processes of the command."""
    front = forwarder(echo_server.address, "--workers", "3", patch=OWN_GROUP)
    with closing_all() as clients:
        for _ in range(12):
            clients.append(front.connect())
            assert exchange(clients[-1], b"x") == b"x"
        os.killpg(front.pid, SHOWING[-1])
        counts = [int(line[1]) for line in front.expect(r"INFO (\d+) connections live$", 3)]
        assert sum(counts) == 12
        for client in clients:
            front.expect(rf"\[\d+\] INFO {name_of(client)} ")
            assert exchange(client, b"x") == b"x"
    assert front.stop() == 0
    assert len(front.find("connections live$")) == 3


@pytest.mark.parametrize("number", SHOWING, ids=lambda number: number.name)
@pytest.mark.parametrize("start", ["", BLOCKED, IGNORED], ids=["as usual", "blocked", "ignored"])
def test_it_is_shown_however_the_program_was_started(
    start: str, number: signal.Signals, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, patch=start)
    with front.connect() as client:
        assert exchange(client, b"x") == b"x"
        front.signal(number)
        front.expect(rf"INFO {name_of(client)} ")
    assert front.stop() == 0


def test_it_is_shown_whatever_the_log_leaves_out(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    port = free_port()  # the log doesn't say which
    front = forwarder(echo_server.address, "--log-level", "error", listen=f"127.0.0.1:{port}")
    with connect_in_time(port) as client:
        assert exchange(client, b"x") == b"x"
        shown(front)
        front.expect(rf"INFO {name_of(client)} ")


def connect_in_time(port: int) -> socket.socket:
    """A client of a program that may not listen yet."""
    found: list[socket.socket] = []

    def connect() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            found.append(socket.create_connection(("127.0.0.1", port), PATIENCE))
        return bool(found)

    until(connect)
    return found[0]


def test_what_clients_say_is_shown_and_escaped(
    echo_server: Server, proxy: StartProxy, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(make_entry("a live", "secret") + "\n")
    front = proxy("socks5", *ALLOW_LOOPBACK, "--passwords", str(passwords), "127.0.0.1:0")
    with front.connect() as silent, front.connect() as client:
        client.sendall(b"\5\1\2")
        receive(client, 2)
        client.sendall(b"\1\6a live\6secret")
        receive(client, 2)
        client.sendall(b"\5\1\0\3\x09localhost" + echo_server.address[1].to_bytes(2, "big"))
        receive(client, 10)
        shown(front)
        name = f"localhost:{echo_server.address[1]}"
        front.expect(rf"INFO {name_of(client)} +\S+ +\d+ +\d+ +\d+\.\d +\S+ +'a live' +{name}$")
        front.expect(rf"INFO {name_of(silent)} +- +- +- +\d+\.\d +- +- +-$")
        assert front.find(f"INFO {COLUMNS} +USER +NAME$")


def test_who_connected_for_a_client_is_shown(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--accept-proxy", "127.0.0.1")
    with front.connect() as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 80\r\n")
        assert exchange(client, b"hello") == b"hello"
        shown(front)
        front.expect(rf"INFO 192\.0\.2\.7:40000 +{name_of(client)} +127\.0\.0\.1:\d+ +\d+ +\d+ ")
        assert front.find("INFO CLIENT +VIA +TARGET ")


def test_for_programs_a_row_is_an_object(
    echo_server: Server, proxy: StartProxy, tmp_path: Path
) -> None:
    routes = tmp_path / "routes.toml"
    routes.write_text('default = "{}:{}"\n'.format(*echo_server.address))
    front = proxy("sni", "--log-format", "json", str(routes), "127.0.0.1:0")
    port = int(front.expect(r'"address": "127\.0\.0\.1:(\d+)"')[0][1])
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        said, _, _ = hello(nameless(), "www.example.org")
        client.sendall(said)
        assert receive(client, len(said)) == said
        front.signal(signal.SIGUSR1)
        front.expect('"live connection"')
        (line,) = (json.loads(line) for line in front.lines if '"live connection"' in line)
        name = "{}:{}".format(*client.getsockname())
    assert line["client"] == name
    assert line["target"] == "{}:{}".format(*echo_server.address)
    assert line["server_name"] == "www.example.org"
    assert 0 <= line["bytes_down"] <= len(said)
    assert 0 < line["seconds"] < 30
    assert len(line["backend"]) == 1
    assert any(
        json.loads(line).get("event") == "connections live" and json.loads(line)["connections"] == 1
        for line in front.lines
    )


def test_columns_are_aligned_and_empty_ones_left_out() -> None:
    heading = ("CLIENT", "VIA", "TARGET", "UP", "DOWN", "SECONDS", "BY", "USER", "NAME")
    first = ("192.0.2.7:40000", "-", "-", "-", "-", "0.1", "-", "-", "-")
    second = ("c" * 60, "-", "[::1]:80", "7", "1234567", "100.0", "kernel/SO_SPLICE", "-", "'a b'")
    assert table([heading, first, second]) == [
        f"{'CLIENT':47}  TARGET    UP     DOWN  SECONDS  BY                NAME",
        f"{'192.0.2.7:40000':47}  -          -        -      0.1  -                 -",
        f"{'c' * 60}  [::1]:80   7  1234567    100.0  kernel/SO_SPLICE  'a b'",
    ]


def test_two_signals_in_a_row_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where no thread can be started, the next signal tries again."""
    started: list[str] = []

    def start(run: Callable[[], object], name: str) -> None:
        started.append(name)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(inspection, "start_thread", start)
    made = inspection.Inspection(Namespace(metrics=None))
    made.log_connections()
    made.log_connections()
    assert started == ["connections"]
    made._log_connections()
    made.log_connections()
    made.log_connections()
    assert len(started) == 3


def test_a_table_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(live: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(inspection, "log_connections", fail)
    made = inspection.Inspection(Namespace(metrics=None))
    assert made._dumping.acquire(blocking=False)
    with pytest.raises(ZeroDivisionError):
        made._log_connections()
    assert not made._dumping.locked()


def test_metrics_that_fail_at_once_end_no_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their sockets may be closed before it is said where they can be read."""
    pytest.importorskip("h11", reason="it parses the scrapers' requests")
    pytest.importorskip("prometheus_client")
    caplog.set_level(logging.INFO)
    made = inspection.Inspection(Namespace(metrics=Address("127.0.0.1", 0), takeover=None))
    exposition, (listener,) = made._exposition, made._listeners
    assert exposition is not None
    port = listener.getsockname()[1]
    start = exposition.start

    def start_and_fail() -> None:
        start()
        assert exposition._thread is not None
        exposition._thread.join(PATIENCE)

    async def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(exposition, "_serve", fail)
    monkeypatch.setattr(exposition, "start", start_and_fail)
    made.start()
    assert f"metrics: http://127.0.0.1:{port}/metrics" in caplog.text
