"""--pledge: what a process gives up before it serves, and that it still serves then."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice._platform import pledge as pledge_module
from freebsd_splice._platform.pledge import pledge, why_no_pledge
from freebsd_splice.proxies._passwords import make_entry
from programs.processes import MAIN, Forwarder, Program, Proxy, Server, exchange, receive

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
