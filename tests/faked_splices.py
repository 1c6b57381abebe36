"""This machine's sockets with a kernel splice that is faked: set, it moves nothing."""

from __future__ import annotations

import errno
import os
import socket

from freebsd_splice._backend import KernelChoice
from freebsd_splice._platform.end_events import PollGlances
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._platform.kernel_interface import Glance, capabilities_of
from freebsd_splice._platform.system import SystemPort


class FakedKernelCalls:
    """Accepts every pair, and counts the calls that are made of it."""

    capabilities = capabilities_of("FreeBSD", (15, 1))

    def __init__(self) -> None:
        self.drains: dict[int, int] = {}
        self.counted = 0

    def set_splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
        self.drains[source] = drain

    def end_splice(self, source: int) -> None:
        if self.drains.pop(source, None) is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def spliced_count(self, source: int) -> int:
        self.counted += 1
        return 0

    def tcp_state(self, descriptor: int) -> int:
        return 4

    def transmit_tls_mode(self, descriptor: int) -> int:
        return 0

    receive_tls_mode = transmit_tls_mode

    def writable_now(self, descriptor: int) -> bool:
        return descriptor not in self.drains.values()

    def send_space(self, descriptor: int) -> int:
        return 40_000

    def send_low_water(self, descriptor: int) -> int:
        return 2048

    def unread(self, descriptor: int) -> int:
        return 0

    def push(self, drain: int) -> None:
        raise AssertionError("asked of FreeBSD")

    def end_events(self) -> FakedEndEvents:
        return FakedEndEvents()

    def glances(self) -> FakedGlances:
        return FakedGlances()


class FakedGlances(PollGlances):
    """poll(2) of this machine, except that no drain of a splice is writable (F25)."""

    def put(self, descriptor: int, asked: Glance) -> None:
        super().put(descriptor, asked & ~Glance.WRITE)


class FakedEndEvents:
    """No splice ends by itself."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()

    def fileno(self) -> int:
        return self._near.fileno()

    def arm(self, source: int, drain: int) -> list[tuple[int, Readiness]]:
        return []

    def disarm(self, source: int, drain: int) -> None: ...

    def collect(self) -> list[tuple[int, Readiness]]:
        return []

    def close(self) -> None:
        self._near.close()
        self._far.close()

    def abandon(self) -> None: ...


class FakedSplicePort(SystemPort):
    def __init__(self) -> None:
        super().__init__()
        self.calls = FakedKernelCalls()

    def choose(self) -> KernelChoice:
        return KernelChoice(self.calls, demanded=False)
