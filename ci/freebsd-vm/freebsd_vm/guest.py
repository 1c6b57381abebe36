"""The guest, by ssh: let in, filled, prepared, made to run a command, and emptied of results."""

from __future__ import annotations

import shlex
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from .events import Deadline, watch_process
from .failures import CommandTimedOut, GuestDiskFull, NotPrepared
from .machine import Machine

#: The project's copy in the guest, and what is brought back.
TREE = "/root/freebsd-splice"
RESULTS = "/root/results"
#: Made by a command that says 255 itself, which is also what ssh says of a broken connection.
_SAID_255 = "/root/said-255"

_SECONDS_BETWEEN_TRIES = 10.0
_SECONDS_TO_SEE_WHY = 15.0


class Guest:
    """Commands run as root, with the key that the seed lets in.

    silence: seconds without an answer after which the guest counts as hanging.
    """

    def __init__(self, machine: Machine, port: int, run: Path, silence: float) -> None:
        self._machine = machine
        self._silence = silence
        self.ssh = [
            *("ssh", "-F", "none", "-i", str(run / "key"), "-p", str(port), "-l", "root"),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"),
            # Pinned on first contact.
            *("-o", "StrictHostKeyChecking=accept-new"),
            *("-o", f"UserKnownHostsFile={run / 'known_hosts'}"),
            *("-o", "GlobalKnownHostsFile=none", "-o", f"ConnectTimeout={max(1, round(silence))}"),
            *("-o", f"ServerAliveInterval={max(1, round(silence / 5))}"),
            *("-o", "ServerAliveCountMax=5"),
            "127.0.0.1",
        ]

    def wait_until_ready(self, deadline: Deadline) -> None:
        """Until it lets us in.  It says so on its console; if its console is elsewhere, we try."""
        console = self._machine.console
        while deadline.left:
            pause = 1.0 if console.watched_seen else _SECONDS_BETWEEN_TRIES
            self._machine.wait(["console"], Deadline(min(pause, deadline.left)))
            # A try in the dark must not hold up those that come after the word.
            patience = self._silence if console.watched_seen else _SECONDS_BETWEEN_TRIES
            attempt = Deadline(min(patience, deadline.left))
            if self._finish(self._start("true", stderr=subprocess.DEVNULL), attempt) == 0:
                return
        self._machine.hangs(f"the guest wasn't ready in {deadline.seconds:.0f} s")

    def copy_in(self, root: Path, deadline: Deadline) -> int:
        """Unpack the files of a work tree in the guest; how many."""
        names = files_of(root)
        unpack = f"mkdir -p {TREE} {RESULTS} && tar -xf - -C {TREE}"
        ssh = self._start(unpack, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert ssh.stdin is not None
        try:
            with tarfile.open(fileobj=ssh.stdin, mode="w|", dereference=False) as archive:
                for name in names:
                    archive.add(root / name, name, recursive=False, filter=_without_owner)
            ssh.stdin.close()
        except BrokenPipeError:
            pass  # what tar says there tells why
        self._must(ssh, "copying the tree into the guest", deadline)
        return len(names)

    def prepare(self, deadline: Deadline) -> None:
        """Install what the tests need there, and build the extension."""
        script = f"cd {TREE} && sh ci/freebsd-vm/prepare.sh"
        self._must(self._start(script, stderr=subprocess.STDOUT), "preparing the guest", deadline)

    def run(self, command: list[str], variables: Mapping[str, str], deadline: Deadline) -> int:
        """Its exit status, however the connection ends."""
        assignments = " ".join(f"{name}={shlex.quote(text)}" for name, text in variables.items())
        line = (
            f"cd {TREE} && {assignments} {shlex.join(command)}; status=$?; "
            f"[ $status != 255 ] || touch {_SAID_255}; exit $status"
        )
        status = self._finish(self._start(line, stdout=None, stderr=None), deadline)
        if status is None:
            raise CommandTimedOut(
                f"{shlex.join(command)} didn't end in {deadline.seconds:.0f} s; the console's last "
                f"lines:\n{self._machine.console.last_lines()}"
            )
        if status == 255 and not self._output(f"ls {_SAID_255}"):
            self._machine.wait([], Deadline(_SECONDS_TO_SEE_WHY))  # a panic, the machine's end
            self._machine.hangs("the connection to the guest broke while it ran the command")
        if status:
            self._check_room(f"{shlex.join(command)} failed ({status})")
        return status

    def bring_back(self, into: Path) -> list[Path]:
        """Unpack what the command left in RESULTS; the files."""
        into.mkdir(parents=True, exist_ok=True)
        ssh = self._start(f"tar -cf - -C {RESULTS} .", stdout=subprocess.PIPE)
        assert ssh.stdout is not None
        found = _extract(ssh.stdout, into)
        ssh.wait()
        return found

    def _must(self, ssh: subprocess.Popen[bytes], what: str, deadline: Deadline) -> None:
        status = self._finish(ssh, deadline)
        if status is None:
            self._machine.hangs(f"{what} didn't end in {deadline.seconds:.0f} s")
        if status:
            said = ssh.stderr.read().decode("utf-8", "replace") if ssh.stderr else ""
            self._check_room(f"{what} failed: {said.strip()}")
            raise NotPrepared(f"{what} failed with status {status}. {said.strip()}")

    def _check_room(self, what: str) -> None:
        left = self._output(f"df -Pk {TREE} | tail -1").split()
        if len(left) >= 4 and int(left[3]) < 1024:
            raise GuestDiskFull(f"{what}; the guest's disk is full: give it more with --disk")

    def _output(self, line: str) -> str:
        asked = subprocess.run([*self.ssh, line], stdin=subprocess.DEVNULL, capture_output=True)
        return asked.stdout.decode("utf-8", "replace").strip()

    def _start(
        self,
        line: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.ssh, line], stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )

    def _finish(self, ssh: subprocess.Popen[bytes], deadline: Deadline) -> int | None:
        """Its status when it ends; None at the deadline.  It has ended in any case."""
        name = f"ssh {ssh.pid}"
        watch_process(ssh, name, self._machine.events)
        try:
            event = self._machine.wait([name], deadline)
            return None if event is None else int(event.about)
        finally:
            if ssh.poll() is None:
                ssh.kill()
                ssh.wait()


def files_of(root: Path) -> list[str]:
    """What git tracks, and what it would if it were told to."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    names = sorted(set(listed.stdout.decode().split("\0")) - {""})
    return [name for name in names if (root / name).exists() or (root / name).is_symlink()]


def make_key(path: Path) -> str:
    """A key for this run; its public half."""
    quiet = ("-q", "-N", "", "-C", "freebsd-splice")
    subprocess.run(["ssh-keygen", "-t", "ed25519", *quiet, "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().strip()


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _extract(stream: IO[bytes], into: Path) -> list[Path]:
    """Regular files alone: a guest has no say in where things go."""
    found = []
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = Path(member.name)
            if not member.isfile() or ".." in name.parts or name.is_absolute():
                continue
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            assert content is not None
            target.write_bytes(content.read())
            found.append(target)
    return found
