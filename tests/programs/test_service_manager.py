"""What a proxy tells the service manager that has started it, as systemd hears it."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from freebsd_splice._cli import service_manager
from freebsd_splice._cli.heartbeats import Heartbeats
from programs.processes import PATIENCE, Forwarder, Proxy, Server, exchange

StartForwarder = Callable[..., Forwarder]

#: Workers that end before they serve anybody.
WORKERS_THAT_DIE = """
import os
import freebsd_splice._cli.serving as serving
async def die(*args):
    os._exit(3)
serving._run = die
"""


class ServiceManager:
    """Stands for systemd: a socket that the program sends its states to."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name.replace("@", "\0"))
        self.socket.settimeout(PATIENCE)
        self.environment = {"NOTIFY_SOCKET": name}

    def hear(self) -> str:
        return self.socket.recv(4096).decode()

    def falls_silent(self) -> bool:
        """Whether, after what is on its way, nothing comes for a second."""
        self.socket.settimeout(1.0)
        try:
            for _ in range(20):
                self.hear()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return False


@pytest.fixture
def manager(tmp_path: Path, opened: ExitStack) -> ServiceManager:
    made = ServiceManager(str(tmp_path / "notify"))
    opened.enter_context(made.socket)
    return made


@pytest.fixture
def fresh() -> Iterator[None]:
    """What the environment says is read anew."""
    caches = (service_manager.watchdog_seconds, service_manager._socket_name)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_is_ready_when_it_serves_and_says_that_it_stops(
    workers: str, manager: ServiceManager, echo_server: Server, forwarder: StartForwarder
) -> None:
    options = ("--workers", workers)
    front = forwarder(echo_server.address, *options, environment=manager.environment)
    assert manager.hear() == "READY=1"
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    front.signal(signal.SIGTERM)
    assert manager.hear() == "STOPPING=1"
    assert front.end() == 0
    assert not front.find("WARNING|ERROR")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name_is_one(
    echo_server: Server, forwarder: StartForwarder, opened: ExitStack
) -> None:
    manager = ServiceManager(f"@freebsd-splice-{os.getpid()}")
    opened.enter_context(manager.socket)
    forwarder(echo_server.address, environment=manager.environment)
    assert manager.hear() == "READY=1"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_is_answered_twice(
    workers: str, manager: ServiceManager, echo_server: Server, forwarder: StartForwarder
) -> None:
    """A service of Type=notify-reload would wait for both; the time tells which reload is meant."""
    options = ("--workers", workers)
    front = forwarder(echo_server.address, *options, environment=manager.environment)
    assert manager.hear() == "READY=1"
    before = time.monotonic_ns() // 1000
    front.signal(signal.SIGHUP)
    reloading = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", manager.hear())
    assert reloading is not None
    assert before <= int(reloading[1]) <= time.monotonic_ns() // 1000
    assert manager.hear() == "READY=1"
    front.signal(signal.SIGUSR2)
    front.expect("SIGUSR2 does nothing")
    front.signal(signal.SIGTERM)
    assert manager.hear() == "STOPPING=1"


def test_a_reload_that_fails_is_answered_too(
    manager: ServiceManager, proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    routes = tmp_path / "routes.toml"
    routes.write_text('default = "127.0.0.1:1"')
    front = proxy("sni", str(routes), "127.0.0.1:0", environment=manager.environment)
    assert manager.hear() == "READY=1"
    routes.write_text("nonsense")
    front.signal(signal.SIGHUP)
    assert manager.hear().startswith("RELOADING=1")
    assert manager.hear() == "READY=1"
    front.expect("not reloaded")


def test_a_worker_whose_place_is_taken_hides_no_other() -> None:
    """Both have one number. The one that finishes has a live loop, the new one perhaps not."""
    heartbeats = Heartbeats(1)
    heartbeats.retire()
    heartbeats.beat(0)
    assert not heartbeats._last(0)
    heartbeats = Heartbeats(1)
    heartbeats.beat(0)
    assert heartbeats._last(0)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_watchdog_hears_of_live_loops(
    workers: str, manager: ServiceManager, echo_server: Server, forwarder: StartForwarder
) -> None:
    environment = {**manager.environment, "WATCHDOG_USEC": "100000"}
    forwarder(echo_server.address, "--workers", workers, environment=environment)
    heard: list[str] = []
    while heard.count("WATCHDOG=1") < 3 or "READY=1" not in heard:
        heard.append(manager.hear())
    assert set(heard) == {"READY=1", "WATCHDOG=1"}


def test_a_watchdog_does_not_hear_of_a_worker_that_hangs(
    manager: ServiceManager, server: Callable[..., Server], forwarder: StartForwarder
) -> None:
    serving = server(lambda connection: connection.recv(1))
    environment = {**manager.environment, "WATCHDOG_USEC": "400000"}
    front = forwarder(serving.address, "--workers", "2", environment=environment)
    while manager.hear() != "READY=1":
        pass
    with front.connect() as client:
        client.sendall(b"x")
    (served,) = front.expect(r"\[(\d+)\] INFO .* up")
    worker = int(served[1])
    os.kill(worker, signal.SIGSTOP)
    assert manager.falls_silent()
    os.kill(worker, signal.SIGCONT)
    assert manager.hear() == "WATCHDOG=1"


def test_it_is_not_ready_before_its_workers_serve(
    manager: ServiceManager, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(
        echo_server.address,
        *("--workers", "2"),
        patch=WORKERS_THAT_DIE,
        environment=manager.environment,
    )
    front.expect("has died: status 3", 2)
    front.signal(signal.SIGTERM)
    assert manager.hear() == "STOPPING=1"


def test_a_service_manager_that_is_gone_is_said_in_a_line(
    tmp_path: Path, echo_server: Server, forwarder: StartForwarder
) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "gone")}
    front = forwarder(echo_server.address, environment=environment)
    front.expect("WARNING cannot tell the service manager READY=1 .*: No such file or directory$")
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.stop() == 0


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_when_a_watchdog_wants_to_hear(
    given: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert service_manager.watchdog_seconds() == seconds


@pytest.mark.usefixtures("fresh")
def test_nobody_else_is_told_where_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that this one starts would speak for it."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    service_manager.ready()
    service_manager.watchdog_seconds()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
