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

from .._backend import COPY
from .._core.flow import End, Reason, SoFar
from .._core.time_limits import IdleClock
from .._kernel.flow import NEVER_BUSY
from .._platform.interface import Endpoint, Readiness
from .._relay import GivenRelay, RelayOutcome, RelaySoFar
from .._runtime import Runtime
from .._splice import Outcome, make_outcome
from .._userspace.flow import MANY_MESSAGES, MUCH_BYTES
from .._userspace.workers import LocalWorker

_READ, _NONE, _FAILED = Readiness.READ, Readiness.NONE, int(Readiness.ERROR)

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
        self.runtime = runtime
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
        #: When each is to be looked at for its idle time, the next one first.
        self._looks: dict[LoopRelay, tuple[float, IdleClock]] = {}
        self._timer: asyncio.TimerHandle | None = None
        # What a relay becomes needs them, and could lack descriptors or a thread for them later.
        runtime.timers.begin()
        runtime.add(self)

    def begin(
        self, left: socket.socket, right: socket.socket, over: Callable[[], object]
    ) -> LoopRelay:
        """Join two sockets, which are the relay's from now on; it calls ``over`` at its end.

        Both are connected and non-blocking, and nobody has set a time to linger.

        Raises:
            OSError: the poller has no room. The sockets are the caller's still.
        """
        relay = LoopRelay(self, left, right, over)
        self._live.add(relay)
        if self.idle_timeout is not None:
            self._look_at(relay, IdleClock(self.idle_timeout, (0, 0), self.platform.now()))
        return relay

    def forget(self, relay: LoopRelay) -> None:
        """The relay is over, or another kind of relay."""
        self._live.discard(relay)
        if self.idle_timeout is not None:
            self._looks.pop(relay, None)

    def end_for_shutdown(self) -> None:
        """Cancel all relays, for ``shutdown()``."""
        if threading.get_ident() == self.thread:
            self._cancel_all()
            return
        done = threading.Event()

        def cancel_all() -> None:
            self._cancel_all()
            done.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(cancel_all)
            done.wait(_PATIENCE)

    def close(self) -> None:
        """Give up what all relays share: none is left."""
        if self._timer is not None:
            self._timer.cancel()
        self.runtime.discard(self)

    def _cancel_all(self) -> None:
        for relay in list(self._live):
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits for its end
                relay.cancel()

    # The idle time. Each relay is looked at every tenth of it, so that an end is late by a fifth.

    def _look_at(self, relay: LoopRelay, clock: IdleClock) -> None:
        assert self.idle_timeout is not None
        seconds = max(self.idle_timeout / 10, 0.025)
        self._looks[relay] = self.loop.time() + seconds, clock
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now, platform_now = self.loop.time(), self.platform.now()
        due = []
        for relay, (when, clock) in self._looks.items():
            if when > now:
                self._timer = self.loop.call_at(when, self._look)
                break
            due.append((relay, clock))
        for relay, clock in due:
            del self._looks[relay]
            if clock.has_passed(relay.traffic(), platform_now):
                relay.end_idle()
            else:
                self._look_at(relay, clock)


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
        self.ways = up, down = _Way(self, left, right), _Way(self, right, left)
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

    def cancel(self) -> None:
        """End it here and now, for a program that shuts the package down."""
        if self.is_over or self.relay is not None:
            return
        self._let_go()
        rests = [way.has_rest() for way in self.ways]
        for way, rest_at_other in zip(self.ways, reversed(rests), strict=True):
            if way.end is None:
                way.finish(Reason.CANCELLED)
            self._close(way.source, reset=rest_at_other)
        self._tell()

    def end_idle(self) -> None:
        """End it as one on which nothing has moved for ``idle_timeout`` seconds."""
        relay = self.as_relay()
        if relay is not None:
            relay.end_idle()

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
            self._close(way.source)
        self._tell()

    def _fail(self, error: BaseException, held: tuple[bytes, bytes] = (b"", b"")) -> None:
        """End it after an unexpected error: a defect must not leave it unended."""
        logger.error("moving bytes failed unexpectedly", exc_info=error)
        failure = OSError(errno.EIO, f"moving bytes failed unexpectedly: {error!r}")
        for way, unsent in zip(self.ways, held, strict=True):
            if way.end is None:
                way.finish(Reason.SOURCE_ERROR, failure, unsent)
            self._close(way.source, reset=True)
        self._tell()

    def _close(self, endpoint: Endpoint, *, reset: bool = False) -> None:
        platform = self.relays.platform
        if reset:
            with contextlib.suppress(OSError):  # where the connection is gone already
                platform.reset_on_close(endpoint)
        platform.close(endpoint)

    def fail(self, error: BaseException) -> None:
        """End it after an unexpected error amid a message."""
        if self.is_over or self.relay is not None:
            return
        self._let_go()
        self._fail(error, (self.ways[0].held(), self.ways[1].held()))

    def _tell(self) -> None:
        self.is_over = True
        over, self._over = self._over, _nothing
        over()
        # Only the collector would free what leads in a circle.
        for way in self.ways:
            del way.of, way.back


