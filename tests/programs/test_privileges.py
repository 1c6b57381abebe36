"""Going on as another user once the sockets listen."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from freebsd_splice._cli import privileges
from freebsd_splice._cli.privileges import User
from programs.processes import MAIN, Forwarder, Program, Server, exchange

StartForwarder = Callable[..., Forwarder]
StartProgram = Callable[..., Program]


def as_root(test: Callable[..., None]) -> Any:
    """``-m root`` selects those that have to be."""
    alone = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    return pytest.mark.root(alone(test))


as_root_or_nobody = pytest.mark.skipif(
    os.geteuid() not in (0, pwd.getpwnam("nobody").pw_uid), reason="only root can become nobody"
)

#: Become nobody as soon as the options are known: Python itself can be where nobody may look.
AS_NOBODY = """
import encodings.idna, os, pwd
import freebsd_splice._cli.serving as serving
import freebsd_splice._cli.privileges
nobody = pwd.getpwnam("nobody")
raise_limit = serving._raise_descriptor_limit
def become_nobody():
    raise_limit()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
serving._raise_descriptor_limit = become_nobody
"""

_os: Any = os  # not all systems have all of it, and a type checker knows that


def another_group() -> grp.struct_group:
    """One that is neither root's nor nobody's."""
    primary = (0, pwd.getpwnam("nobody").pw_gid)
    return next(group for group in grp.getgrall() if group.gr_gid not in primary)


def status_of(process: int) -> dict[str, list[int]]:
    if sys.platform != "linux":
        pytest.skip("only /proc tells as whom another process runs")
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {
        name: [int(number) for number in rest.split()]
        for name, _, rest in (line.partition(":") for line in lines)
        if name in ("Uid", "Gid", "Groups")
    }


@as_root
@pytest.mark.parametrize("with_group", [False, True], ids=["user", "user and group"])
def test_nothing_of_root_is_left(
    with_group: bool, echo_server: Server, forwarder: StartForwarder
) -> None:
    nobody = pwd.getpwnam("nobody")
    group = another_group().gr_gid if with_group else nobody.pw_gid
    name = f"nobody:{another_group().gr_name}" if with_group else "nobody"
    # As if root had logged in: with groups that must be given up.
    front = forwarder(echo_server.address, "--user", name, patch="import os; os.setgroups([0, 1])")
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    status = status_of(front.pid)
    # Real, effective, saved, and Linux's own for files.
    assert status["Uid"] == 4 * [nobody.pw_uid]
    assert status["Gid"] == 4 * [group]
    assert set(status["Groups"]) == set(os.getgrouplist("nobody", group))
    assert front.stop() == 0


@as_root
def test_workers_and_those_that_replace_them_are_that_user(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--user", "nobody", "--workers", "2")
    for died in range(2):
        with front.connect() as client:
            assert exchange(client, b"hello") == b"hello"
        (*_, line) = front.expect(r"\[(\d+)\] INFO .* bytes up", died + 1)
        worker = int(line[1])
        assert status_of(worker)["Uid"] == 4 * [pwd.getpwnam("nobody").pw_uid]
        os.kill(worker, 9)
        front.expect("has died: signal 9", died + 1)
    assert front.stop() == 0


@as_root
def test_a_port_of_root_is_listened_on_before(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    port = free_port_of_root()
    front = forwarder(echo_server.address, "--user", "nobody", listen=f"127.0.0.1:{port}")
    assert front.port == port
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.stop() == 0


def free_port_of_root() -> int:
    for port in range(600, 1024):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    pytest.skip("no port below 1024 is free")


@pytest.mark.parametrize(
    ("user", "wrong"),
    [
        ("no-such-user", "there is no user 'no-such-user'"),
        ("nobody:no-such-group", "there is no group 'no-such-group'"),
        ("nobody:", "there is no group ''"),
        (":nogroup", "there is no user ''"),
    ],
)
def test_users_and_groups_that_do_not_exist(user: str, wrong: str, program: StartProgram) -> None:
    run = program(*MAIN, "forward", "--user", user, "127.0.0.1:0", "127.0.0.1:80")
    assert run.end() == 2
    (line,) = run.lines
    assert line.startswith(f"freebsd-splice forward: error: argument --user: {wrong}; ")


@as_root_or_nobody
def test_only_root_can_go_on_as_somebody_else(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--user", "root", patch=AS_NOBODY)
    assert front.end() == 1
    (line,) = front.lines
    assert line.startswith("freebsd-splice: --user: only root can go on as root: ")


@as_root_or_nobody
def test_whoever_is_that_user_already_goes_on(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--user", "nobody", patch=AS_NOBODY)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.stop() == 0


class _Calls(ModuleType):
    """In place of ``os``: what was called, in which order, and who the process is by then."""

    def __init__(
        self, *, users: tuple[int, int, int] = (0, 0, 0), groups: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        super().__init__("os")
        self.made: list[tuple[str, object]] = []
        self.users = users
        self.groups = groups
        #: Whether it could become root again whoever it is.
        self.capable = False

    def getresuid(self) -> tuple[int, int, int]:
        return self.users

    def getresgid(self) -> tuple[int, int, int]:
        return self.groups

    def initgroups(self, *given: object) -> None:
        self.made.append(("initgroups", given))

    def setresgid(self, *given: int) -> None:
        self.made.append(("setresgid", given))

    def setresuid(self, *given: int) -> None:
        self.made.append(("setresuid", given))

    def setuid(self, user: int) -> None:
        self.made.append(("setuid", (user,)))
        if user == 0 and not self.capable:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


class _CallsWithoutSaved(_Calls):
    """Where nobody can see and set the saved ones: macOS."""

    def __init__(self, *, users: tuple[int, int, int], groups: tuple[int, int, int]) -> None:
        super().__init__(users=users, groups=groups)
        self.getuid, self.geteuid = (lambda: users[0]), (lambda: users[1])
        self.getgid, self.getegid = (lambda: groups[0]), (lambda: groups[1])

    def __getattribute__(self, name: str) -> Any:
        if "res" in name:
            raise AttributeError(name)
        return super().__getattribute__(name)

    def setgid(self, group: int) -> None:
        self.made.append(("setgid", (group,)))


def test_the_groups_go_first_and_then_there_is_no_way_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without root's privileges the groups could not be given up any more."""
    calls = _Calls()
    monkeypatch.setattr(privileges, "_os", calls)
    User("somebody", 7, 8).become()
    assert calls.made == [
        ("initgroups", ("somebody", 8)),
        ("setresgid", (8, 8, 8)),
        ("setresuid", (7, 7, 7)),
        ("setuid", (0,)),
    ]


