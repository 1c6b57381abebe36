"""SO_SPLICE for the flows of one runtime."""

from __future__ import annotations

from collections.abc import Callable

from ._crew import Crew
from ._engine import Engine
from ._engine_flow import EngineFlow
from ._flow import Flow
from ._kernel_flow import KernelFlow
from ._kernel_port import KernelCalls
from ._port import Port
from ._second_look import SecondLook
from ._splice_events import SpliceEvents
from ._watcher import Watcher


class Kernel:
    """What all flows that the kernel serves share.  They know it as ``KernelServices``."""

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
        self.events = SpliceEvents(calls.end_events())
        try:
            watcher.listen(self.events, self.events.collect)
        except BaseException:
            self.events.close()
            raise

    def flows(self, count: int, *, fallback: bool) -> list[Flow]:
        """New flows: one, or the two of a pair."""
        return [KernelFlow(self, fallback=fallback) for _ in range(count)]

    def engine_flow(self) -> EngineFlow:
        return self._engine.flows(1)[0]

    def submit(self, call: Callable[[], object]) -> None:
        self._crew.submit(call)

    def close(self) -> None:
        self.events.close()

    def abandon(self) -> None:
        """In a forked child."""
        self.events.abandon()
