"""--pledge: what a process gives up before it serves, and that it still serves then."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice._platform import pledge as pledge_module
from freebsd_splice._platform.pledge import pledge, why_no_pledge
from freebsd_splice.proxies._passwords import make_entry
from programs.processes import MAIN, PATIENCE, Forwarder, Program, Proxy, Server, exchange, receive

StartForwarder = Callable[..., Forwarder]
StartProgram = Callable[..., Program]
StartProxy = Callable[..., Proxy]

on_openbsd = pytest.mark.skipif(
    not sys.platform.startswith("openbsd"), reason="only OpenBSD has pledge(2)"
)
elsewhere = pytest.mark.skipif(
    sys.platform.startswith("openbsd"), reason="OpenBSD has pledge(2) itself"
)

#: Says when it is called, and whether the sockets are there and nobody has been accepted by then.
RECORDED = r"""
import os
import freebsd_splice._cli.pledging as pledging
import freebsd_splice.proxies._server as server
pledging.why_no_pledge = lambda: None
pledging.pledge = lambda promises: os.write(2, f"pledged: {promises}\n".encode())
run = server.ProxyServer.run
async def say(self):
    os.write(2, b"serving\n")
    await run(self)
server.ProxyServer.run = say
"""


@elsewhere
@pytest.mark.parametrize("workers", [1, 2])
def test_each_process_that_serves_gives_up_the_rest_before(
    workers: int, echo_server: Server, forwarder: StartForwarder
) -> None:
    options = ("--pledge", "--workers", str(workers))
    front = forwarder(echo_server.address, *options, patch=RECORDED)
    front.expect("^serving$", workers)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    said = [line for line in front.lines if line in ("serving", PLEDGED)]
    assert sorted(said) == workers * [PLEDGED] + workers * ["serving"]
    for position in range(len(said)):
        assert said[: position + 1].count(PLEDGED) >= said[: position + 1].count("serving")
    assert front.stop() == 0


PLEDGED = "pledged: stdio rpath inet dns error"


@elsewhere
@pytest.mark.parametrize(
    ("workers", "listen", "target", "options", "more"),
    [
        ("1", "unix:{}/listen", None, (), "unix cpath fattr"),
        ("2", "unix:{}/listen", None, (), "unix"),
        ("1", "127.0.0.1:0", "unix:{}/target", (), "unix"),
        ("2", "127.0.0.1:0", "unix:{}/target", (), "unix"),
        ("1", "127.0.0.1:0", None, ("--takeover", "{}/next"), "unix sendfd cpath"),
        ("2", "127.0.0.1:0", None, ("--takeover", "{}/next"), ""),
    ],
)
def test_unix_sockets_are_kept_where_they_are_used(
    workers: str,
    listen: str,
    target: str | None,
    options: tuple[str, ...],
    more: str,
    echo_server: Server,
    forwarder: StartForwarder,
    tmp_path: Path,
) -> None:
    """The parent of several workers isn't limited, and does for them what it takes to."""
    front = forwarder(
        echo_server.address if target is None else target.format(tmp_path),
        *("--pledge", "--workers", workers),
        *(each.format(tmp_path) for each in options),
        listen=listen.format(tmp_path),
        patch=RECORDED,
    )
    front.expect("^serving$", int(workers))
    pledged = {line for line in front.lines if line.startswith("pledged")}
    assert pledged == {f"{PLEDGED} {more}".rstrip()}
    assert front.stop() == 0


