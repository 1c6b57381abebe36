"""Clients that reset their connection while the proxy waits for something else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from ._connecting import PlainError
from ._handshake import Handshake

#: Seconds between two looks at the clients that are watched.
LOOK_EVERY = 0.25


class HangupError(PlainError):
    """The client has reset its connection; the text says what was being done for the client."""

    def __init__(self, stage: str) -> None:
        super().__init__(errno.ECONNRESET, f"client closed the connection {stage}")


class Hangups:
    """Looks at the clients that nobody reads or writes, for one event loop.

    Readiness doesn't help here: a client that has sent more bytes, or a FIN, and waits for the
    answer is readable all the time. So all watched clients are looked at together, every LOOK_EVERY
    seconds. A client that is watched for less than that costs next to nothing.
    """

    def __init__(self) -> None:
        self._watched: dict[asyncio.Task[Any], Handshake] = {}
        #: The stage of each client that was found gone.
        self._gone: dict[asyncio.Task[Any], str] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def watch(self, handshake: Handshake) -> Iterator[None]:
        """Cancel the ``with`` block once the client is gone, and raise HangupError from it."""
        task = asyncio.current_task()
        assert task is not None
        self._watched[task] = handshake
        self._look_later()
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._gone:
                raise
            raise HangupError(self._gone[task]) from None
        finally:
            self._watched.pop(task, None)
            self._gone.pop(task, None)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        for task, handshake in list(self._watched.items()):
            if handshake.is_lost():
                assert handshake.stage is not None
                self._gone[task] = handshake.stage
                del self._watched[task]  # once is enough
                task.cancel()
        if self._watched:
            self._look_later()
