"""Fetch a file with curl, without and with the forwarder in between, and compare."""

from __future__ import annotations

import argparse
import errno
import hashlib
import http.server
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import freebsd_splice

MEGABYTE = 1 << 20
ROUNDS = 3


class DemoError(Exception):
    """What went wrong, for the user."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="of the file (%(default)s)")
    size = parser.parse_args().megabytes * MEGABYTE
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the forwarder isn't left behind
    try:
        with tempfile.TemporaryDirectory() as folder:
            return demonstrate(Path(folder), size)
    except DemoError as error:
        print(f"The demonstration failed: {error}", file=sys.stderr)
    except OSError as error:
        advice = " (TMPDIR names another place)" if error.errno == errno.ENOSPC else ""
        print(f"The demonstration failed: {error}{advice}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
    return 1


def demonstrate(folder: Path, size: int) -> int:
    if shutil.which("curl") is None:
        raise DemoError("curl is not installed")
    free = shutil.disk_usage(folder).free
    if free < 2.5 * size:
        raise DemoError(
            f"{folder.parent} has {free // MEGABYTE} MB left, and two files of "
            f"{size // MEGABYTE} MB have to fit (TMPDIR names another place)"
        )
    say(f"Making a file of {size // MEGABYTE} MB that has no two parts alike")
    original, copy = folder / "file", folder / "copy"
    digest = make_file(original, size)
    seconds: dict[str, list[float]] = {"directly": [], "through the forwarder": []}
    with serving(folder) as server, Forwarder(server) as forwarder:
        say(f"Forwarding {forwarder.address} to {server}, a web server: freebsd-splice forward")
        addresses = dict(zip(seconds, (server, forwarder.address), strict=True))
        for number in range(1, ROUNDS + 1):
            for way, address in addresses.items():
                what = f"Fetching {number} of {ROUNDS}, {way}: curl http://{address}/file"
                seconds[way].append(fetch(f"http://{address}/file", copy, size, what))
                if digest_of(copy) != digest:
                    raise DemoError(f"what came {way} is not what was served")
        connections = forwarder.stop()
    if [each["bytes_down"] >= size for each in connections] != [True] * ROUNDS:
        raise DemoError(f"the forwarder counted something else: {connections}")
    direct, forwarded = map(min, seconds.values())
    say("")
    say(
        f"{ROUNDS} times {size:,} bytes came through freebsd-splice's forwarder, each time the "
        f"same by SHA-256 ({digest[:12]}…) as what was served. That took {forwarded / direct:.2f} "
        "times as long as fetching directly (the best of each)."
    )
    say(who_moved_them({name for each in connections for name in each["backend"]}))
    here = Path(sys.executable).parent
    say(f"Next: {here}/freebsd-splice forward --help, or {here}/freebsd-splice selftest")
    return 0


def who_moved_them(backends: set[str], system: str = platform.system()) -> str:
    """In words, from "kernel/SO_SPLICE" or "userspace/os.splice"."""
    movers = " and ".join(sorted(name.partition("/")[2] for name in backends))
    if all(name.startswith("kernel/") for name in backends):
        return f"The kernel moved them ({movers}): none passed through the forwarder's process."
    if system == "Linux":
        why = (
            "SO_SPLICE, with which a kernel joins two sockets, is FreeBSD's (14.3 and later) and "
            "OpenBSD's; Linux has none."
        )
    else:
        why = f"SO_SPLICE was not used: {freebsd_splice.backend().reason}."
    return (
        f"{why} What served here in its place are the package's worker threads, by {movers}: the "
        "same calls, and the same promises."
    )


def say(text: str) -> None:
    print(text, flush=True)


# The file


def make_file(path: Path, size: int) -> str:
    """Random bytes; their SHA-256."""
    sha = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MEGABYTE):
            block = os.urandom(MEGABYTE)
            sha.update(block)
            file.write(block)
    return sha.hexdigest()


def digest_of(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MEGABYTE):
            sha.update(block)
    return sha.hexdigest()


def fetch(url: str, copy: Path, size: int, what: str) -> float:
    """How many seconds curl took.  A terminal is shown meanwhile how far it is."""
    copy.unlink(missing_ok=True)
    command = ["curl", "--fail", "--silent", "--show-error", "--noproxy", "*"]
    began = time.monotonic()
    with started([*command, "--output", str(copy), url]) as curl:
        assert curl.stderr is not None
        shown = False
        while True:
            try:
                status = curl.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    done = copy.stat().st_size if copy.exists() else 0
                    print(f"\r{what}: {100 * done // size} %", end="", flush=True)
                    shown = True
        took = time.monotonic() - began
        said = curl.stderr.read().strip()
    say(f"\r{what}: 100 %" if shown and not status else what)
    if status:
        raise DemoError(f"curl ended with status {status}: {said or 'and said nothing'}")
    return took


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a program, which ends with the block at the latest.

    An interrupt waits for the program to be started: else it would be left behind.
    """
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    process = None
    try:
        try:
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if caught:
            raise KeyboardInterrupt
        yield process
    finally:
        if process is not None:
            process.kill()
            with process:
                pass  # close its pipe, wait for its end


# Who serves it, and the forwarder


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None: ...

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """By sendfile(2): so fast that the forwarder's part of the time can be seen."""
        assert isinstance(self.connection, socket.socket)
        self.connection.sendfile(source)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Forwarder:
    """``freebsd-splice forward``, as a user starts it, with the log that programs read."""

    def __init__(self, target: str) -> None:
        self._running = started(
            [
                *(sys.executable, "-m", "freebsd_splice", "forward", "--log-format", "json"),
                *("127.0.0.1:0", target),
            ]
        )
        self._process: subprocess.Popen[str]
        self._log: IO[str]
        self.address = ""

    def __enter__(self) -> Forwarder:
        self._process = self._running.__enter__()
        try:
            return self._listening()
        except BaseException:
            self._running.__exit__(*sys.exc_info())
            raise

    def _listening(self) -> Forwarder:
        assert self._process.stderr is not None
        self._log = self._process.stderr
        for line in self._log:
            event = _event(line)
            if event.get("event") == "listening":
                self.address = event["address"]
                return self
        self._process.wait()
        raise DemoError("the forwarder did not start; what it said stands above")

    def stop(self) -> list[dict[str, Any]]:
        """What its log says of each connection."""
        self._process.send_signal(signal.SIGTERM)
        events = [_event(line) for line in self._log]
        self._process.wait()
        return [event for event in events if event.get("event") == "connection"]

    def __exit__(self, *failure: Any) -> None:
        self._running.__exit__(*failure)


def _event(line: str) -> dict[str, Any]:
    """A line of the log.  What is not the log's, or warns, is shown."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        event = {"level": "error", "message": line.rstrip("\n")}
    if event["level"] in ("warning", "error"):
        print(f"forwarder: {event['message']}", file=sys.stderr)
    return event


if __name__ == "__main__":
    sys.exit(main())
