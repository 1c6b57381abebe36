"""``freebsd-splice password``: lines for a password file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from freebsd_splice.proxies import Passwords
from programs.processes import MAIN, PATIENCE


def run(user: str, given: bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """With that as the standard input."""
    return subprocess.run(
        [sys.executable, *MAIN, "password", user],
        input=given,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )


def holds(line: bytes, user: str, password: str, file: Path) -> bool:
    """Whether the line, and no other, lets this user in with this password."""
    file.write_bytes(line)
    with closing(Passwords(file)) as passwords:
        return asyncio.run(passwords.verify(user, password))


@pytest.mark.parametrize(
    ("given", "password"),
    [
        (b"secret\n", "secret"),
        (b"secret", "secret"),
        (b"secret\r\n", "secret"),
        (b"secret\nsecond line\n", "secret"),
        (b" with spaces \n", " with spaces "),
        ("gr\u00fc\u00dfe\n".encode(), "gr\u00fc\u00dfe"),
    ],
)
def test_the_first_line_of_the_input_is_the_password(
    given: bytes, password: str, tmp_path: Path
) -> None:
    done = run("alice", given, PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1
    assert holds(done.stdout, "alice", password, tmp_path / "passwords")
    assert not holds(done.stdout, "alice", password + "x", tmp_path / "passwords")


def test_the_password_is_not_in_the_line_and_no_line_comes_twice() -> None:
    first, second = (run("alice", b"secret\n").stdout for _ in range(2))
    assert b"secret" not in first
    assert first != second


@pytest.mark.parametrize(
    ("user", "given", "wrong"),
    [
        ("alice", b"", b"the password is empty"),
        ("alice", b"\n", b"the password is empty"),
        ("", b"secret\n", b"the name of the user is empty"),
        ("al:ice", b"secret\n", b"no colon and no control character"),
        ("al\nice", b"secret\n", b"no colon and no control character"),
        ("#alice", b"secret\n", b"can't begin with #"),
        (" alice", b"secret\n", b"has no space around it"),
    ],
)
def test_what_no_password_file_can_hold(user: str, given: bytes, wrong: bytes) -> None:
    """A wrong password can't be used; a wrong user is a wrong command line."""
    done = run(user, given)
    status, start = (
        (1, b"freebsd-splice: ") if user == "alice" else (2, b"freebsd-splice password: ")
    )
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr.startswith(start)
    assert done.stderr.count(b"\n") == 1
    assert wrong in done.stderr


def test_a_password_that_is_no_text() -> None:
    done = run("alice", b"\xff\n", PYTHONUTF8="1", PYTHONIOENCODING="utf-8:strict")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1


class Terminal:
    """A user at a terminal, who answers when asked."""

    def __init__(self) -> None:
        self._user, program = pty.openpty()
        # In a session of its own it can't ask the terminal that the tests run in.
        self._process = subprocess.Popen(
            [sys.executable, *MAIN, "password", "alice"],
            stdin=program,
            stdout=subprocess.PIPE,
            stderr=program,
            start_new_session=True,
        )
        os.close(program)
        #: All that it has shown.
        self.shown = b""

    def answer(self, question: bytes, given: bytes) -> None:
        before = len(self.shown)
        while not self.shown[before:].endswith(question):
            self.shown += self._read()
        os.write(self._user, given)

    def end(self) -> tuple[int, bytes]:
        """The exit status, and what it printed."""
        with contextlib.suppress(OSError):  # Linux's end of file
            while data := self._read():
                self.shown += data
        printed, _ = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, printed

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        os.close(self._user)

    def _read(self) -> bytes:
        return os.read(self._user, 1024)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with closing(Terminal()) as made:
        yield made


def test_at_a_terminal_it_is_asked_for_twice_and_not_shown(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.answer(b"Password: ", b"secret\n")
    terminal.answer(b"Again: ", b"secret\n")
    status, printed = terminal.end()
    assert status == 0
    assert holds(printed, "alice", "secret", tmp_path / "passwords")
    assert b"secret" not in terminal.shown


def test_two_different_passwords_are_none(terminal: Terminal) -> None:
    terminal.answer(b"Password: ", b"secret\n")
    terminal.answer(b"Again: ", b"secreT\n")
    assert terminal.end() == (1, b"")
    assert terminal.shown.endswith(b"freebsd-splice: the passwords do not match\r\n")


def test_a_user_who_gives_none(terminal: Terminal) -> None:
    terminal.answer(b"Password: ", b"\x04")
    assert terminal.end() == (1, b"")
    assert terminal.shown.endswith(b"freebsd-splice: no password was given\r\n")
