"""The log's reader stands still, or has gone: the proxy goes on, and can be stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults.cells import cell
from programs.processes import (
    PATIENCE,
    Forwarder,
    Program,
    Server,
    _import_path,
    exchange,
    free_port,
)

StartForwarder = Callable[..., Forwarder]

#: So little that a few clients are too many for it.
LITTLE_ROOM = "import freebsd_splice._cli.stderr as stderr; stderr.MOST_WAITING = 300"

RUN_MAIN = "import sys; from freebsd_splice._cli import main; sys.exit(main())"

#: Reads back what it has written: ``lines`` over a pipe whose ends are ``near`` and ``far``.
OVER_A_PIPE = """
import os, sys
import freebsd_splice._cli.stderr as stderr
near, far = os.pipe()
lines = stderr.Lines(far)
def fill():
    os.set_blocking(far, False)
    count = 0
    try:
        while True:
            count += os.write(far, b"." * 512)
    except BlockingIOError:
        os.set_blocking(far, True)
        return count
def read(count):
    text = b""
    while len(text) < count:
        text += os.read(near, count - len(text))
    return text.decode()
"""


class Mute:
    """A forwarder whose log can't be read."""

    def __init__(
        self, target: tuple[str, int], *options: str, stderr: int | None, patch: str = ""
    ) -> None:
        self.port = free_port()
        # Python starts without a standard error where its descriptor is closed.
        close = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh"] if stderr is None else []
        self.process = subprocess.Popen(
            [
                *(*close, sys.executable, "-c", f"{patch}\n{RUN_MAIN}", "forward", *options),
                *(f"127.0.0.1:{self.port}", "{}:{}".format(*target)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **_import_path()},
        )

    def serve(self, clients: int) -> None:
        for _ in range(clients):
            with self._connect() as client:
                assert exchange(client, b"hello") == b"hello"
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), PATIENCE)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "it doesn't listen"
                time.sleep(0.01)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Unread(Mute):
    """One whose standard error is a full pipe."""

    def __init__(self, target: tuple[str, int], *options: str, patch: str = "") -> None:
        self._near, far = os.pipe()
        try:
            self._filled = _fill(far)
            super().__init__(target, *options, stderr=far, patch=patch)
        finally:
            os.close(far)

    def lines(self) -> Iterator[str]:
        """What it has written, as it comes, without what the pipe was filled with."""
        with os.fdopen(self._near, "rb") as written:
            self._near = -1
            assert len(written.read(self._filled)) == self._filled
            for line in written:
                yield line.decode().rstrip("\n")

    def close(self) -> None:
        super().close()
        if self._near >= 0:
            os.close(self._near)


def _fill(pipe: int) -> int:
    os.set_blocking(pipe, False)
    count = 0
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                count += os.write(pipe, b"." * size)
    os.set_blocking(pipe, True)
    return count


