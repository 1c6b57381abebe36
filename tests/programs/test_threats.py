"""What clients that mean harm try: other spellings of addresses, names that change, loops."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.cells import cell
from freebsd_splice.proxies._addresses import Address, look_up
from freebsd_splice.proxies._rules import Rules, parse_rule
from programs.clients import read_head, read_to_eof
from programs.processes import Forwarder, Proxy, Server, exchange, free_port, receive

StartProxy = Callable[..., Proxy]
StartForwarder = Callable[..., Forwarder]

#: Each stands for an address that nobody may reach without a rule, or for none at all: systems
#: differ in what they read as a number.
SPELLINGS = [
    # 127.0.0.1
    *("127.0.0.1", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f.1", "0177.1"),
    *("2130706433", "0x7f000001", "017700000001", "127.0.0.1.", "127.000.000.001"),
    *("::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:FFFF:7f00:0001", "::127.0.0.1", "::7f00:1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "::ffff:0:127.0.0.1", "2002:7f00:1::1"),
    *("64:ff9b:1::127.0.0.1", "127.255.255.254"),
    # This machine, by other names
    *("0", "0.0.0.0", "0x0", "0.1", "::", "::1", "0:0:0:0:0:0:0:1", "::ffff:0.0.0.0", "::0.0.0.0"),
    # What only this machine or its network has
    *("169.254.169.254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.254.43518"),
    *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "168.63.129.16"),
    *("10.1", "0xa.1.2.3", "012.1.2.3", "192.168.257", "100.100.100.200", "192.0.0.192"),
    *("fd00:ec2::254", "fc00::1", "fe80::1", "fe80::1%1", "fe80::a9fe:a9fe%1", "fec0::1"),
    # Everybody at once, and ways elsewhere
    *("255.255.255.255", "4294967295", "224.0.0.1", "ff02::1", "ff02::1%1", "ff0e::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.88.99.1", "2001:1::1"),
]

#: Has no name looked up: what the system reads as an address stays one, and else is none.
ADDRESSES_ALONE = """
import socket
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, flags=0, **options):
    return look_up(host, *args, flags=flags | socket.AI_NUMERICHOST, **options)
socket.getaddrinfo = getaddrinfo
"""

REFUSED_BY_RULE, HOST_UNREACHABLE = 2, 4
SOCKS_HELLO, SOCKS_WELCOME = b"\x05\x01\x00", b"\x05\x00"


@pytest.mark.parametrize("host", [*SPELLINGS, "①②⑦.0.0.1", "127。0。0。1"])
@pytest.mark.parametrize("allowed", [None, "*", "example.org"])
def test_no_spelling_gets_past_the_rules(host: str, allowed: str | None) -> None:
    rules = Rules([] if allowed is None else [parse_rule(allowed, True)])
    try:
        found = look_up(Address(host, 80), socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):  # no address: it would be looked up, and judged then
        return
    assert found
    for resolved in found:
        assert rules.refusal(host, resolved) is not None
        assert rules.refusal("www.example.org", resolved) is not None


def ask_by_socks(front: Proxy, host: str, port: int) -> int:
    """Ask for a name, whatever the host is; gives the reply."""
    with front.connect() as client:
        client.sendall(SOCKS_HELLO)
        assert receive(client, 2) == SOCKS_WELCOME
        name = host.encode()
        client.sendall(bytes([5, 1, 0, 3, len(name)]) + name + port.to_bytes(2, "big"))
        code = receive(client, 10)[1]  # with an IPv4 address behind it
        assert code or exchange(client, b"hello") == b"hello"
        return code


def ask_by_http(front: Proxy, host: str, port: int) -> int:
    """Gives the status."""
    with front.connect() as client:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        client.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        return int(read_head(client).split()[1])


def test_no_spelling_reaches_this_machine_by_socks(echo_server: Server, proxy: StartProxy) -> None:
    front = proxy("socks5", "127.0.0.1:0", patch=ADDRESSES_ALONE)
    for host in SPELLINGS:
        answered = ask_by_socks(front, host, echo_server.address[1])
        assert answered in (REFUSED_BY_RULE, HOST_UNREACHABLE), host
    assert ask_by_socks(front, "127.0.0.1\0.example", echo_server.address[1]) != 0


def test_no_spelling_reaches_this_machine_by_http(echo_server: Server, proxy: StartProxy) -> None:
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    front = proxy("connect", "127.0.0.1:0", patch=ADDRESSES_ALONE)
    for host in SPELLINGS:
        assert ask_by_http(front, host, echo_server.address[1]) in (403, 502), host
    for host in ("127.0.0.1\0.example", "127.0.0.1%00", "a@127.0.0.1", "127.0.0.1/", "127.0.0.1#"):
        assert ask_by_http(front, host, echo_server.address[1]) in (400, 502), host


#: Has the name "rebind.example" stand for another address each time that it is looked up.
REBINDING = """
import socket
from itertools import cycle
look_up = socket.getaddrinfo
answers = cycle(["127.0.0.1", "127.0.0.2"])
def getaddrinfo(host, *args, flags=0, **options):
    if host == "rebind.example" and not flags & socket.AI_NUMERICHOST:
        host = next(answers)
    return look_up(host, *args, flags=flags, **options)
