"""The poller of a modelled system, as epoll is: level-triggered, or edge-triggered when quiet."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from freebsd_splice._platform.interface import Endpoint, Readiness

from .tcp import fail

if TYPE_CHECKING:
    from .world import World


class ModelPoller:
    """``Poller``: ``wait`` returns at once and notes how long it would sleep."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.watched: dict[int, Readiness] = {}
        #: Of each endpoint that is reported only when it has changed, the change reported last.
        self._quiet: dict[int, int] = {}
        #: Whether the next ``wait`` returns at once, whatever is watched: it was woken, or its loop
        #: is not here, as it has not begun yet or is serving what the last ``wait`` has returned.
        self._woken = True
        world.sleepers.append(self)
        self.sleeps_until: float | None = None

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        self._world.counts["watch"] += 1
        descriptor = endpoint.fileno()
        if self._world.pollers_are_full and descriptor not in self.watched:
            raise fail(errno.ENOSPC)
        self.watched[descriptor] = interest
        if descriptor in self._quiet:
            self._quiet[descriptor] = -1  # a change of the mask is reported too

    def forget(self, endpoint: Endpoint) -> None:
        self.watched.pop(endpoint.fileno(), None)
        self._quiet.pop(endpoint.fileno(), None)

    def quieten(self, endpoint: Endpoint) -> None:
        if endpoint.fileno() in self.watched:
            self._quiet.setdefault(endpoint.fileno(), -1)

    def listen(self, descriptor: int) -> None: ...

    def unlisten(self, descriptor: int) -> None: ...

    def ready(self) -> list[tuple[int, Readiness]]:
        found = []
        for descriptor, interest in list(self.watched.items()):
            shown = self._world.readiness(descriptor) & (
                interest | Readiness.HANGUP | Readiness.ERROR
            )
            if shown and self._quiet.get(descriptor) != self._world.changes(descriptor):
                found.append((descriptor, shown))
        return found

    def awake(self) -> bool:
        """Return whether ``wait`` would find a report, a wake-up or the end of its time."""
        due = self.sleeps_until is not None and self.sleeps_until <= self._world.time
        return self._woken or due or bool(self.ready())

    def wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        self._world.waits += 1
        self._world.sleeps(self)
        found = self.ready()
        self._woken = bool(found)
        self.sleeps_until = None if timeout is None else self._world.time + timeout
        for descriptor, _ in found:
            if descriptor in self._quiet:
                self._quiet[descriptor] = self._world.changes(descriptor)
        return found

    def wake(self) -> None:
        self._woken = True

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.watched.clear()
        self._world.sleepers.remove(self)
