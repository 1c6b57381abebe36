"""What all flows of the kernel's share: one kqueue for their ends, and the second look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ._crew import Crew
from ._engine import Engine, LocalWorker
from ._engine_flow import EngineFlow
from ._kernel_flow import KernelFlow
from ._kernel_port import KernelCalls
from ._port import Port, Readiness
from ._second_look import SecondLook
from ._watcher import Watcher

if TYPE_CHECKING:
    from ._flow import Flow


class Kernel:
    """SO_SPLICE for the flows of one runtime."""

    def __init__(
        self, port: Port, calls: KernelCalls, watcher: Watcher, engine: Engine, crew: Crew
    ) -> None:
        self.port = port
        self.calls = calls
        self.looks = SecondLook(calls, watcher)
        # What a splice leaves behind (F13) must not fail then for want of a worker.
        engine.start()
        self._engine = engine
        self._crew = crew
        # Held by whoever reads the kqueue, and from before a flow's registration until what that
        # makes fire has been read away: nobody else can take a first event for an end (F19).
        self._reading = threading.Lock()
        self._flows: dict[tuple[int, Readiness], KernelFlow] = {}
        self._events = calls.end_events()
        try:
            watcher.listen(self._events, self._collect)
        except BaseException:
            self._events.close()
            raise

    def flows(
        self, count: int, *, fallback: bool, is_new: bool = False, worker: LocalWorker | None = None
    ) -> list[Flow]:
        """New flows: one, or the two of a pair.

        is_new:
            Of connections that are new and nobody else's: they are spliced once they have shown
            that they last. Until then ``worker`` moves what comes.
        """
        return [
            KernelFlow(self, fallback=fallback, is_new=is_new, worker=worker) for _ in range(count)
        ]

    def engine_flow(self, worker: LocalWorker | None = None) -> EngineFlow:
        """A flow in userspace, for what the kernel leaves to it."""
        return self._engine.flows(1, worker)[0]

    def arm(self, flow: KernelFlow) -> None:
        """Have ``flow`` woken by its sockets' events; to be called before it is spliced."""
        source, drain = flow.pair
        own = {(source, Readiness.READ), (drain, Readiness.WRITE)}
        with self._reading:
            fired = self._events.arm(source, drain)
            others = [self._flows.get(event) for event in fired if event not in own]
            self._flows.update(dict.fromkeys(own, flow))
        _wake(others)

    def disarm(self, flow: KernelFlow) -> None:
        """The reverse; before one of the sockets is closed."""
        source, drain = flow.pair
        with self._reading:
            self._events.disarm(source, drain)
            del self._flows[source, Readiness.READ], self._flows[drain, Readiness.WRITE]

    def submit(self, call: Callable[[], object]) -> None:
        """Have ``call``, which may have to wait, made on a thread that may."""
        self._crew.submit(call)

    def close(self) -> None:
        self._events.close()

    def abandon(self) -> None:
        """In a forked child."""
        self._events.abandon()

    def _collect(self) -> None:
        with self._reading:
            flows = [self._flows.get(event) for event in self._events.collect()]
        _wake(flows)


def _wake(flows: Iterable[KernelFlow | None]) -> None:
    for flow in flows:
        if flow is not None:  # None: an event of a flow that has ended since
            flow.event()