class _Way:
    """One direction of such a relay."""

    __slots__ = (
        *("_held", "back", "drain", "end", "has_much", "messages", "moved", "of", "seconds"),
        "source",
    )

    def __init__(self, of: LoopRelay, source: socket.socket, drain: socket.socket) -> None:
        self.of = of
        self.source = source
        self.drain = drain
        self.back: _Way
        self.moved = self.messages = 0
        self.has_much = False
        self.end: End | None = None
        self.seconds = 0.0
        self._held: memoryview | None = None  # taken, and not known to be sent

    def ready(self, ready: Readiness) -> None:
        """Move a message, after the poller has reported something of the source.

        The source is the other direction's drain: what the poller says of that matters as long as
        the other direction has not ended.
        """
        of = self.of
        try:
            if self.end is not None or (ready is not _READ and self.back.end is None):
                of.hand_over()
            else:
                self._move(ready)
        except Exception as error:
            of.fail(error)
        except BaseException as error:  # raised by a signal handler, between any two steps
            of.fail(error)
            raise

    def _move(self, ready: Readiness) -> None:
        relays = self.of.relays
        buffer = relays.buffer
        try:
            taken = relays.platform.receive_into(self.source, buffer)
        except BlockingIOError:
            if int(ready) & _FAILED:  # of a notice in the error queue, for instance
                self.of.hand_over()
            return
        except OSError as error:
            self._hand_over(of_source=error)
            return
        if not taken:
            self._source_ended()
            return
        self._held = buffer[:taken]
        failure = None
        try:
            sent = relays.platform.send(self.drain, self._held)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            # The BSDs raise EPIPE for a connection that was reset; SO_ERROR has the cause there.
            is_vague = isinstance(error, BrokenPipeError)
            cause = relays.platform.take_error(self.drain) if is_vague else None
            sent, failure = 0, cause or error
        self.moved += sent
        self.has_much = taken >= MUCH_BYTES
        if sent < taken:
            rest, self._held = bytes(buffer[sent:taken]), None
            self._hand_over(of_drain=failure, unsent=rest)
            return
        self._held = None
        self.messages += 1
        if self.has_much or self.messages == relays.most_messages:
            self._hand_over()

    def _hand_over(
        self,
        *,
        of_source: OSError | None = None,
        of_drain: OSError | None = None,
        unsent: bytes = b"",
    ) -> None:
        """Have the relay become a ``GivenRelay``, which is to know what was found here."""
        if self is self.of.up:
            self.of.hand_over((of_source, of_drain), (unsent, b""))
        else:
            self.of.hand_over((of_drain, of_source), (b"", unsent))

    def _source_ended(self) -> None:
        """Pass the source's EOF on."""
        of = self.of
        platform = of.relays.platform
        source = platform.take_error(self.source)
        # Bytes that a dead drain has taken are not a success: after a reset by the drain's peer
        # they can be lost (F16).
        drain = platform.take_error(self.drain)
        if source is not None or drain is not None:
            self._hand_over(of_source=source, of_drain=drain)
            return
        try:
            platform.shutdown_write(self.drain)
        except OSError:
            of.hand_over()  # which will meet it as well
            return
        self.finish(Reason.EOF)
        if self.back.end is not None:
            of.finish()
        else:
            of.relays.worker.change(self.source, _NONE)

    def finish(self, reason: Reason, error: OSError | None = None, unsent: bytes = b"") -> None:
        relays = self.of.relays
        self.seconds = relays.platform.now() - self.of.started
        self.end = End(reason, self.moved, None, unsent, error, "userspace", COPY, relays.fallback)

    def so_far(self) -> SoFar:
        return SoFar(self.moved, self.messages, self.has_much)

    def ended(self) -> tuple[End, float] | None:
        return None if self.end is None else (self.end, self.seconds)

    def held(self) -> bytes:
        return b"" if self._held is None else bytes(self._held)

    def has_rest(self) -> bool:
        """Return whether something has arrived at the source that was not taken."""
        try:
            return self.of.relays.platform.peek(self.source) > 0
        except OSError:
            return False

    def outcome(self) -> Outcome:
        assert self.end is not None
        return make_outcome(self.end, self.seconds)


def _nothing() -> None: ...
