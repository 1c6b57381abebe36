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
    """All that the flows of the kernel share. They know it as ``KernelServices``."""

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
        # Now, so that bytes which a splice leaves at the source (F13) never lack a worker later.
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
        """Return new flows: one, or the two of a pair.

        Args:
            count: 1 or 2.
            fallback: whether userspace may serve what the kernel can't.
            is_new: the connections are new and nobody else's. They are spliced once they have shown
                that they last; until then ``worker`` moves their bytes.
            worker: the worker without a thread that does so.
        """
        return [
            KernelFlow(self, fallback=fallback, is_new=is_new, worker=worker) for _ in range(count)
        ]

    def userspace_flow(self, worker: LocalWorker | None = None) -> UserspaceFlow:
        """Return a flow in userspace, for what the kernel leaves to it."""
        return self._engine.flows(1, worker)[0]

    def submit(self, call: Callable[[], object]) -> None:
        """Run ``call``, which may have to wait, on a thread that may."""
        self._pool.submit(call)

    def close(self) -> None:
        """Close the kqueue. All flows have ended before."""
        self.events.close()

    def abandon(self) -> None:
        """Give the kqueue up in a forked child, which doesn't inherit it."""
        self.events.abandon()