def test_the_same_where_nobody_tells_the_saved_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _CallsWithoutSaved(users=(0, 7, 0), groups=(8, 8, 8))
    monkeypatch.setattr(privileges, "_os", calls)
    User("somebody", 7, 8).become()
    assert calls.made == [
        ("initgroups", ("somebody", 8)),
        ("setgid", (8,)),
        ("setuid", (7,)),
        ("setuid", (0,)),
    ]
    calls = _CallsWithoutSaved(users=(7, 7, 7), groups=(8, 8, 8))
    monkeypatch.setattr(privileges, "_os", calls)
    User("somebody", 7, 8).become()
    assert calls.made == [("setuid", (0,))]


@pytest.mark.parametrize("users", [(0, 7, 0), (7, 7, 0), (0, 7, 7), (7, 7, 7)])
@pytest.mark.parametrize("groups", [(0, 8, 0), (8, 8, 0), (8, 8, 8)])
def test_who_is_that_user_in_part_becomes_it(
    users: tuple[int, int, int], groups: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the saved ones of root could be taken again."""
    calls = _Calls(users=users, groups=groups)
    monkeypatch.setattr(privileges, "_os", calls)
    User("somebody", 7, 8).become()
    is_it = users == (7, 7, 7) and groups == (8, 8, 8)
    assert (("setresuid", (7, 7, 7)) in calls.made) is not is_it


@pytest.mark.parametrize("users", [(0, 0, 0), (7, 7, 7)])
def test_who_could_become_root_again_does_not_go_on(
    users: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux's capabilities outlive a change from one user that isn't root to another."""
    calls = _Calls(users=users, groups=(8, 8, 8))
    calls.capable = True
    monkeypatch.setattr(privileges, "_os", calls)
    with pytest.raises(PermissionError, match="as somebody this process could still become root"):
        User("somebody", 7, 8).become()


def test_root_itself_may_go_on_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _Calls()
    calls.capable = True
    monkeypatch.setattr(privileges, "_os", calls)
    User("root", 0, 0).become()
    assert calls.made == []


@as_root
def test_root_that_is_only_saved_is_not_kept() -> None:
    """In a process of its own, which is ended as somebody else."""
    if not hasattr(os, "setresuid"):
        pytest.skip("this system doesn't let a process set who is saved")
    nobody = pwd.getpwnam("nobody")
    child = os.fork()
    if not child:
        try:
            _os.setresgid(0, nobody.pw_gid, 0)
            _os.setresuid(0, nobody.pw_uid, 0)
            with contextlib.suppress(PermissionError):  # as its effective user is not root
                User("nobody", nobody.pw_uid, nobody.pw_gid).become()
                os._exit(int(0 in _os.getresuid() + _os.getresgid()))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
