"""The servers of one event loop: those that accept clients, and those that only finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ..proxies import ProxyServer
from .listeners import Served


class Servers:
    """Runs servers until all have ended, and replaces those that accept by others.

    Args:
        begins: is called with each proxy before it accepts clients.
    """

    def __init__(self, begins: Callable[[Served], object] = lambda served: None) -> None:
        self._begins = begins
        self._running: dict[asyncio.Task[None], ProxyServer] = {}
        self._accepting: list[ProxyServer] = []
        self._news = asyncio.Event()
        self._failure: BaseException | None = None
        self._is_stopping = False

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._is_stopping

    @property
    def have_served(self) -> bool:
        """Whether clients were accepted, so that what ``run`` raises is no failure to start."""
        return any(server.has_begun for server in self._accepting)

    def replace(self, served: Sequence[Served]) -> bool:
        """Have these accept clients, and the others finish what they have begun.

        Returns:
            False where all are stopping, and nothing has changed.
        """
        if self._is_stopping:
            return False
        self.retire()
        self._accepting = [each.server for each in served]
        for each in served:
            self._begins(each)
            each.server.use(each.listeners[0])
            task = asyncio.get_running_loop().create_task(each.server.run())
            task.add_done_callback(lambda _: self._news.set())
            self._running[task] = each.server
        return True

    def retire(self) -> None:
        """Accept no more clients; live connections go on for as long as they last."""
        for server in self._accepting:
            server.retire()

    def stop(self) -> None:
        """Stop as ``ProxyServer.stop`` does, which a second and a third call change."""
        self._is_stopping = True
        for server in self._running.values():
            server.stop()

    async def run(self) -> None:
        """Wait until the last server has ended.

        Raises:
            ListenError: a listening socket listens no more; the other servers were stopped then.
        """
        while self._running:
            for task in [task for task in self._running if task.done()]:
                del self._running[task]
                if task.exception() is not None and self._failure is None:
                    self._failure = task.exception()
                    self.stop()
            if self._running:
                self._news.clear()
                await self._news.wait()
        if self._failure is not None:
            raise self._failure
