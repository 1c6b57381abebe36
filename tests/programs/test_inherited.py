"""Listening sockets that systemd, or whoever speaks its protocol, has made for the program."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice._cli.inherited import inherited_listeners
from programs.processes import (
    MAIN,
    PATIENCE,
    Program,
    Server,
    _import_path,
    closing_all,
    exchange,
)

StartProgram = Callable[..., Program]

#: Makes the descriptors from 3 on, becomes freebsd-splice, and says before that who it is for.
LIKE_SYSTEMD = """
import os, socket, sys
listeners = []
for what, *host in {sockets}:
    if what == "listening":
        family = socket.AF_INET6 if ":" in host[0] else socket.AF_INET
        made = socket.create_server((host[0], 0), family=family)
    elif what == "bound":
        made = socket.socket()
        made.bind(("127.0.0.1", 0))
    elif what == "unix":
        made = socket.socket(socket.AF_UNIX)
        made.bind(host[0])
        made.listen()
    elif what == "packets":
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.bind(host[0])
        made.listen()
    elif what == "udp":
        made = socket.socket(type=socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
    else:
        made = open(os.devnull)
    listeners.append(made)
high = [os.dup(listener.fileno()) for listener in listeners]
safe = [os.dup2(descriptor, 50 + position) for position, descriptor in enumerate(high)]
for position, descriptor in enumerate(safe):
    if {sockets}[position][0] == "closed":
        os.closerange(3 + position, 4 + position)
    else:
        os.dup2(descriptor, 3 + position)
os.environ["LISTEN_FDS"] = str(len(safe))
os.environ["LISTEN_PID"] = str(os.getpid() + {other})
os.environ["LISTEN_FDNAMES"] = "unknown"
os.closerange(3 + len(safe), 100)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def like_systemd(*sockets: tuple[str, ...], other: int = 0) -> list[str]:
    return ["-c", LIKE_SYSTEMD.format(sockets=list(sockets), other=other)]


def forward(server: Server, *options: str) -> list[str]:
    """With a LISTEN that nobody may listen on: it is not looked at."""
    return [*MAIN, "forward", *options, "192.0.2.1:1", "{}:{}".format(*server.address)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_sockets_that_are_passed_are_listened_on(
    workers: str, echo_server: Server, program: StartProgram
) -> None:
    passed = like_systemd(("listening", "127.0.0.1"), ("listening", "::1"))
    options = ["--workers", workers, "--backlog", str(2**31 - 1)]
    front = program(*passed, *forward(echo_server, *options))
    addresses = [
        (found[1].strip("[]"), int(found[2]))
        for found in front.expect(r"listening on (.+):(\d+)$", 2)
    ]
    assert [host for host, _ in addresses] == ["127.0.0.1", "::1"]
    with closing_all() as clients:
        for address in 5 * addresses:
            clients.append(socket.create_connection(address, PATIENCE))
            assert exchange(clients[-1], b"hello") == b"hello"
    front.signal(15)
    assert front.end() == 0
    assert len(front.find("listening on")) == 2
    assert len(front.find("5 bytes up")) == 10
    assert not front.find("backlog")  # that of others' sockets is theirs


def test_a_unix_socket_can_be_passed(
    echo_server: Server, program: StartProgram, tmp_path: Path
) -> None:
    """Its file is that of whoever has made it, and stays."""
    path = tmp_path / "socket"
    front = program(*like_systemd(("unix", str(path))), *forward(echo_server))
    front.expect(f"listening on unix:{re.escape(str(path))}$")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert exchange(client, b"hello") == b"hello"
    front.signal(15)
    assert front.end() == 0
    assert path.exists()


def test_those_for_another_process_are_left_alone(
    echo_server: Server, program: StartProgram
) -> None:
    passed = like_systemd(("listening", "127.0.0.1"), other=1)
    front = program(*passed, *forward(echo_server))
    assert front.end() == 1
    assert front.text.startswith("freebsd-splice: cannot listen on 192.0.2.1:1: ")


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("bound", "descriptor 4 of LISTEN_FDS does not listen"),
        ("udp", "descriptor 4 of LISTEN_FDS does not listen"),
        ("packets", "descriptor 4 of LISTEN_FDS does not listen"),
        ("file", "descriptor 4 of LISTEN_FDS: .*[Ss]ocket.*"),
        ("closed", "descriptor 4 of LISTEN_FDS: Bad file descriptor"),
    ],
)
def test_what_cannot_be_listened_on_is_said_in_a_line(
    what: str, wrong: str, echo_server: Server, program: StartProgram, tmp_path: object
) -> None:
    passed = like_systemd(("listening", "127.0.0.1"), (what, f"{tmp_path}/unix"))
    front = program(*passed, *forward(echo_server))
    assert front.end() == 1
    (line,) = front.lines
    assert re.fullmatch(f"freebsd-splice: {wrong}", line), line


