"""Close the sides of a copied pair with the runtime's ``Closer``, which needs no loop.

A task of the loop would not suffice: a loop that ends abandons tasks that were started while it
ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from time import monotonic

from .._core.closing import Waiting
from .._core.pair_policy import Closing
from .._runtime import current
from ._sides import StreamSide
from ._sockets import CopiedSocket

#: How often a stream has to be found empty before it is reset: no transport says exactly when its
#: last bytes have gone to the socket.
_LOOKS_BEFORE_RESET = 3

#: The most seconds that closing takes where nothing has to be waited for.
_BRIEFLY = 0.1


class ClosingSide:
    """One side that is being closed, after the bytes that were sent to it."""

    def __init__(self, side: CopiedSocket | StreamSide, how: Closing, linger: float) -> None:
        self._loop = asyncio.get_running_loop()
        #: Resolved on the loop once the side is closed.
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._undelivered: int | None = 0
        self._waiting: Waiting | None = None
        if isinstance(side, CopiedSocket):
            self._close_socket(side, how, linger)
        else:
            self._close_stream(side, how, linger)

    @property
    def undelivered(self) -> int | None:
        """The bytes that may not arrive, as far as is known now; None: the system doesn't say."""
        waiting = self._waiting
        if waiting is None or waiting.is_over:
            return self._undelivered
        return waiting.unacknowledged

    def _close_socket(self, side: CopiedSocket, how: Closing, linger: float) -> None:
        side.close()  # the caller's own socket; copying uses a duplicate
        if how.after_delivery:
            release = partial(self._socket_released, side)
            self._waiting = current().closer.close(side.endpoint, how, linger, release)
        else:
            self._socket_released(side, 0)

    def _socket_released(self, side: CopiedSocket, undelivered: int | None) -> None:
        """Release the socket and store what was not delivered. Runs on any thread."""
        self._undelivered = undelivered
        side.release()
        self._on_loop(lambda: None)

    def _close_stream(self, side: StreamSide, how: Closing, linger: float) -> None:
        runtime = current()
        try:
            endpoint, _ = runtime.platform.duplicate(side.original)
        except (OSError, ValueError):  # closed, or no descriptor left: end it immediately
            self._end_stream(side, how)
            return
        self._waiting = runtime.closer.close(
            endpoint,
            how,
            linger,
            partial(self._stream_released, side, how, partial(runtime.platform.close, endpoint)),
            held=partial(self._held, side),
            looks=_LOOKS_BEFORE_RESET if how.reset else 1,
        )

    def _held(self, side: StreamSide) -> int:
        """Return how many bytes the writer holds that may still leave it. Runs on any thread."""
        if self._loop.is_closed() or side.is_lost:
            return 0
        return side.pending

    def _stream_released(
        self,
        side: StreamSide,
        how: Closing,
        close_duplicate: Callable[[], object],
        undelivered: int | None,
    ) -> None:
        """Store what was not delivered, and have the loop end the stream. Runs on any thread."""
        self._undelivered = undelivered
        close_duplicate()
        self._on_loop(partial(self._end_stream, side, how))

    def _end_stream(self, side: StreamSide, how: Closing) -> None:
        if how.reset:
            side.reset()
        else:
            side.close()
        self._tell()

    def _on_loop(self, end: Callable[[], object]) -> None:
        def call() -> None:
            end()
            self._tell()

        with contextlib.suppress(RuntimeError):  # the loop is closed: no wait, nothing is sent
            self._loop.call_soon_threadsafe(call)

    def _tell(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def wait_briefly(*sides: ClosingSide) -> bool:
    """Wait as long as closing takes where nothing has to be waited for.

    Return whether the wait was cancelled meanwhile. A cancellation doesn't end the wait.
    """
    until, cancelled = monotonic() + _BRIEFLY, False
    while (left := until - monotonic()) > 0:
        missing = [side.over for side in sides if not side.over.done()]
        if not missing:
            break
        try:
            await asyncio.wait(missing, timeout=left)
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
