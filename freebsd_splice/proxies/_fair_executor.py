"""Work in threads for which clients take turns, for one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class FairExecutor(Generic[Key, Answer]):
    """Does work in threads: the same work once for all who want it, and clients by turns.

    However much one client wants, another waits only for the work under way, and for one piece of
    work of each client that came before.
    """

    def __init__(
        self, most: int, share: int, start: Callable[[Callable[[], None]], object]
    ) -> None:
        """Do ``most`` pieces of work at a time, and ``share`` of them at most for one client.

        ``start`` runs what it is given on another thread; it raises RuntimeError where no thread
        can be started.
        """
        self._most = most
        self._share = share
        self._start_thread = start
        self._pending: dict[Key, _Piece[Key, Answer]] = {}
        #: For each client, the work that hasn't begun; the first client has the next turn.
        self._queues: dict[str, dict[_Piece[Key, Answer], None]] = {}
        self._running: Counter[str] = Counter()
        self._closed = False

    async def do(
        self, key: Key, client: str, work: Callable[[], Answer], seconds: float | None = None
    ) -> Answer:
        """Return what ``work`` returns, or raise what it raises.

        Where work with the same key is still wanted or under way, its result is that of both.

        Raises:
            asyncio.TimeoutError: the result was not there within ``seconds``.
            OSError: (ENOMEM) no thread could be started.
        """
        piece = self._pending.get(key)
        if piece is None:
            piece = self._pending[key] = _Piece(key, work)
        if not piece.begun:
            self._queues.setdefault(client, {})[piece] = None
            piece.clients.add(client)
        piece.waiting += 1
        self._start()
        try:
            return await asyncio.wait_for(asyncio.shield(piece.future), seconds)
        finally:
            piece.waiting -= 1
            if not (piece.waiting or piece.begun):  # everybody who wanted it has given up
                self._leave_queues(piece)
                del self._pending[key]

    def close(self) -> None:
        """Begin no more work, and cancel what waits for its turn. May be called on any thread."""
        self._closed = True
        for piece in list(self._pending.values()):
            if not piece.begun:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    piece.future.get_loop().call_soon_threadsafe(piece.future.cancel)

    def _start(self) -> None:
        while not self._closed and sum(self._running.values()) < self._most:
            client = self._next_client()
            if client is None:
                return
            piece = next(iter(self._queues[client]))
            piece.begun = True
            self._leave_queues(piece)
            if client in self._queues:  # the client's next work comes after the others'
                self._queues[client] = self._queues.pop(client)
            self._running[client] += 1
            loop = asyncio.get_running_loop()
            try:
                self._start_thread(partial(self._run, loop, piece, client))
            except RuntimeError as error:  # no thread can be started now
                self._settle(piece, client, OSError(errno.ENOMEM, str(error)))

    def _next_client(self) -> str | None:
        # Few clients can be passed over: those that have their share run ``most`` pieces in all.
        mays = (client for client in self._queues if self._running[client] < self._share)
        return next(mays, None)

    def _leave_queues(self, piece: _Piece[Key, Answer]) -> None:
        for client in piece.clients:
            queue = self._queues[client]
            del queue[piece]
            if not queue:
                del self._queues[client]
        piece.clients.clear()

    def _run(
        self, loop: asyncio.AbstractEventLoop, piece: _Piece[Key, Answer], client: str
    ) -> None:
        answer: Answer | Exception
        try:
            answer = piece.work()
        except Exception as error:
            answer = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has ended
            loop.call_soon_threadsafe(self._finish, piece, client, answer)

    def _finish(self, piece: _Piece[Key, Answer], client: str, answer: Answer | Exception) -> None:
        self._settle(piece, client, answer)
        self._start()

    def _settle(self, piece: _Piece[Key, Answer], client: str, answer: Answer | Exception) -> None:
        del self._pending[piece.key]
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        if piece.future.done():  # ``close`` has cancelled it
            return
        if isinstance(answer, Exception):
            piece.future.set_exception(answer)
        else:
            piece.future.set_result(answer)


class _Piece(Generic[Key, Answer]):
    def __init__(self, key: Key, work: Callable[[], Answer]) -> None:
        self.key = key
        self.work = work
        self.begun = False
        self.waiting = 0
        #: The clients in whose queues it is.
        self.clients: set[str] = set()
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # Retrieve the error: those who asked may have given up, and asyncio would log it.
        self.future.add_done_callback(lambda done: done.cancelled() or done.exception())