def test_nobody_else_is_told_of_them_or_given_them(
    echo_server: Server, program: StartProgram
) -> None:
    look = f"""
import os, sys
from freebsd_splice._cli import main, serving
async def say(servers, served, *_):
    print("left", [name for name in os.environ if name.startswith("LISTEN_")])
    print("inheritable", [listener.get_inheritable() for listener in served[0].listeners[0]])
serving._run = say
sys.exit(main({forward(echo_server)[2:]}))
"""
    front = program(*like_systemd(("listening", "127.0.0.1")), "-c", look)
    assert front.end() == 0
    assert front.lines == ["left []", "inheritable [False]"]


def test_accepted_sockets_have_the_buffers_asked_for(
    echo_server: Server, program: StartProgram
) -> None:
    look = f"""
import socket, sys
from freebsd_splice._cli import main, serving
async def say(servers, served, *_):
    sizes = [
        listener.getsockopt(socket.SOL_SOCKET, option)
        for listener in served[0].listeners[0]
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)
    ]
    print("as asked", [size in (30000, 60000) for size in sizes])  # Linux says twice as much
serving._run = say
sys.exit(main({forward(echo_server, "--buffer-size", "30000")[2:]}))
"""
    front = program(*like_systemd(("listening", "127.0.0.1")), "-c", look)
    assert front.end() == 0
    assert front.lines == ["as asked [True, True]"]


@pytest.mark.parametrize(
    ("pid", "number"), [(None, "1"), ("self", None), ("self", "0"), ("self", "x"), ("x", "1")]
)
def test_what_is_not_said_as_systemd_says_it_is_not_meant(
    pid: str | None, number: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"LISTEN_PID": str(os.getpid()) if pid == "self" else pid, "LISTEN_FDS": number}
    for name, value in given.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert inherited_listeners(None) == []
    assert not {"LISTEN_PID", "LISTEN_FDS"} & set(os.environ)


def test_a_socket_that_listens_no_more_ends_it_in_one_line(
    echo_server: Server,
) -> None:
    """Whoever has given it can have shut it down."""
    start = (
        "import os, sys; os.dup2({number}, 3); os.set_inheritable(3, True); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
        "os.execv(sys.executable, [sys.executable, *{arguments}])"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        given = start.format(number=listener.fileno(), arguments=forward(echo_server))
        program = subprocess.Popen(
            [sys.executable, "-c", given],
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[listener.fileno()],
            env={**os.environ, **_import_path()},
        )
        with program:
            assert program.stderr is not None
            lines = [program.stderr.readline()]
            assert "listening on" in lines[0]
            listener.shutdown(socket.SHUT_RDWR)
            lines += program.stderr.readlines()
            assert program.wait(PATIENCE) == 1
    assert "Traceback" not in "".join(lines)
    assert lines[-1].startswith("freebsd-splice: 127.0.0.1:")
    assert "accepts no clients any more" in lines[-1]
