"""Programs driven as processes, and the small servers that they talk to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import freebsd_splice
from freebsd_splice._platform.backlog import backlog_limit
from support.slowness import SLOWNESS

assert sys.platform != "win32"  # signals, resource limits, /bin/sh

#: Seconds after which a test fails loudly.
PATIENCE = 30.0 * SLOWNESS

#: How many clients connect at the same time at most. Those that a queue has no room for are reset
#: by FreeBSD, whose queues take no more than kern.ipc.soacceptqueue says: 128.
CONNECTING = 500 if sys.platform == "linux" else 100

MAIN = ["-m", "freebsd_splice"]


class Program:
    """A Python program whose lines (of both outputs) are read as they come."""

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [*_with_limit(descriptors), sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **_import_path(), **(environment or {})},
        )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def expect(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines match, and give the matches."""
        with self._news:
            deadline = time.monotonic() + PATIENCE
            while len(found := self.find(pattern)) < times:
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    raise AssertionError(f"{len(found)} lines match {pattern!r} in\n{self.text}")
                self._news.wait(min(left, 1.0))
            return found

    def find(self, pattern: str) -> list[re.Match[str]]:
        """The matches in the lines there are."""
        return [match for line in list(self.lines) if (match := re.search(pattern, line))]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; gives the exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def descriptors(self) -> Counter[str]:
        """How many it has of each kind: "tcp", "unix", "pipe", or what the link says."""
        unix = {
            line.split()[6]
            for line in Path(f"/proc/{self.pid}/net/unix").read_text().splitlines()[1:]
        }
        found: Counter[str] = Counter()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                kind, _, number = os.readlink(link).partition(":")
                is_socket = kind == "socket"
                found[("unix" if number.strip("[]") in unix else "tcp") if is_socket else kind] += 1
        return found

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def voluntary_switches(self) -> int:
        """How often its threads have gone to sleep: none of that happens to one that is asleep."""
        return sum(
            int(line.split()[1])
            for task in Path(f"/proc/{self.pid}/task").iterdir()
            for line in (task / "status").read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()


class Proxy(Program):
    """A command of ``freebsd-splice`` that serves clients."""

    def __init__(
        self,
        *arguments: str,
        patch: str = "",
        environment: dict[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        start = ["-c", f"{patch}\n{_RUN_MAIN}"] if patch else MAIN
        command, *others = arguments
        super().__init__(
            *start,
            command,
            *(within_backlog_limit() if command != "serve" else ()),
            *others,
            environment=environment,
            descriptors=descriptors,
        )

    @property
    def port(self) -> int:
        return int(self.expect(r"listening on .*:(\d+)$")[0][1])

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        """A client of it."""
        return socket.create_connection((host, self.port), PATIENCE)

    def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        self.signal(signal.SIGTERM)
        return self.end()


class Forwarder(Proxy):
    """``freebsd-splice forward`` on a free port of 127.0.0.1, to ``target``."""

    def __init__(
        self,
        target: tuple[str, int] | str,
        *options: str,
        listen: str = "127.0.0.1:0",
        patch: str = "",
        environment: dict[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        name = target if isinstance(target, str) else f"{target[0]}:{target[1]}"
        super().__init__(
            "forward",
            *options,
            listen,
            name,
            patch=patch,
            environment=environment,
            descriptors=descriptors,
        )


class Served(Proxy):
    """``freebsd-splice serve`` with a file, whose proxies listen on 127.0.0.1."""

    def __init__(self, path: Path, text: str, *options: str, patch: str = "") -> None:
        self.path = path
        path.write_text(text)
        super().__init__("serve", *options, str(path), patch=patch)

    def ports(self, count: int) -> list[int]:
        """Those of the first so many listening sockets, in the order of the log."""
        found = self.expect(r"listening on 127\.0\.0\.1:(\d+)$", count)
        return [int(each[1]) for each in found[:count]]

    def reload(self, text: str, pattern: str = r"INFO reloaded$", times: int = 1) -> None:
        """Have another file, and wait until the log says so many times what came of it."""
        self.path.write_text(text)
        self.signal(signal.SIGHUP)
        self.expect(pattern, times)


def connect_to(port: int) -> socket.socket:
    """A client of a program that listens there, on 127.0.0.1."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def within_backlog_limit() -> list[str]:
    """Options for a backlog that the system doesn't cut: it would be the first line of the log."""
    limit = backlog_limit()
    return ["--backlog", str(limit.most)] if limit is not None and limit.most < 1024 else []


_RUN_MAIN = """
import sys
from freebsd_splice._cli import main
sys.exit(main())
"""


class Server:
    """Runs ``serve(connection)`` in a thread for each connection it accepts."""

    def __init__(
        self,
        serve: Callable[[socket.socket], None],
        host: str = "127.0.0.1",
        listener: socket.socket | None = None,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._serve = serve
        self._listener = listener or socket.create_server((host, 0), family=family, backlog=1024)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno != errno.EMFILE:
                    return
                time.sleep(0.01)  # a test has taken all descriptors, and no event says when it ends
                continue
            connection.settimeout(PATIENCE)
            self._connections.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)


def where(server: Server) -> str:
    """Its address, as a target is written."""
    return "{}:{}".format(*server.address)


def echo(connection: socket.socket) -> None:
    """All that arrives goes back, EOF last."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def exchange(client: socket.socket, data: bytes) -> bytes:
    """Send it to an echo and take it back."""
    client.sendall(data)
    return receive(client, len(data))


def receive(sock: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        data = sock.recv(count - len(parts))
        if not data:
            raise AssertionError(f"EOF after {len(parts)} of {count} bytes")
        parts += data
    return bytes(parts)


def digest_to_eof(sock: socket.socket) -> tuple[int, str]:
    """How many bytes come before EOF, and their SHA-256."""
    count, sha = 0, hashlib.sha256()
    while data := sock.recv(1 << 20):
        count += len(data)
        sha.update(data)
    return count, sha.hexdigest()


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def free_port() -> int:
    """A port for a program that can't say which one it got.

    Below those that systems hand out by themselves, so that no client gets it meanwhile.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def until(holds: Callable[[], object]) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_refused(address: tuple[str, int]) -> bool:
    """Whether nobody listens there. A socket that is just being closed resets whom it had."""
    try:
        with contextlib.suppress(ConnectionResetError):
            socket.create_connection(address, PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def needs(program: str) -> None:
    """Skip where that program isn't installed; in CI that is a failure."""
    if shutil.which(program) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")


def needs_address(host: str) -> None:
    """Skip where it is none of this machine's: of 127.0.0.0/8, some have 127.0.0.1 alone."""
    try:
        socket.create_server((host, 0)).close()
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error.strerror}")


@contextlib.contextmanager
def closing_all() -> Iterator[list[socket.socket]]:
    """A list of sockets that are closed at the end."""
    sockets: list[socket.socket] = []
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leave this process that many free descriptors."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(limit[0], max(map(int, os.listdir("/dev/fd"))) + 50)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, limit[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        while count:
            os.close(taken.pop())
            count -= 1
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def _with_limit(descriptors: int | None) -> list[str]:
    """Run a program with that many descriptors, soft limit and hard."""
    if descriptors is None:
        return []
    return ["/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]


def _import_path() -> dict[str, str]:
    root = str(Path(freebsd_splice.__file__).parent.parent)
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([root, others] if others else [root])}
