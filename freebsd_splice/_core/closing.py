"""Close a connection without destroying the bytes it has taken: in the background, by looks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from .._platform.interface import Endpoint, Platform
from .pair_policy import SOON, Closing, Delivery
from .timers import Timer, Timers

logger = logging.getLogger("freebsd_splice")

#: Seconds, in all, that the package waits for slow peers when it shuts down.
_AT_LAST_SECONDS = 1.0


class Closer:
    """The sides of one runtime that will be closed once they have delivered what they took."""

    def __init__(
        self,
        platform: Platform,
        timers: Timers,
        run_blocking: Callable[[Callable[[], object]], object],
    ) -> None:
        self.platform = platform
        self.timers = timers
        self.run_blocking = run_blocking  # makes a call that may have to wait: the close itself
        self._lock = threading.Lock()
        self._live: set[Waiting] = set()
        self._finishing = False

    def close(
        self,
        endpoint: Endpoint,
        how: Closing,
        patience: float,
        release: Callable[[int | None], object],
        *,
        held: Callable[[], int] = lambda: 0,
        looks: int = 1,
    ) -> Waiting | None:
        """Have ``release`` close the endpoint once its bytes have arrived, or the patience ran out.

        Args:
            endpoint: the connection.
            how: whether by a reset, and whether to wait until its bytes have arrived.
            patience: seconds for which the peer may take nothing.
            release: closes the endpoint. It is given the number of bytes that may not have arrived
                (None: the system doesn't tell), at once where there is nothing to wait for, else
                later, on another thread.
            held: says how many bytes have still to be given to the socket.
            looks: how many looks in a row must find no byte left; more than one where ``held`` is
                not exact.

        Returns:
            The side that is still waiting; None where it is closed already.
        """
        with self._lock:
            if self._finishing:  # the timers end
                patience = 0.0
            waiting = Waiting(self, endpoint, how, patience, release, held, looks)
            self._live.add(waiting)
        waiting.begin()
        return None if waiting.is_over else waiting

    def finish(self) -> None:
        """Wait a second in all for the sides that are left; then close them, delivered or not.

        This runs on the caller's thread: at the interpreter's exit the system may refuse others.
        """
        with self._lock:
            self._finishing = True
            live = list(self._live)
        until = self.platform.now() + _AT_LAST_SECONDS
        for waiting in live:
            waiting.wait(max(0.0, until - self.platform.now()))
            try:
                waiting.close()
            except Exception:  # the others must be closed all the same
                logger.exception("closing a connection failed")

    def discard(self, waiting: Waiting) -> None:
        """Forget a side that is closed."""
        with self._lock:
            self._live.discard(waiting)


class Waiting:
    """One side that still has something to deliver."""

    def __init__(
        self,
        closer: Closer,
        endpoint: Endpoint,
        how: Closing,
        patience: float,
        release: Callable[[int | None], object],
        held: Callable[[], int],
        looks: int,
    ) -> None:
        self._closer = closer
        self._held = held
        self._looks = looks
        self._found_none = 0  # how many looks in a row
        self._endpoint = endpoint
        self._how = how
        self._release = release
        self._lock = threading.Lock()
        self._delivery = Delivery(closer.platform.now(), patience)
        self._timer: Timer | None = None
        self._closing = False  # one thread has been told to close it
        self._is_closed = False
        self._over = closer.platform.event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    @property
    def unacknowledged(self) -> int | None:
        """Bytes that had not arrived at the last look; None: the system doesn't tell."""
        return self._delivery.unacknowledged

    def begin(self) -> None:
        """Take the first look, on the caller's thread."""
        if self._look():
            self.close()

    def wait(self, seconds: float) -> None:
        self._over.wait(seconds)

    def close(self) -> None:
        """Close it now, whatever has not arrived. Only the first call does anything."""
        with self._lock:
            if self._is_closed:
                return
            self._closing = self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()
        try:
            if self._how.reset:
                with suppress(OSError):  # where the connection is gone already
                    self._closer.platform.reset_on_close(self._endpoint)
            self._release(self.unacknowledged)
        finally:
            self._closer.discard(self)
            self._over.set()

    def _look_again(self) -> None:
        if self._look():
            self._closer.run_blocking(self.close)

    def _look(self) -> bool:
        """Return whether the caller must close it now. True is returned once."""
        with self._lock:
            if self._closing:
                return False
            platform = self._closer.platform
            unacknowledged, pause = self._left(), None
            if platform.is_connected(self._endpoint):
                pause = self._delivery.look(platform.now(), unacknowledged)
                self._found_none = self._found_none + 1 if unacknowledged == 0 else 0
                if 0 < self._found_none < self._looks:
                    pause = SOON
            elif self._how.reset:
                self._delivery.died(unacknowledged)
            else:
                self._delivery.unacknowledged = unacknowledged
            self._closing = pause is None or not self._set_timer(pause)
            return self._closing

    def _left(self) -> int | None:
        if not self._how.after_delivery:
            return self._held_now()
        sent = self._closer.platform.unacknowledged(self._endpoint)
        return None if sent is None else sent + self._held_now()

    def _held_now(self) -> int:
        try:
            return self._held()
        except Exception:  # a defect in the owner's ``held`` must not keep the socket open
            logger.debug("cannot tell how many bytes are held for a connection", exc_info=True)
            return 0

    def _set_timer(self, seconds: float) -> bool:
        """Plan the next look; return False where the timers can't."""
        try:
            self._timer = self._closer.timers.after(seconds, self._look_again)
        except (OSError, RuntimeError):  # no descriptor or thread, or the package shuts down
            return False
        return True
