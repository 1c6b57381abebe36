"""Networks of a test's own, of which one can vanish from the sight of the other (Linux, root)."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000

#: Nobody has it: what is sent there is dropped without a word.
_NOBODY = "02:00:00:00:00:99"


class Network:
    """A network namespace with one address; it is one thread's, which does what has to be in it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._thread = ThreadPoolExecutor(1, "network")
        try:
            self._number = self.run(_enter_a_new_one)
        except OSError:
            self.close()
            raise

    def run(self, call: Callable[[], T]) -> T:
        """Make the call in it: the sockets that it makes, and programs that it starts, stay in."""
        return self._thread.submit(call).result()

    def set(self, name: str, value: int) -> None:
        """Write to a file below /proc/sys/net/ipv4."""
        self.run(lambda: Path("/proc/sys/net/ipv4", name).write_text(str(value)))

    def ip(self, *arguments: str) -> None:
        self.run(lambda: subprocess.run(["ip", *arguments], check=True))

    def join(self, other: Network) -> None:
        """Connect the two by a cable."""
        self.ip("link", "add", "cable", "type", "veth", "peer", "cable", "netns", other.number)
        for each in (self, other):
            each.ip("address", "add", f"{each.address}/24", "dev", "cable")
            each.ip("link", "set", "lo", "up")
            each.ip("link", "set", "cable", "up")

    @property
    def number(self) -> str:
        return str(self._number)

    def lose(self, other: Network) -> None:
        """From now on nothing that either sends arrives, and neither is told."""
        for one, lost in ((self, other), (other, self)):
            one.ip("neigh", "replace", lost.address, "lladdr", _NOBODY, "nud", "permanent",
                   "dev", "cable")  # fmt: skip

    def close(self) -> None:
        self._thread.shutdown()


def _enter_a_new_one() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    return threading.get_native_id()


@contextlib.contextmanager
def two_networks() -> Iterator[tuple[Network, Network]]:
    """Ours and a peer's; skip the test where there can't be any."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("networks of a test's own are made by unshare(2) and ip(8)")
    made: list[Network] = []
    try:
        try:
            made += [Network("10.9.0.1")]
            made += [Network("10.9.0.2")]
            made[0].join(made[1])
        except (PermissionError, subprocess.CalledProcessError):
            pytest.skip("networks of one's own, and a cable between them, are root's")
        yield made[0], made[1]
    finally:
        for each in made:
            each.close()
