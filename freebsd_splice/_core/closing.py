"""Closing a connection without destroying what it has taken: in the background, by looks."""

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
    """The sides of one runtime that are to be closed once they have delivered what they took."""

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
        """Have the endpoint closed by ``release``, as a reset or as it is.

        ``release`` is given the bytes that may not have arrived (None: it can't be told). It is
        called at once where nothing has to be waited for, else later, on another thread.
        ``patience``: seconds that the peer may take nothing. ``held`` says how many bytes have
        still to be given to the socket; where it isn't exact, so many ``looks`` must find none.
        Gives what is still waiting.
        """
        with self._lock:
            if self._finishing:  # there will be no timers
                patience = 0.0
            waiting = Waiting(self, endpoint, how, patience, release, held, looks)
            self._live.add(waiting)
        waiting.begin()
        return None if waiting.is_over else waiting

    def finish(self) -> None:
        """Wait a last while for what is left; then it is closed whatever has not arrived.

        On the caller's thread: at the interpreter's exit there may be no other to be had.
        """
        with self._lock:
            self._finishing = True
            live = list(self._live)
        until = self.platform.now() + _AT_LAST_SECONDS
        for waiting in live:
            waiting.wait(max(0.0, until - self.platform.now()))
            try:
                waiting.close()
            except Exception:  # the others are to be closed all the same
                logger.exception("closing a connection failed")

    def discard(self, waiting: Waiting) -> None:
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
        self._closing = False  # some thread has been told to close it
        self._is_closed = False
        self._over = closer.platform.event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    @property
    def unacknowledged(self) -> int | None:
        """Bytes that had not arrived at the last look; None: it can't be told."""
        return self._delivery.unacknowledged

    def begin(self) -> None:
        """The first look, on the caller's thread."""
        if self._look():
            self.close()

    def wait(self, seconds: float) -> None:
        self._over.wait(seconds)

    def close(self) -> None:
        """Now, whatever has not arrived; only the first call does it."""
        with self._lock:
            if self._is_closed:
                return
            self._closing = self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()
        try:
            if self._how.reset:
                with suppress(OSError):  # the connection is gone already
                    self._closer.platform.reset_on_close(self._endpoint)
            self._release(self.unacknowledged)
        finally:
            self._closer.discard(self)
            self._over.set()

    def _look_again(self) -> None:
        if self._look():
            self._closer.run_blocking(self.close)

    def _look(self) -> bool:
        """Whether it is to be closed now, by whoever is told so: that is once."""
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
        except Exception:  # the owner's question failed: that must not keep the socket open
            logger.debug("what is still held for a connection can't be told", exc_info=True)
            return 0

    def _set_timer(self, seconds: float) -> bool:
        """False: there will be no next look, as no timer is to be had."""
        try:
            self._timer = self._closer.timers.after(seconds, self._look_again)
        except (OSError, RuntimeError):  # no descriptor or thread; the package shuts down
            return False
        return True