socket.getaddrinfo = getaddrinfo
"""


def test_a_name_that_changes_is_connected_to_as_judged(
    echo_server: Server, proxy: StartProxy
) -> None:
    """DNS rebinding: were it looked up again for the connection, another address would answer."""
    front = proxy("socks5", "--allow", "127.0.0.1", "127.0.0.1:0", patch=REBINDING)
    port = echo_server.address[1]
    replies = [ask_by_socks(front, "rebind.example", port) for _ in range(6)]
    assert set(replies) <= {0, REFUSED_BY_RULE}
    assert 0 in replies
    assert not front.find(r"cannot connect to|-> 127\.0\.0\.2:")


def test_a_forward_to_itself_ends_at_the_clients_limit(forwarder: StartForwarder) -> None:
    """And the loop with it: the end of the one that is too many goes back through all others."""
    port = free_port()
    front = forwarder(f"127.0.0.1:{port}", "--max-per-client", "5", listen=str(port))
    with front.connect() as client:
        assert read_to_eof(client) == b""
    front.expect(r"refused: the client already has 5 connections \(--max-per-client\)")
    front.expect(rf"INFO {name_of_port(port)}.* eof", 5)
    assert front.stop() == 0


def name_of_port(port: int) -> str:
    """Any client's line that went to that port."""
    return rf"127\.0\.0\.1:\d+ -> 127\.0\.0\.1:{port}: "


#: O_CLOEXEC, as the system's own files show it.
CLOSES_ON_EXEC = 0o2000000


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says it of another process")
@pytest.mark.parametrize("workers", ["1", "2"])
@cell(
    "exec",
    "processes",
    "moving",
    sees="nothing; another program is given no descriptor",
)
def test_no_descriptor_would_pass_to_another_program(
    workers: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    """The listening sockets, the connections, and what processes and threads are woken by."""
    front = forwarder(echo_server.address, "--workers", workers)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        processes = [front.pid, *children(front.pid)]
        assert len(processes) == (1 if workers == "1" else 3)
        for process in processes:
            inheritable = [
                (number, os.readlink(f"/proc/{process}/fd/{number}"))
                for number in map(int, os.listdir(f"/proc/{process}/fd"))
                if number > 2 and not flags_of(process, number) & CLOSES_ON_EXEC
            ]
            assert inheritable == []


def children(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def flags_of(process: int, number: int) -> int:
    text = Path(f"/proc/{process}/fdinfo/{number}").read_text()
    (flags,) = re.findall(r"^flags:\s+(\d+)$", text, re.M)
    return int(flags, 8)