@pytest.fixture
def unread() -> Iterator[Callable[..., Unread]]:
    made: list[Unread] = []

    def start(*arguments: object, **options: str) -> Unread:
        made.append(Unread(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.mark.parametrize("workers", ["1", "2"])
@cell(
    "the log cannot be written",
    "processes",
    "moving",
    sees="the reader stands still: all are served; what has no room is dropped and counted",
    others=True,
)
def test_all_are_served_and_it_can_be_stopped(
    workers: str, echo_server: Server, unread: Callable[..., Unread]
) -> None:
    front = unread(echo_server.address, "--workers", workers, "--log-level", "debug")
    front.serve(5)
    assert front.stop() == 0


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_was_dropped_is_counted_and_said_in_its_place(
    form: str, echo_server: Server, unread: Callable[..., Unread]
) -> None:
    front = unread(echo_server.address, "--log-format", form, patch=LITTLE_ROOM)
    front.serve(20)
    counts: list[tuple[str, int]] = []
    for line in front.lines():
        found = re.search(r"(\d+) lines of the log were dropped", line)
        if found:
            counts.append(("dropped", int(found[1])))
            if form == "json":
                said = json.loads(line)
                assert (said["event"], said["lines"]) == ("log dropped", int(found[1]))
        elif "bytes up" in line:
            counts.append(("kept", 1))
        if (found or "bytes up" in line) and sum(count for _, count in counts) == 20:
            front.process.send_signal(signal.SIGTERM)
    assert front.process.wait(PATIENCE) == 0
    names = [name for name, _ in counts]
    assert "kept" in names  # how many before the first that was dropped is the thread's pace
    # All at once, not one of every two lines.
    assert max(count for name, count in counts if name == "dropped") > 5


def test_a_worker_writes_its_own_lines_and_none_twice(
    echo_server: Server, unread: Callable[..., Unread]
) -> None:
    """It is forked while its parent has a line that can't be written yet."""
    front = unread(echo_server.address, "--workers", "2")
    front.serve(5)
    lines = []
    for line in front.lines():
        lines.append(line)
        if sum("bytes up" in each for each in lines) == 5:
            front.process.send_signal(signal.SIGTERM)
    assert front.process.wait(PATIENCE) == 0
    assert sum("listening on" in line for line in lines) == 1
    assert sum("bytes up" in line for line in lines) == 5
    assert sum("stopping" in line for line in lines) == 2


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("how", ["closed", "disk full", "reader gone"])
@cell(
    "the log cannot be written",
    "processes",
    "any",
    sees="disk full, reader gone, or no standard error: all are served, and it can be stopped",
    counted="lines that could not be written are lost",
    others=True,
)
def test_a_log_that_cannot_be_written_stops_nothing(
    how: str, workers: str, echo_server: Server, opened: ExitStack
) -> None:
    stderr = None
    if how == "disk full":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        stderr = os.open("/dev/full", os.O_WRONLY)
    elif how == "reader gone":
        near, stderr = os.pipe()
        os.close(near)
    if stderr is not None:
        opened.callback(os.close, stderr)
    front = Mute(echo_server.address, "--workers", workers, stderr=stderr)
    opened.callback(front.close)
    front.serve(5)
    assert front.stop() == 0


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"{OVER_A_PIPE}\n{code}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **_import_path()},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lines_are_written_in_order_and_an_end_waits_for_them() -> None:
    assert (
        run("""
for number in range(100):
    lines.put(str(number))
lines.flush()
os.close(far)
print(read(290) == "".join(f"{number}\\n" for number in range(100)))
""")
        == "True\n"
    )


def test_what_others_write_comes_between_whole_lines() -> None:
    """A pipe takes so many bytes together, and no more: workers share one."""
    assert (
        run("""
import select
write, written = os.write, []
def recorded(descriptor, data):
    if descriptor == far:
        written.append(bytes(data))
    return write(descriptor, data)
os.write = recorded
for length in (100, 100, 2 * stderr.PIPE_BYTES, *[99] * 300):
    lines.put("x" * length)
lines.flush()
os.close(far)
print(stderr.PIPE_BYTES == select.PIPE_BUF, len(written) < 200)
print(all(data.endswith(b"\\n") for data in written))
print(all(len(data) <= stderr.PIPE_BYTES or data.count(b"\\n") == 1 for data in written))
print(sum(data.count(b"\\n") for data in written))
""")
        == "True True\nTrue\nTrue\n303\n"
    )


def test_many_lines_are_not_waited_for() -> None:
    """Only for more to come, once few have."""
    assert (
        run("""
import threading
stderr.GATHER_SECONDS, stderr.FLUSH_SECONDS, stderr.MOST_AT_ONCE = 1.0, 1000, 1000
got = []
reading = threading.Thread(target=lambda: got.append(read(100_000)))
reading.start()
for number in range(1_000):
    lines.put("x" * 99)
reading.join()
print(len(got[0]))
""")
        == "100000\n"
    )


def test_an_end_waits_no_longer_than_it_may() -> None:
    assert (
        run("""
import time
stderr.FLUSH_SECONDS = 0.05
fill()
lines.put("more")
start = time.monotonic()
lines.flush()
first = time.monotonic()
stderr.FLUSH_SECONDS = 1000
lines.flush()
print(0.05 <= first - start < 10 and time.monotonic() - first < 10)
""")
        == "True\n"
    )


def test_a_pipe_that_was_made_non_blocking_is_waited_for() -> None:
    """Its open file is shared: by a terminal's other programs, for instance."""
    assert (
        run("""
import threading
write, full = os.write, threading.Event()
def write_and_tell(descriptor, data):
    try:
        return write(descriptor, data)
    except BlockingIOError:
        full.set()
        raise
filled = fill()
os.set_blocking(far, False)
os.write = write_and_tell
lines.put("first")
lines.put("second")
full.wait()
read(filled)
print(read(13), end="")
""")
        == "first\nsecond\n"
    )


def test_a_finalizer_that_logs_while_logging_is_no_deadlock() -> None:
    """The garbage collector runs it in whichever thread, wherever that is."""
    assert (
        run("""
class Line(str):
    def __len__(self):  # called in the middle of put, and of what the thread does
        if len(seen) < 2:
            seen.append(self)
            lines.put(f"by {self}")
        return super().__len__()
seen = []
lines.put(Line("first"))
print(*sorted(read(6 + 2 * 9).splitlines()), sep=",", end="")
""")
        == "by first,by first,first"
    )


def test_it_is_filled_again_only_once_half_is_written() -> None:
    """Else every other line would say how many were dropped."""
    assert (
        run("""
def refuse(*arguments):
    raise RuntimeError("can't start new thread")
stderr.start_thread = refuse
stderr.MOST_WAITING = 100
stderr.MOST_AT_ONCE = 1
for number in range(12):
    lines.put(f"number {number:3}")  # 10 characters
lines._write_next()
lines.put("dropped too")
for _ in range(5):
    lines._write_next()
lines.put("the next")
for _ in range(5 + 2):
    lines._write_next()
os.close(far)
print(os.read(near, 1000).decode(), end="")
""")
        == "".join(f"number {number:3}\n" for number in range(11))
        + "2 lines were dropped\nthe next\n"
    )


def test_what_cannot_be_written_is_counted_too() -> None:
    assert (
        run("""
import errno
write, fails = os.write, 3
def write_or_fail(descriptor, data):
    global fails
    if descriptor == far and fails:
        fails -= 1
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(descriptor, data)
os.write = write_or_fail
for number in range(5):
    lines.put(str(number))
lines.flush()
os.close(far)
print(os.read(near, 1000).decode(), end="")
""")
        == "3 lines were dropped\n3\n4\n"
    )


def test_a_line_that_was_cut_off_ends_before_the_next() -> None:
    assert (
        run("""
import errno
write, calls = os.write, 0
def write_a_part(descriptor, data):
    global calls
    calls += descriptor == far
    if calls == 1 and descriptor == far:
        return write(descriptor, data[:4])
    if calls == 2 and descriptor == far:
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(descriptor, data)
os.write = write_a_part
lines.put("cut off")
lines.put("whole")
lines.flush()
os.close(far)
print(os.read(near, 1000).decode(), end="")
""")
        == "cut \n1 lines were dropped\nwhole\n"
    )


def test_without_a_thread_to_be_had_it_is_tried_again() -> None:
    assert (
        run("""
start = stderr.start_thread
def refuse(*arguments):
    stderr.start_thread = start
    raise RuntimeError("can't start new thread")
stderr.start_thread = refuse
lines.put("first")
lines.put("second")
print(read(13), end="")
""")
        == "first\nsecond\n"
    )


def test_what_python_itself_would_print_is_logged(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    patch = """
import asyncio, gc, logging, warnings
import freebsd_splice.proxies._targets as targets
dial = targets.Targets.dial
class Defective:
    def __del__(self):
        raise ZeroDivisionError("unraisable")
async def dial_badly(*arguments, **options):
    Defective()
    warnings.warn("a warning", RuntimeWarning)
    logging.getLogger("freebsd_splice").warning("%d", "no number")
    return await dial(*arguments, **options)
targets.Targets.dial = dial_badly
targets.Targets.next_known = lambda self: None  # each client has a task
"""
    front = forwarder(echo_server.address, "--log-format", "json", patch=patch)
    front.expect("listening")
    port = json.loads(front.lines[0])["address"].rpartition(":")[2]
    with socket.create_connection(("127.0.0.1", int(port)), PATIENCE) as client:
        assert exchange(client, b"hello") == b"hello"
    front.expect("bytes_up")
    said = [json.loads(line) for line in list(front.lines)]
    assert any("unraisable" in line.get("trace", "") for line in said)
    assert any("a warning" in line["message"] for line in said)
    assert any("can't be formatted: '%d'" in line["message"] for line in said)
    assert front.stop() == 0


def test_why_it_cannot_start_comes_behind_what_was_logged(program: Callable[..., Program]) -> None:
    patch = """
import logging
import freebsd_splice._cli.serving as serving
def fail(*arguments):
    for number in range(100):
        logging.getLogger("freebsd_splice").warning("line %d", number)
    raise OSError("at last")
serving._listen = fail
"""
    run = program("-c", f"{patch}\n{RUN_MAIN}", "forward", "127.0.0.1:0", "127.0.0.1:1")
    assert run.end() == 1
    assert len(run.lines) == 101
    assert run.lines[-1] == "freebsd-splice: at last"


def test_a_command_without_a_log_says_what_is_wrong(
    program: Callable[..., Program],
) -> None:
    patch = """
import os, time
write = os.write
def write_late(*arguments):
    time.sleep(0.2)
    return write(*arguments)
os.write = write_late
"""
    run = program("-c", f"{patch}\n{RUN_MAIN}", "password", "alice")
    assert run.end() == 1
    assert run.lines == ["freebsd-splice: the password is empty"]


def test_why_it_cannot_start_is_waited_for_with_a_bound(
    echo_server: Server, unread: Callable[..., Unread]
) -> None:
    patch = """
import freebsd_splice._cli.serving as serving
def fail(*arguments):
    raise OSError("not today")
serving._listen = fail
"""
    assert unread(echo_server.address, patch=patch).process.wait(PATIENCE) == 1
