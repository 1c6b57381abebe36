"""The kqueue that reports the ends of splices, and the flow that each event belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

from .._platform.interface import Readiness
from .._platform.kernel_interface import EndEvents


class Spliced(Protocol):
    """A flow whose splice is set, or is about to be set."""

    @property
    def pair(self) -> tuple[int, int]:
        """The descriptors of its source and its drain."""
        ...

    def event(self) -> None:
        """Look whether the splice is over: an event of one of its sockets has come."""
        ...


class SpliceEvents:
    """One kqueue for the ends of all splices (F19: the drain's and the source's event report one).

    Registering a flow makes first events fire, which report no end. A lock is held from before the
    registration until those have been read, and by every other reader of the kqueue, so that no
    reader takes a first event for an end.
    """

    def __init__(self, events: EndEvents) -> None:
        self._events = events
        self._reading = threading.Lock()
        self._flows: dict[tuple[int, Readiness], Spliced] = {}

    def fileno(self) -> int:
        """Return the kqueue's descriptor, which is readable while there are events to collect."""
        return self._events.fileno()

    def arm(self, flow: Spliced) -> None:
        """Have ``flow`` woken by its sockets' events. Called before the splice is set."""
        source, drain = flow.pair
        own = {(source, Readiness.READ), (drain, Readiness.WRITE)}
        with self._reading:
            fired = self._events.arm(source, drain)
            others = [self._flows.get(event) for event in fired if event not in own]
            self._flows.update(dict.fromkeys(own, flow))
        _wake(others)

    def disarm(self, flow: Spliced) -> None:
        """Undo ``arm``. Called before one of the sockets is closed."""
        source, drain = flow.pair
        with self._reading:
            self._events.disarm(source, drain)
            del self._flows[source, Readiness.READ], self._flows[drain, Readiness.WRITE]

    def collect(self) -> None:
        """Wake the flows whose sockets have events."""
        with self._reading:
            flows = [self._flows.get(event) for event in self._events.collect()]
        _wake(flows)

    def close(self) -> None:
        """Close the kqueue."""
        self._events.close()

    def abandon(self) -> None:
        """Give the kqueue up in a forked child, which doesn't inherit it."""
        self._events.abandon()


def _wake(flows: Iterable[Spliced | None]) -> None:
    for flow in flows:
        if flow is not None:  # None: the event of a flow that has ended since
            flow.event()