@elsewhere
def test_a_service_manager_is_spoken_to(
    echo_server: Server, forwarder: StartForwarder, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        front = forwarder(echo_server.address, "--pledge", patch=RECORDED, environment=told)
        front.expect("^serving$")
        assert f"{PLEDGED} unix" in front.lines
        assert front.stop() == 0


@elsewhere
def test_workers_are_known_to_serve_in_spite_of_it(
    echo_server: Server, forwarder: StartForwarder, tmp_path: Path
) -> None:
    """Without "proc" the kernel refuses kill(2) for any other process (kern_pledge.c)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(str(tmp_path / "notify"))
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        options = ("--pledge", "--workers", "2")
        front = forwarder(
            echo_server.address, *options, patch=RECORDED + NO_SIGNALS, environment=told
        )
        assert manager.recv(100) == b"READY=1"
        assert front.stop() == 0
        assert not front.find("ERROR|Traceback")


NO_SIGNALS = r"""
import errno
kill = os.kill
def kill_this_one(process, number):
    if process != os.getpid():
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    kill(process, number)
def give_up(promises):
    os.kill = kill_this_one
pledging.pledge = give_up
"""


@elsewhere
def test_a_reload_cannot_bring_back_what_was_given_up(
    proxy: StartProxy, echo_server: Server, tmp_path: Path
) -> None:
    routes = tmp_path / "routes.toml"
    routes.write_text('default = "{}:{}"'.format(*echo_server.address))
    front = proxy("sni", "--pledge", str(routes), "127.0.0.1:0", patch=RECORDED)
    front.expect("^serving$")
    routes.write_text(f'default = "unix:{tmp_path}/target"')
    front.signal(signal.SIGHUP)
    front.expect("not reloaded, .*: pledge: Unix sockets were given up at the start")
    assert front.stop() == 0


@elsewhere
def test_it_is_not_called_unless_asked_for(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, patch=RECORDED)
    front.expect("^serving$")
    assert not front.find("^pledged")
    assert front.stop() == 0


@elsewhere
def test_where_there_is_none_the_program_says_so(program: StartProgram) -> None:
    run = program(*MAIN, "forward", "--pledge", "127.0.0.1:0", "127.0.0.1:80")
    assert run.end() == 1
    assert run.lines == ["freebsd-splice: --pledge: only OpenBSD has pledge(2)"]


class _Extension:
    """In place of the compiled one."""

    def __init__(self, result: int, number: int) -> None:
        self.lib = self.ffi = self
        self.errno = number
        self.given: list[bytes] = []
        self._result = result

    def give_up_all_but(self, promises: bytes) -> int:
        self.given.append(promises)
        return self._result


def test_the_promises_are_the_kernels_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    extension = _Extension(0, 0)
    monkeypatch.setattr(pledge_module, "_extension", extension)
    pledge("stdio inet")
    assert extension.given == [b"stdio inet"]
    monkeypatch.setattr(pledge_module, "_extension", _Extension(-1, errno.EINVAL))
    with pytest.raises(OSError) as raised:
        pledge("nothing")
    assert raised.value.errno == errno.EINVAL


def test_without_the_extension_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "openbsd7")
    monkeypatch.setattr(pledge_module, "_extension", None)
    assert "is not built" in str(why_no_pledge())
    monkeypatch.setattr(pledge_module, "_extension", _Extension(0, 0))
    assert why_no_pledge() is None


#: What a process that serves tries before its first client, and what became of it.
TRIES = r"""
import errno, os
import freebsd_splice.proxies._server as server
def fork():
    if not os.fork():
        os._exit(0)
tries = {
    "write": lambda: os.open(os.environ["FORBIDDEN"], os.O_WRONLY | os.O_CREAT),
    "fork": fork,
    "execute": lambda: os.execv("/nonexistent", ["nonexistent"]),
}
run = server.ProxyServer.run
async def try_first(self):
    for name, call in tries.items():
        try:
            call()
            became = "done"
        except OSError as error:
            became = errno.errorcode[error.errno]
        os.write(2, f"{name} {became}\n".encode())
    await run(self)
server.ProxyServer.run = try_first
"""


@on_openbsd
@pytest.mark.parametrize("workers", [1, 2])
def test_the_kernel_refuses_the_rest_and_it_serves(
    workers: int, echo_server: Server, forwarder: StartForwarder, tmp_path: Path
) -> None:
    options = ("--pledge", "--workers", str(workers))
    forbidden = {"FORBIDDEN": str(tmp_path / "written")}
    target = f"localhost:{echo_server.address[1]}"
    front = forwarder(target, *options, patch=TRIES, environment=forbidden)
    for name in ("write", "fork", "execute"):
        front.expect(f"^{name} ENOSYS$", workers)
    assert not (tmp_path / "written").exists()
    for _ in range(5):
        with front.connect() as client:
            assert exchange(client, b"hello") == b"hello"
            assert exchange(client, bytes(10_000)) == bytes(10_000)
    assert front.stop() == 0


@on_openbsd
@pytest.mark.parametrize("workers", [1, 2])
def test_unix_sockets_and_a_takeover_work_in_spite_of_it(
    workers: int, echo_server: Server, forwarder: StartForwarder, tmp_path: Path
) -> None:
    path = tmp_path / "listen"
    takeover = ("--takeover", str(tmp_path / "next"))
    options = ("--pledge", *takeover, "--workers", str(workers))
    first = forwarder(echo_server.address, *options, listen=f"unix:{path}")
    first.expect("listening on unix:")
    second = forwarder(echo_server.address, *options, listen=f"unix:{path}")
    first.expect("another process has taken the listening sockets over")
    assert first.end() == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert exchange(client, b"hello") == b"hello"
    second.signal(signal.SIGHUP)
    second.expect("INFO reloaded")
    assert second.stop() == 0
    assert not path.exists()
    assert not (tmp_path / "next").exists()


@on_openbsd
def test_a_changed_password_file_is_read_in_spite_of_it(proxy: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(make_entry("alice", "old") + "\n")
    front = proxy("socks5", "--pledge", "--passwords", str(path), "127.0.0.1:0")
    assert verified(front, b"old")
    path.write_text(make_entry("alice", "new") + "\n")
    assert not verified(front, b"old")
    assert verified(front, b"new")
    assert front.stop() == 0


def verified(front: Proxy, password: bytes) -> bool:
    with front.connect() as client:
        client.sendall(b"\x05\x01\x02")
        assert receive(client, 2) == b"\x05\x02"
        client.sendall(b"\x01\x05alice" + bytes([len(password)]) + password)
        return receive(client, 2) == b"\x01\x00"
