"""SO_SPLICE for the flows of one runtime."""

from __future__ import annotations

from collections.abc import Callable

from .._core.blocking_pool import BlockingPool
from .._core.flow import Flow
from .._core.timers import Timers
from .._platform.interface import Platform
from .._platform.kernel_interface import KernelCalls
from .._userspace.flow import UserspaceFlow
from .._userspace.workers import Engine, LocalWorker
from .events import SpliceEvents
from .flow import KernelFlow
from .lost_events import LostEvents


class KernelBackend:
    """What all flows that the kernel serves share.  They know it as ``KernelServices``."""

    def __init__(
        self,
        platform: Platform,
        calls: KernelCalls,
        timers: Timers,
        engine: Engine,
        pool: BlockingPool,
    ) -> None:
        self.platform = platform
        self.calls = calls
        self.lost_events = LostEvents(calls, timers)
        # What a splice leaves behind (F13) must not fail then for want of a worker.
        engine.start()
        self._engine = engine
        self._pool = pool
        self.events = SpliceEvents(calls.end_events())
        try:
            timers.listen(self.events, self.events.collect)
        except BaseException:
            self.events.close()
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

    def userspace_flow(self, worker: LocalWorker | None = None) -> UserspaceFlow:
        return self._engine.flows(1, worker)[0]

    def submit(self, call: Callable[[], object]) -> None:
        self._pool.submit(call)

    def close(self) -> None:
        self.events.close()

    def abandon(self) -> None:
        """In a forked child."""
        self.events.abandon()
