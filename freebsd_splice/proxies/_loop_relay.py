"""Relays that an event loop's thread moves, in as few steps as can be.

Most connections of a proxy are short, or quiet: a few messages, a FIN each way. Such a relay needs
no lock, no flow, no time limit of its own and no thread but the loop's. Whatever is not of that
kind (a drain that is full, much to move, a failure, a limit, a cut) makes it a ``GivenRelay``. That
has the rules for all of it, and goes on from where this one has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable
from functools import partial

from .._core.flow import Reason
from .._core.pair_policy import Closing
from .._kernel.flow import NEVER_BUSY
from .._platform.interface import Endpoint, Readiness
from .._relay import LINGER, GivenRelay, RelayOutcome, RelaySoFar
from .._runtime import Runtime, current
from .._userspace.flow import MANY_MESSAGES
from .._userspace.workers import LocalWorker
from ._idle_looks import IdleLooks
from ._loop_way import SERVED_BY, Way

_READ = Readiness.READ

#: Seconds for which ``shutdown()`` waits for the loop.
_PATIENCE = 10.0

logger = logging.getLogger("freebsd_splice")


class LoopRelays:
    """The relays of one server that the loop's thread moves, and what they share.

    Args:
        runtime: this process's.
        worker: has their sockets in its poller.
        idle_timeout: as for ``Relay``.
        loop: has the worker; None: the running one.
    """

    def __init__(
        self,
        runtime: Runtime,
        worker: LocalWorker,
        idle_timeout: float | None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.platform = runtime.platform
        self.worker = worker
        self.buffer = worker.message_buffer
        self.idle_timeout = idle_timeout
        self.loop = loop or asyncio.get_running_loop()
        self.thread = threading.get_ident()
        has_kernel = runtime.has_kernel()
        self.fallback = NEVER_BUSY if has_kernel else None
        #: With its next message a relay counts as one that lasts: it is to be spliced.
        self.most_messages = MANY_MESSAGES - 1 if has_kernel else None
        self._live: set[LoopRelay] = set()
        self._idle_looks: IdleLooks | None = None
        if idle_timeout is not None:
            self._idle_looks = IdleLooks(self.loop, self.platform.now, idle_timeout)
        self._belong_to(runtime)

    def begin(
        self, left: socket.socket, right: socket.socket, over: Callable[[], object]
    ) -> LoopRelay:
        """Join two sockets, which are the relay's from now on; it calls ``over`` at its end.

        Both are connected and non-blocking, and nobody has set a time to linger.

        Raises:
            OSError: the poller has no room. The sockets are the caller's still.
        """
        runtime = current()
        if runtime is not self.runtime:  # that one was shut down, or is being shut down
            self._hand_all_over()
            self._belong_to(runtime)
        relay = LoopRelay(self, left, right, over)
        self._live.add(relay)
        if self._idle_looks is not None:
            self._idle_looks.begin(relay)
        return relay

    def forget(self, relay: LoopRelay) -> None:
        """The relay is over, or another kind of relay."""
        self._live.discard(relay)
        if self._idle_looks is not None:
            self._idle_looks.forget(relay)

    def close(self) -> None:
        """Give up what all relays share: none is left."""
        self.runtime.call_before_close.discard(self._before_close)
        self.buffer = memoryview(b"")  # the worker's, which lasts no longer

    def _belong_to(self, runtime: Runtime) -> None:
        # What a relay becomes needs them, and could lack descriptors or a thread for them later.
        runtime.timers.begin()
        self.runtime = runtime
        runtime.call_before_close.add(self._before_close)

    def _before_close(self) -> None:
        """Make all of them relays that ``shutdown()`` knows, and is about to cancel."""
        if threading.get_ident() == self.thread or not self.loop.is_running():
            self._hand_all_over()
            return
        done = threading.Event()

        def hand_all_over() -> None:
            self._hand_all_over()
            done.set()

        with contextlib.suppress(RuntimeError):  # the loop was closed just now
            self.loop.call_soon_threadsafe(hand_all_over)
            done.wait(_PATIENCE)

    def _hand_all_over(self) -> None:
        for relay in list(self._live):
            relay.as_relay()


class LoopRelay:
    """One relay: what arrives at each of two sockets is sent to the other, until both have ended.

    Attributes:
        relay: the relay that it has become, if any.
    """

    __slots__ = ("_over", "is_over", "relay", "relays", "started", "up", "ways")

    def __init__(
        self,
        relays: LoopRelays,
        left: socket.socket,
        right: socket.socket,
        over: Callable[[], object],
    ) -> None:
        self.relays = relays
        self.relay: GivenRelay | None = None
        self.is_over = False
        self.started = relays.platform.now()
        self._over = over
        self.ways = up, down = Way(self, left, right), Way(self, right, left)
        self.up = up
        up.back, down.back = down, up
        relays.worker.tell(left, _READ, up.ready)
        try:
            relays.worker.tell(right, _READ, down.ready)
        except BaseException:
            relays.worker.tell_no_more(left)
            raise

    def look(self) -> None:
        """Move what the left side has sent already; most clients have."""
        self.ways[0].ready(_READ)

    def traffic(self) -> tuple[int, int]:
        """Return what changes while there is traffic, as ``IdleClock`` wants it."""
        up, down = self.ways
        unacknowledged = self.relays.platform.unacknowledged
        undelivered = (unacknowledged(up.source) or 0) + (unacknowledged(down.source) or 0)
        return up.moved + down.moved, undelivered

    def outcome(self) -> RelayOutcome:
        """Return how it has ended."""
        if self.relay is not None:
            return self.relay.wait(0)
        up, down = (way.outcome() for way in self.ways)
        decisive = down if up.reason is Reason.EOF else up
        seconds = max(up.seconds, down.seconds)
        return RelayOutcome(up, down, decisive.reason, decisive.error, seconds)

    def cut_soon(self) -> None:
        """As ``Relay.cut_soon``."""
        relay = self.as_relay()
        if relay is not None:
            relay.cut_soon()

    def end_soon(self) -> None:
        """As ``Relay.end_soon``."""
        relay = self.as_relay()
        if relay is not None:
            relay.end_soon()

    def end_idle(self) -> None:
        """End it as one on which nothing has moved for ``idle_timeout`` seconds."""
        relay = self.as_relay()
        if relay is not None:
            relay.end_idle()

    def progress(self) -> list[tuple[int, tuple[str, str] | None]]:
        """Return what ``Relay.progress`` does. It may be called on any thread."""
        relay = self.relay
        if relay is not None:
            return relay.progress()
        return [(way.moved, SERVED_BY) for way in self.ways]

    def as_relay(self) -> GivenRelay | None:
        """Make it a ``GivenRelay``, if it isn't one; None: it has ended without."""
        if self.relay is None and not self.is_over:
            self.hand_over()
        return self.relay

    def hand_over(
        self,
        failures: tuple[OSError | None, OSError | None] = (None, None),
        initial: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        """Make it a ``GivenRelay``.

        Args:
            failures: what each side has died of, where the system has reported that.
            initial: what was taken from each side and not sent.
        """
        up, down = self.ways
        relays = self.relays
        self._let_go()
        moved, ends = (up.so_far(), down.so_far()), (up.ended(), down.ended())
        so_far = RelaySoFar(self.started, moved, ends, failures)
        try:
            self.relay = GivenRelay(
                up.source,
                down.source,
                runtime=relays.runtime,
                worker=relays.worker,
                idle_timeout=relays.idle_timeout,
                initial=initial,
                so_far=so_far,
            )
        except Exception as error:
            self._fail(error, initial)
        else:
            self.relay.when_over(self._relay_over)

    def _relay_over(self) -> None:
        """The relay that it has become is over. Called on whichever thread finds that."""
        relays = self.relays
        call = relays.loop.call_soon_threadsafe
        # A signal handler also runs on the loop's thread, while the loop sleeps.
        if threading.get_ident() == relays.thread and relays.worker.is_at_work:
            call = relays.loop.call_soon
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            call(self._tell)

    def _let_go(self) -> None:
        for way in self.ways:
            self.relays.worker.tell_no_more(way.source)
        self.relays.forget(self)

    def finish(self) -> None:
        """Both directions have ended with an EOF that was passed on."""
        self._let_go()
        for way in self.ways:
            self.relays.platform.close(way.source)
        self._tell()

    def fail(self, error: BaseException) -> None:
        """End it after an unexpected error amid a message."""
        if self.is_over or self.relay is not None:
            logger.error("the end of a relay failed unexpectedly", exc_info=error)
            return
        self._let_go()
        self._fail(error, (self.ways[0].held(), self.ways[1].held()))

    def _fail(self, error: BaseException, held: tuple[bytes, bytes]) -> None:
        """End it: a defect must not leave it unended, and destroys nothing that was sent."""
        logger.error("moving bytes failed unexpectedly", exc_info=error)
        failure = OSError(errno.EIO, f"moving bytes failed unexpectedly: {error!r}")
        closer, how = self.relays.runtime.closer, Closing(reset=True, after_delivery=True)
        for way, unsent in zip(self.ways, held, strict=True):
            if way.end is None:
                way.finish(Reason.SOURCE_ERROR, failure, unsent)
            closer.close(way.source, how, LINGER, partial(self._close, way.source))
        self._tell()

    def _close(self, endpoint: Endpoint, undelivered: int | None) -> None:
        self.relays.platform.close(endpoint)

    def _tell(self) -> None:
        self.is_over = True
        over, self._over = self._over, _nothing
        over()
        # Only the collector would free what leads in a circle.
        for way in self.ways:
            del way.of, way.back


def _nothing() -> None: ...
