"""Targets that refuse, don't answer, don't exist, or have several addresses."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable

from faults.cells import cell
from programs.processes import Forwarder, Server, exchange, receive

StartForwarder = Callable[..., Forwarder]

#: Gives the name "several.example" two addresses.
NAME_WITH_TWO_ADDRESSES = """
import socket
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, flags=0, **options):
    if host == "several.example" and not flags:
        return look_up("::1", *args, **options) + look_up("127.0.0.1", *args, **options)
    return look_up(host, *args, flags=flags, **options)
socket.getaddrinfo = getaddrinfo
"""


@cell(
    "the peer resets",
    "forward",
    "dialling",
    sees="of the only target: `cannot connect to … (Connection refused)` in the log",
)
def test_a_target_that_refuses_costs_only_that_client(
    refusing: socket.socket, forwarder: StartForwarder
) -> None:
    front = forwarder(refusing.getsockname())
    with front.connect() as client:
        assert client.recv(1) == b""
        name = "{}:{}".format(*client.getsockname())
    where = "{}:{}".format(*refusing.getsockname())
    reason = rf"cannot connect to {where} \({where}: Connection refused\)"
    assert front.expect(f"WARNING {name}: {reason}$")

    refusing.listen()
    with front.connect() as client, refusing.accept()[0] as accepted:
        accepted.sendall(b"hello")
        assert receive(client, 5) == b"hello"


@cell(
    "the name server is dead or slow",
    "forward",
    "dialling",
    sees="the client is closed; `cannot look up …` in the log",
)
def test_a_name_that_cannot_be_looked_up_costs_only_that_client(
    forwarder: StartForwarder,
) -> None:
    front = forwarder("no-such-host.invalid:80")
    for number in (1, 2):
        with front.connect() as client:
            assert client.recv(1) == b""
        front.expect(r"WARNING 127\.0\.0\.1:\d+: cannot look up no-such-host\.invalid: \S+", number)
    assert front.stop() == 0


def test_the_addresses_of_a_name_are_tried_in_turn(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    port = echo_server.address[1]
    front = forwarder(f"several.example:{port}", patch=NAME_WITH_TWO_ADDRESSES)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.expect(rf"-> 127\.0\.0\.1:{port}: 5 bytes up")
    assert not front.find("WARNING")


def test_when_none_of_them_answers_the_log_says_what_each_did(
    refusing: socket.socket, forwarder: StartForwarder
) -> None:
    port = refusing.getsockname()[1]
    front = forwarder(f"several.example:{port}", patch=NAME_WITH_TWO_ADDRESSES)
    with front.connect() as client:
        assert client.recv(1) == b""
    each = rf"\[::1\]:{port}: [^;]+; 127\.0\.0\.1:{port}: Connection refused"
    assert front.expect(rf"cannot connect to several\.example:{port} \({each}\)$")


@cell(
    "the peer vanishes",
    "forward",
    "dialling",
    sees="the client is closed; `no answer in time, see --connect-timeout` in the log",
)
def test_a_silent_target_is_given_up_after_the_connect_timeout(
    silent: socket.socket, forwarder: StartForwarder
) -> None:
    front = forwarder(silent.getsockname(), "--connect-timeout", "0.5")
    with front.connect() as client:
        start = time.monotonic()
        assert client.recv(1) == b""
        assert time.monotonic() - start > 0.4
    assert front.expect(r"WARNING .*: no answer in time, see --connect-timeout\)$")


def test_attempts_that_are_under_way_end_with_the_forwarder(
    silent: socket.socket, forwarder: StartForwarder
) -> None:
    options = ["--connect-timeout", "1000", "--grace", "0.1", "--log-level", "debug"]
    front = forwarder(silent.getsockname(), *options)
    clients = [front.connect() for _ in range(3)]
    front.expect("DEBUG .*: accepted", 3)
    front.signal(signal.SIGTERM)
    assert front.end() == 0
    assert front.find("cutting 3 connections")
    for client in clients:
        with client:
            assert client.recv(1) == b""
