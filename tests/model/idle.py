"""This machine's sockets, spliced by the modelled kernel, which never sees a byte of them.

These are for tests that need real sockets, threads and poll(2): the cost of idle splices, a call
that hangs, a fork.
"""

from __future__ import annotations

import socket

from freebsd_splice._backend import KernelChoice
from freebsd_splice._platform.end_events import SystemPollSet
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._platform.kernel_interface import PollBits
from freebsd_splice._platform.system import SystemPlatform

from .platform import Calls
from .tcp import Endpoint
from .world import World


class IdleWorld(World):
    """A world that takes each descriptor of this machine for an open connection that stays idle."""

    def __init__(self) -> None:
        super().__init__("15.1")
        self._found: dict[int, Endpoint] = {}

    def endpoint(self, descriptor: int) -> Endpoint:
        if descriptor not in self._found:
            near, _ = self.pair()
            self._found[descriptor] = self._descriptors[near.fileno()]
        return self._found[descriptor]


class IdleCalls(Calls):
    """The model's calls, with end events and a poll set that real threads can wait for."""

    def end_events(self) -> SilentEndEvents:
        return SilentEndEvents()

    def poll_set(self) -> DrainHidingPollSet:
        return DrainHidingPollSet()


class DrainHidingPollSet(SystemPollSet):
    """This machine's poll(2), except that it reports no drain of a splice writable (F25)."""

    def put(self, descriptor: int, asked: PollBits) -> None:
        super().put(descriptor, asked & ~PollBits.WRITE)


class SilentEndEvents:
    """In place of a kqueue: no splice ends by itself."""

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


class IdleKernelPlatform(SystemPlatform):
    """This machine's platform, with the modelled kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.world = IdleWorld()
        self.calls = IdleCalls(self.world)

    def choose(self) -> KernelChoice:
        return KernelChoice(self.calls, demanded=False)
