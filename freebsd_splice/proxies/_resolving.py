"""Looking names up, for one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections import deque

from ._addresses import Address, Resolved, look_up

#: Look-ups under way at a time.  Clients choose the names, and those whose name servers don't
#: answer keep a thread for as long as the system tries.
MOST_LOOK_UPS = 64


class Resolver:
    """Looks names up in threads of its own: one for all who want the same name at a time.

    The loop's own ``getaddrinfo`` runs in threads that the end of the program waits for, however
    long a name server that has gone away keeps them.  Nobody waits for these.
    """

    def __init__(self) -> None:
        self._pending: dict[Address, _LookUp] = {}
        self._queue: deque[_LookUp] = deque()
        self._running = 0

    async def look_up(self, address: Address, seconds: float) -> list[Resolved]:
        """All that it stands for.

        Raises asyncio.TimeoutError, and what ``_addresses.look_up`` raises.
        """
        with contextlib.suppress(socket.gaierror, UnicodeError):
            return look_up(address, socket.AI_NUMERICHOST)
        found = self._pending.get(address)
        if found is None:
            found = self._pending[address] = _LookUp(address)
            self._queue.append(found)
        found.waiting += 1
        self._start()
        try:
            return await asyncio.wait_for(asyncio.shield(found.future), seconds)
        finally:
            found.waiting -= 1

    def _start(self) -> None:
        while self._queue and self._running < MOST_LOOK_UPS:
            found = self._queue.popleft()
            if not found.waiting:  # whoever wanted it has given up
                del self._pending[found.address]
                continue
            self._running += 1
            loop = asyncio.get_running_loop()
            name = f"look up {found.address.host}"
            thread = threading.Thread(target=self._run, args=(loop, found), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no thread is to be had now
                self._finish(found, OSError(errno.ENOMEM, str(error)))

    def _run(self, loop: asyncio.AbstractEventLoop, found: _LookUp) -> None:
        answer: list[Resolved] | Exception
        try:
            answer = look_up(found.address)
        except Exception as error:
            answer = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has ended
            loop.call_soon_threadsafe(self._finish, found, answer)

    def _finish(self, found: _LookUp, answer: list[Resolved] | Exception) -> None:
        del self._pending[found.address]
        self._running -= 1
        if isinstance(answer, Exception):
            found.future.set_exception(answer)
        else:
            found.future.set_result(answer)
        self._start()


class _LookUp:
    def __init__(self, address: Address) -> None:
        self.address = address
        self.waiting = 0
        self.future: asyncio.Future[list[Resolved]] = asyncio.get_running_loop().create_future()
        # Whoever asked may have given up by then: an error that nobody hears of is no news.
        self.future.add_done_callback(lambda done: done.cancelled() or done.exception())
