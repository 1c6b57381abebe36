"""The numbers of all workers, asked for through socket pairs: those of dead workers included.

prometheus-client's own way for several processes, files that all of them write, has no place for
what is only read when it is asked for, as the bytes of live connections are. It also needs a
directory that somebody empties at each start.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import NamedTuple

from ..proxies._log import logger
from ..proxies._numbers import Snapshot, Totals, add

#: What a worker is sent for each snapshot.
_REQUEST = b"?"

#: Bytes that are read at once.
_PIECE = 1 << 16


class WorkerNow(NamedTuple):
    """How a worker is now, as far as it has answered.

    Attributes:
        answered: whether it has answered in time.
        now: its last answer's ``Snapshot.now``.
    """

    answered: bool
    now: Totals


class Collected(NamedTuple):
    """The numbers of all workers.

    Attributes:
        totals: the sums over all workers there have been.
        workers: the workers that accept clients, by their numbers.
        retired: those whose places others have taken, which serve the clients that they have.
    """

    totals: Totals
    workers: dict[int, WorkerNow]
    retired: list[WorkerNow]


def answer(channel: socket.socket, snapshot: Callable[[], Snapshot]) -> None:
    """Send a snapshot for each request, and one at the end. For a worker's thread.

    The end is when no requests can come any more: the other end is closed, or the channel is shut
    down for reading.
    """
    with channel, contextlib.suppress(OSError):
        channel.setblocking(True)
        is_asked = True
        while is_asked:
            is_asked = bool(channel.recv(1))
            try:
                line = snapshot().to_line()
            except Exception:  # a defect; that the channel is closed shows in the numbers
                logger.exception("the numbers can't be read")
                return
            channel.sendall(line)


class Collecting:
    """Asks the workers, on one event loop.

    A counter never becomes smaller: what a worker has last answered stays in the sums when it ends.
    Its last answer comes at its end, unless it dies: what it had counted since is lost then.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._of_the_dead: Totals = {}

    async def listen(self, number: int, channel: socket.socket) -> None:
        """Hear what a worker answers until it ends. Its channel is closed then."""
        worker = _Worker(number, channel)
        self._workers.append(worker)
        try:
            await worker.listen()
        finally:
            self._workers.remove(worker)
            add(self._of_the_dead, worker.snapshot.totals)
            channel.close()

    async def collect(self, seconds: float) -> Collected:
        """Ask all workers, and wait for their answers, for so many seconds at most."""
        answers = [worker.ask() for worker in self._workers]
        if answers:
            await asyncio.wait(answers, timeout=seconds)
        totals = dict(self._of_the_dead)
        for worker in self._workers:
            add(totals, worker.snapshot.totals)
        workers: dict[int, WorkerNow] = {}
        retired: list[WorkerNow] = []
        for worker in self._workers:  # of several with the same number the last has the place
            if worker.number in workers:
                retired.append(workers[worker.number])
            workers[worker.number] = WorkerNow(not worker.is_asked, worker.snapshot.now)
        return Collected(totals, workers, retired)


class _Worker:
    def __init__(self, number: int, channel: socket.socket) -> None:
        self.number = number
        self._channel = channel
        self.snapshot = Snapshot({}, {})
        self._answered = asyncio.get_running_loop().create_future()
        self._answered.set_result(None)
        self._was_asked = False

    @property
    def is_asked(self) -> bool:
        """Whether an answer is still to come."""
        return not self._answered.done()

    def ask(self) -> asyncio.Future[None]:
        """Ask for a snapshot; the future is done when one comes, or when the worker ends.

        A worker that has not answered yet isn't asked again.
        """
        if not self.is_asked:
            self._answered = asyncio.get_running_loop().create_future()
            self._was_asked = False
        if not self._was_asked:
            # It has just ended, which ``listen`` will find, or memory is short: it is asked again
            # for the next scrape then.
            with contextlib.suppress(OSError):
                self._channel.send(_REQUEST)
                self._was_asked = True
        return self._answered

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        received = b""
        try:
            while piece := await loop.sock_recv(self._channel, _PIECE):
                *lines, received = (received + piece).split(b"\n")
                for line in lines:
                    self.snapshot = Snapshot.from_line(line)
                    self._wake()
        except OSError:
            pass
        finally:
            self._wake()

    def _wake(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)
