"""Three machines in a row, as network namespaces: client, proxy, server. Linux, and root, alone."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from programs.processes import PATIENCE

_CLONE_NEWNET = 0x40000000

#: Each link: two machines, their addresses. The packets of both links pass through bad weather.
LINKS = [
    ("client", "198.51.100.1", "proxy", "198.51.100.2"),
    ("proxy", "203.0.113.2", "server", "203.0.113.1"),
]
PROXY, SERVER = "198.51.100.2", "203.0.113.1"

#: Without jitter: netem draws a delay for each packet then, and most of them arrive out of order.
#: "reorder" sends so many at once, ahead of those that are delayed (tc-netem(8)).
NETEM = "netem limit 10000 delay 1ms loss 0.3% duplicate 0.3% reorder 2%"


class Network:
    """The three machines, until ``close``."""

    def __init__(self) -> None:
        self._names = {
            name: f"freebsd-splice-{os.getpid()}-{name}"
            for name in ("client", "proxy", "server", "weather")
        }
        self._weather: subprocess.Popen[str] | None = None
        try:
            for name in self._names.values():
                _run(f"ip netns add {name}")
                _run(f"ip -n {name} link set lo up")
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        middle, devices = self._names["weather"], []
        for number, link in enumerate(LINKS):
            for machine, address in (link[:2], link[2:]):
                name, device = self._names[machine], f"net{number}"
                outer = f"{machine}{number}"
                _run(
                    f"ip link add {device} netns {name} type veth peer name {outer} netns {middle}"
                )
                # One segment at a time: who loses a packet loses no more than that.
                _run(f"ip -n {name} link set {device} gso_max_segs 1")
                _run(f"ip -n {name} address add {address}/24 dev {device}")
                _run(f"ip -n {name} link set {device} up")
                _run(f"ip -n {middle} link set {outer} up")
                devices.append(outer)
        if self._has_netem():
            for number in range(len(LINKS)):
                bridge = f"bridge{number}"
                _run(f"ip -n {middle} link add {bridge} type bridge")
                for outer in devices[2 * number : 2 * number + 2]:
                    _run(f"ip -n {middle} link set {outer} master {bridge}")
                    _run(f"tc -n {middle} qdisc add dev {outer} root {NETEM}")
                _run(f"ip -n {middle} link set {bridge} up")
            return
        with self.within("weather"):
            self._weather = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("weather.py")), *devices],
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._weather.stdout is not None
        assert self._weather.stdout.readline() == "ready\n"

    def _has_netem(self) -> bool:
        """Return whether the kernel has sch_netem; it is tried where nothing passes through it."""
        tried = f"tc -n {self._names['weather']} qdisc add dev lo root {NETEM}"
        return subprocess.run(tried.split(), capture_output=True).returncode == 0

    @contextmanager
    def within(self, machine: str) -> Iterator[None]:
        """Sockets that this thread makes, and programs that it starts, are on that machine."""
        with open("/proc/thread-self/ns/net") as before:
            self._enter(Path("/run/netns", self._names[machine]))
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def _enter(self, path: Path) -> None:
        with path.open() as namespace:
            _set_namespace(namespace.fileno())

    def losses(self) -> int:
        """Return how many packets the weather has lost, which may end by this.

        The other kinds must have occurred; netem itself counts what it has lost, and nothing else.
        """
        if self._weather is None:
            shown = _run(f"tc -n {self._names['weather']} -s qdisc show")
            return sum(map(int, re.findall(r"netem .*?dropped (\d+)", shown, re.S)))
        self._weather.terminate()
        said, _ = self._weather.communicate(timeout=PATIENCE)
        found = re.fullmatch(r"(\d+) lost (\d+) doubled (\d+) delayed\n", said)
        assert found, said
        assert int(found[2]), said
        assert int(found[3]), said
        return int(found[1])

    def close(self) -> None:
        if self._weather is not None:
            self._weather.kill()
            self._weather.communicate()
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def make_network() -> Network:
    """Return the three machines; skip where there can be none."""
    if not all(map(shutil.which, ("ip", "tc"))):
        pytest.skip("it takes ip and tc")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this root may have no network of its own")
    return Network()


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _run(command: str) -> str:
    ran = subprocess.run(command.split(), capture_output=True, text=True)
    assert ran.returncode == 0, (command, ran.stderr)
    return ran.stdout
