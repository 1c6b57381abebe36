"""Starting and stopping: signals, exit statuses, errors in one line."""

from __future__ import annotations

import re
import signal
import socket
import sys
import time
from collections.abc import Callable

import pytest

import freebsd_splice
from programs.processes import (
    MAIN,
    Forwarder,
    Program,
    Server,
    digest_to_eof,
    echo,
    exchange,
    until,
)

StartForwarder = Callable[..., Forwarder]
StartProgram = Callable[..., Program]

#: Makes every look-up of a name last until the end.
NAME_SERVER_THAT_IS_GONE = """
import socket, sys, threading
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, flags=0, **options):
    if host == "gone.example" and not flags:
        print("asked", file=sys.stderr, flush=True)
        threading.Event().wait()
    return look_up(host, *args, flags=flags, **options)
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(
    number: signal.Signals, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address)
    assert front.port
    front.signal(number)
    assert front.end() == 0
    assert [line.split(" ", 2)[2] for line in front.lines] == [
        f"INFO listening on 127.0.0.1:{front.port}",
        "INFO stopping: 0 connections live, 10 s left",
    ]


def test_a_live_connection_may_end_within_the_grace_time(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--grace", "1000")
    with front.connect() as client:
        assert exchange(client, b"before") == b"before"
        front.signal(signal.SIGTERM)
        front.expect("stopping: 1 connections live, 1000 s left")
        with pytest.raises(ConnectionRefusedError):
            front.connect()
        assert exchange(client, b"after") == b"after"
    assert front.end() == 0
    assert front.expect("11 bytes up, 11 bytes down, eof")


def test_what_is_live_after_the_grace_time_is_cut(
    server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    """Both sides see a reset: an EOF would say that they have got everything."""
    seen: list[type[OSError]] = []

    def serve(connection: socket.socket) -> None:
        try:
            echo(connection)
        except OSError as error:
            seen.append(type(error))

    front = forwarder(server(serve).address, "--grace", "0.5")
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        start = time.monotonic()
        front.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert time.monotonic() - start >= 0.5
    assert front.end() == 0
    assert front.find("WARNING cutting 1 connections")
    assert front.find("5 bytes up, 5 bytes down, cancelled")
    until(lambda: seen)
    assert seen == [ConnectionResetError]


def test_a_second_signal_cuts_at_once(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, "--grace", "1000")
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        front.signal(signal.SIGTERM)
        front.expect("stopping")
        front.signal(signal.SIGINT)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert front.end() == 0


def test_no_name_server_can_keep_it_from_ending(forwarder: StartForwarder) -> None:
    front = forwarder("gone.example:80", "--grace", "0.1", patch=NAME_SERVER_THAT_IS_GONE)
    with front.connect() as client:
        front.expect("asked")
        assert front.stop() == 0
        assert client.recv(1) == b""


def test_it_can_be_started_again_at_once(
    server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    """Although the system remembers for a while the connections that it closed first."""

    def greet(connection: socket.socket) -> None:
        connection.sendall(b"hello")

    target = server(greet).address
    port = 0
    for _ in range(2):
        front = forwarder(target, listen=f"127.0.0.1:{port}")
        port = front.port
        with front.connect() as client:
            assert digest_to_eof(client)[0] == 5
        front.expect("eof")
        assert front.stop() == 0


def test_a_port_in_use(echo_server: Server, program: StartProgram) -> None:
    where = "{}:{}".format(*echo_server.address)
    assert _failure(program(*MAIN, "forward", where, "127.0.0.1:80")) == (
        f"freebsd-splice: cannot listen on {where}: Address already in use"
    )


def test_a_name_to_listen_on_that_cannot_be_looked_up(program: StartProgram) -> None:
    text = _failure(program(*MAIN, "forward", "no-such-host.invalid:80", "127.0.0.1:80"))
    assert text.startswith("freebsd-splice: cannot look up no-such-host.invalid:80: ")


def test_an_address_of_another_machine(program: StartProgram) -> None:
    text = _failure(program(*MAIN, "forward", "192.0.2.1:0", "127.0.0.1:80"))
    assert text.startswith("freebsd-splice: cannot listen on 192.0.2.1:0: ")


@pytest.mark.parametrize(
    ("listen", "target", "text"),
    [
        ("http://a:80", "a:1", "LISTEN: 'http://a:80': not a URL: write host:port"),
        ("localhost:80", "http://a:80", "TARGET: 'http://a:80': not a URL: write host:port"),
        ("local", "a:1", "LISTEN: 'local' is not an address: write host:port or [v6]:port"),
        ("localhost:80", ":80", "TARGET: ':80' has no host to connect to: write host:port"),
        ("a:99999", "a:1", "LISTEN: 'a:99999': the port must be a number from 0 to 65535"),
    ],
)
def test_what_is_no_address(listen: str, target: str, text: str, program: StartProgram) -> None:
    run = program(*MAIN, "forward", listen, target)
    assert run.end() == 2
    complaint = f'error: argument {text}; see "freebsd-splice forward --help"'
    assert run.lines == [f"freebsd-splice forward: {complaint}"]


@pytest.mark.parametrize(
    ("variable", "value"), [("FREEBSD_SPLICE_BACKEND", "mach"), ("FREEBSD_SPLICE_MOVER", "van")]
)
def test_a_wrong_environment_variable(variable: str, value: str, program: StartProgram) -> None:
    arguments = [*MAIN, "forward", "127.0.0.1:0", "127.0.0.1:80"]
    text = _failure(program(*arguments, environment={variable: value}))
    assert variable in text
    assert value in text


@pytest.mark.skipif(sys.platform.startswith(("freebsd", "openbsd")), reason="has SO_SPLICE")
def test_a_backend_that_is_not_there(program: StartProgram) -> None:
    environment = {"FREEBSD_SPLICE_BACKEND": "kernel"}
    text = _failure(program(*MAIN, "forward", "127.0.0.1:0", "a:80", environment=environment))
    assert text.startswith("freebsd-splice: FREEBSD_SPLICE_BACKEND=kernel: ")


@pytest.mark.parametrize(
    "options",
    [
        ["--idle-timeout", "-1"],
        ["--connect-timeout", "-1"],
        ["--connect-timeout", "nan"],
        ["--grace", "inf"],
        ["--backlog", "0"],
        ["--backlog", "many"],
        ["--log-level", "loud"],
        ["--workers", "0"],
        ["--max-per-client", "0"],
        ["--user", "no-such-user"],
        ["--transparent", "--user", "root"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(options: list[str], program: StartProgram) -> None:
    run = program(*MAIN, "forward", "127.0.0.1:0", "127.0.0.1:80", *options)
    assert run.end() == 2
    (line,) = run.lines
    assert re.fullmatch(
        r'freebsd-splice( forward)?: error: .*; see "freebsd-splice( forward)? --help"', line
    )


@pytest.mark.parametrize(
    "arguments",
    [[], ["forwards"], ["forward"], ["sni"], ["password"], ["password", "a:b"]],
    ids=str,
)
def test_a_wrong_command_line_is_one_line_with_the_help(
    arguments: list[str], program: StartProgram
) -> None:
    run = program(*MAIN, *arguments)
    assert run.end() == 2
    (line,) = run.lines
    where = " ".join(["freebsd-splice", *arguments[:1]]) if arguments != ["forwards"] else line[:14]
    assert line.startswith(f"{where}: error: ")
    assert line.endswith(f'; see "{where} --help"')


def test_help_has_an_example_of_each_command(program: StartProgram) -> None:
    commands = ("forward", "connect", "socks5", "sni", "password", "selftest", "info")
    for command in ([], *([name] for name in commands)):
        run = program(*MAIN, *command, "--help")
        assert run.end() == 0
        assert re.search(rf"examples?:\n  (\w+=\w+ )?freebsd-splice {' '.join(command)}", run.text)


def test_the_version(program: StartProgram) -> None:
    run = program(*MAIN, "--version")
    assert run.end() == 0
    assert run.lines == [f"freebsd-splice {freebsd_splice.__version__}"]


def _failure(run: Program) -> str:
    """The one line that a program ends with, whose status is 1."""
    assert run.end() == 1, run.text
    (line,) = run.lines
    return line
