"""Relays, targets and loads as processes: started, measured, ended, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .machine import pinned
from .peers import DIRECT, ROOT, Launch, Peer
from .ports import free_port, wait_for_listener
from .usage import Usage, kernel_splicing_cpu, usage

#: Seconds after which what should have ended won't.
PATIENCE = 60.0


class FailedError(Exception):
    """A relay or a load didn't do what it should; the text says what it printed."""


@dataclass(frozen=True)
class Running:
    """A process group of the benchmark's."""

    process: subprocess.Popen[bytes]
    port: int
    #: What it has printed.
    log: Path

    def usage(self) -> Usage:
        return usage(self.process.pid)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_text(self, pattern: str, seconds: float = 10.0) -> str:
        """What it has printed, once the pattern is in it or that time has passed."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.text()

    def tail(self) -> str:
        return "\n".join(self.text().splitlines()[-4:])


@dataclass(frozen=True)
class Relaying:
    """A relay between the load and its target; no process where there is none in between."""

    port: int
    relay: Running | None

    def cpu(self) -> float:
        """Seconds, the kernel's own splicing threads included."""
        return (self.relay.usage().cpu if self.relay else 0.0) + kernel_splicing_cpu()


@contextlib.contextmanager
def relaying(
    peer: Peer,
    target: int,
    *,
    workers: int = 1,
    cpus: list[int] | None = None,
    verbose: bool = False,
    prefix: list[str] | None = None,
) -> Iterator[Relaying]:
    """Start it, wait until it listens, and end it.

    cpus: those it may run on.  verbose: it is to log each connection.  prefix: what starts it
    (``strace`` and its options).
    """
    if peer.name == DIRECT:
        yield Relaying(target, None)
        return
    with tempfile.TemporaryDirectory() as name:
        launch = Launch(free_port(), target, workers, Path(name), verbose)
        command = [*(prefix or []), *pinned(peer.command(launch), cpus)]
        with running(command, launch.listen, cwd=peer.home, variables=peer.environment) as started:
            yield Relaying(launch.listen, started)


@contextlib.contextmanager
def echo_target(cpus: list[int] | None = None, port: int | None = None) -> Iterator[int]:
    """The port of a target.py."""
    port = port or free_port()
    command = pinned([sys.executable, "-m", "bench.programs.target", str(port)], cpus)
    with running(command, port, cwd=ROOT):
        yield port


@contextlib.contextmanager
def running(
    command: list[str],
    port: int,
    *,
    cwd: Path | None = None,
    variables: dict[str, str] | None = None,
) -> Iterator[Running]:
    """A process that listens on the port, in a process group of its own."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Running(process, port, log)
        try:
            try:
                wait_for_listener(port, lambda: process.poll() is None)
            except TimeoutError as error:
                raise FailedError(f"{command[0]}: {error}\n{started.tail()}") from None
            yield started
            if process.poll() is not None:
                status = process.returncode
                raise FailedError(f"{command[0]} ended ({status})\n{started.tail()}")
        finally:
            _end_group(process)


def load(
    *arguments: object, cpus: list[int] | None = None, seconds: float = 0.0
) -> dict[str, float]:
    """What load.py prints; it has ``seconds`` and a minute for it."""
    with started_load(*arguments, cpus=cpus) as process:
        return result_of(process, seconds)


def verify(peer: Peer, port: int, size: int = 1 << 20) -> None:
    """Random bytes there and back through it, or FailedError."""
    load("verify", port, size, "half-close" if peer.half_closes else "close")


@contextlib.contextmanager
def started_load(
    *arguments: object, cpus: list[int] | None = None, program: str = "load"
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", f"bench.programs.{program}", *map(str, arguments)]
    process = subprocess.Popen(
        pinned(command, cpus),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str], seconds: float) -> dict[str, float]:
    """The next line that a load prints; it is killed where that takes longer."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        raise FailedError(_why(process.communicate()[1]))
    found: dict[str, float] = json.loads(line)
    return found


def result_of(process: subprocess.Popen[str], seconds: float) -> dict[str, float]:
    try:
        output, errors = process.communicate(timeout=seconds + PATIENCE)
    except subprocess.TimeoutExpired:
        raise FailedError("the load didn't end: bytes or an EOF don't arrive") from None
    if process.returncode:
        raise FailedError(_why(errors))
    result: dict[str, float] = json.loads(output)
    return result


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Have a load that reads lines do that."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has failed: its next line says why
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _why(errors: str) -> str:
    return errors.strip().splitlines()[-1] if errors else "the load failed, or took too long"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; whoever is left of its group after two seconds is killed."""
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def settled(relaying: Relaying, seconds: float = 2.0) -> float:
    """Its CPU seconds, once it has stopped using more: connections that end cost something too."""
    deadline = time.monotonic() + seconds
    now = relaying.cpu()
    while relaying.relay is not None and time.monotonic() < deadline:
        time.sleep(0.1)
        before, now = now, relaying.cpu()
        if now - before < 0.02:
            break
    return now
