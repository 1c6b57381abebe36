"""One direction, moved by the kernel: SO_SPLICE, and what it leaves to userspace.

A flow sets a splice in the kernel. When an event or the second look reports that the splice may be
over, the flow ends it with an unsplice call: then the splice is over for certain, and its count and
the bytes left at the source are final (F19: an event alone may be stale). The cause of the end
decides what comes next (``endings``): the flow's own end, a remainder for userspace to move (F13:
bytes left by an early end), or another splice of the pair.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from .._core.flow import End, Reason, SoFar, closed_or
from .._core.shared_sockets import SharedSocket
from .._errors import BackendUnavailable, refusal
from .._platform.interface import Platform
from .._platform.kernel_interface import KernelCalls
from .._platform.splice_checks import set_splice
from .._userspace.flow import UserspaceFlow
from .._userspace.workers import LocalWorker
from .checks import drain_failure, is_live_drain, why_not_spliced
from .endings import Decision, EndedSplice, next_step, take_cause
from .events import SpliceEvents
from .lost_events import LostEvents
from .phases import TRANSITIONS, Phase

logger = logging.getLogger("freebsd_splice")

#: The ``End.mover`` of a flow that the kernel has served.
MOVER_NAME = "SO_SPLICE"

#: Why userspace served a connection of a proxy.
NEVER_BUSY = "it was over before a splice would have paid"

#: What events and looks ask of a flow. Each request includes those before it.
_NOTHING, _COUNT, _WAITING, _EVENT, _END = range(5)


class KernelServices(Protocol):
    """The services that all flows of the kernel share."""

    @property
    def platform(self) -> Platform: ...

    @property
    def calls(self) -> KernelCalls: ...

    @property
    def events(self) -> SpliceEvents: ...

    @property
    def lost_events(self) -> LostEvents: ...

    def userspace_flow(self, worker: LocalWorker | None = None) -> UserspaceFlow:
        """Return a flow in userspace, for what the kernel leaves to it."""
        ...

    def submit(self, call: Callable[[], object]) -> None:
        """Run ``call``, which may have to wait, on a thread that may."""
        ...


class KernelFlow:
    """A flow (see ``_core.flow.Flow``) whose bytes the kernel moves.

    The flow holds its lock over every call that sets or ends its source's splice: an unsplice call
    while another thread is still setting the splice would answer ENOTCONN, and the splice would
    live (F35).
    """

    def __init__(
        self,
        kernel: KernelServices,
        *,
        fallback: bool,
        is_new: bool = False,
        worker: LocalWorker | None = None,
    ) -> None:
        self._kernel = kernel
        self._is_new = is_new  # userspace serves it until it has shown that it lasts
        # What a splice leaves behind is begun on a thread that isn't the local worker's.
        self._worker = worker if is_new else None
        self._userspace_mover = MOVER_NAME  # what has moved in userspace, if anything has
        self._calls = kernel.calls
        self._may_fall_back = fallback
        self._lock = threading.RLock()
        self._depth = 0
        self._source: SharedSocket
        self._drain: SharedSocket
        self._on_end: Callable[[End], None]
        self._limit: int | None = None
        self._moved = 0  # by the segments that are over
        self._before: SoFar | None = None  # what the first segment goes on from
        self._ahead = b""  # the part of ``initial`` that has not been handed to userspace yet
        self._surplus = b""  # the part of ``initial`` that is past the limit
        self._fallback: str | None = None  # why userspace serves
        self._phase = Phase.NEW
        self._stopped_early: Reason | None = None  # the reason of a stop before the start
        self._had_event = False  # whether an event has come since the splice was set
        # F38, a splice that stands still: how many bytes had been moved when a look last found more
        # waiting, and how many looks in a row have found the count there.
        self._stood_at = -1
        self._stood = 0
        self._segment: UserspaceFlow | None = None  # while userspace moves the bytes
        self._end: End | None = None
        self._told = False
        self._asking = threading.Lock()
        self._asked = _NOTHING

    def prepare(self, source: SharedSocket, drain: SharedSocket) -> None:
        if self._calls.capabilities.keeps_causes:
            for shared in (source, drain):
                shared.keep_causes()
        if self._is_new:  # most of them are over before there is anything to be asked
            return
        self._fallback = why_not_spliced(self._calls, source, drain)
        if self._fallback is not None and not self._may_fall_back:
            raise BackendUnavailable(
                errno.EPROTONOSUPPORT, f"the kernel can't splice this pair: {self._fallback}"
            )
        if self._fallback is None and is_live_drain(self._calls, drain):
            raise refusal(
                errno.EBUSY,
                f"{drain.original!r} is the drain of a splice that somebody else has made; "
                "end that one first",
            )

    def goes_on_from(self, so_far: SoFar) -> None:
        self._moved = so_far.moved
        self._before = so_far._replace(moved=0)

    def start(
        self,
        source: SharedSocket,
        drain: SharedSocket,
        limit: int | None,
        initial: bytes,
        on_end: Callable[[End], None],
    ) -> None:
        with self._held():
            self._source, self._drain = source, drain
            self._limit, self._on_end = limit, on_end
            if self._stopped_early is not None:
                self._finish(self._closed_or(self._stopped_early), unsent=initial)
            elif self._fallback is not None:
                self._enter(Phase.USERSPACE)
                self._serve_in_userspace(limit, initial)
            elif limit == 0:
                self._finish(Reason.LIMIT, unsent=initial)
            elif self._is_new and limit is None:
                self._enter(Phase.SENDING_INITIAL)
                self._serve_in_userspace(None, initial)
            elif initial:
                self._send_initial(initial)
            else:
                self._enter(Phase.BETWEEN)
                self._splice()

    @property
    def is_started(self) -> bool:
        return self._phase is not Phase.NEW

    def moved(self) -> int:
        with self._lock:
            moved = self._moved
            if self._segment is not None:
                moved += self._segment.moved()
            elif self._phase is Phase.SPLICED:
                moved += self._calls.spliced_count(self.pair[0])
            return moved

    def served_by(self) -> tuple[str, str] | None:
        end, segment = self._end, self._segment
        if end is not None:
            return end.backend, end.mover
        if not self._is_new and self._fallback is None:
            return "kernel", MOVER_NAME
        return None if segment is None else segment.served_by()

    def stop(self, reason: Reason = Reason.CANCELLED) -> End:
        with self._held():
            if self._phase is Phase.NEW:
                # The other flow of a pair has ended, or a socket was closed, in the meantime.
                self._stopped_early = reason
                return End(reason, 0, None, b"", None, "kernel", MOVER_NAME)
            if self._end is None:
                self._stop(reason)
        assert self._end is not None
        return self._end

    def look_soon(self) -> None:
        self._kernel.lost_events.again(self)

    # The requests of the kqueue and of the second look. Their thread must not wait.

    @property
    def pair(self) -> tuple[int, int]:
        return self._source.endpoint.fileno(), self._drain.endpoint.fileno()

    @property
    def counts(self) -> bool:
        return self._limit is not None

    def event(self) -> None:
        """Settle the splice, unless the event that has come was stale."""
        self._ask(_EVENT)

    def wake(self) -> None:
        """Settle the splice: a look shows that it may be over."""
        self._ask(_END)

    def compare_count(self) -> None:
        """Settle the splice if its limit is met, which can happen without an event (F19)."""
        self._ask(_COUNT)

    def bytes_wait(self) -> None:
        """Push the drain, or set the splice again, if it stands still although bytes wait (F38)."""
        self._ask(_WAITING)

    def _ask(self, asked: int) -> None:
        with self._asking:
            before, self._asked = self._asked, max(self._asked, asked)
        if before == _NOTHING:
            self._kernel.submit(self._answer)

    def _answer(self) -> None:
        with self._held():
            # Only with the lock: while a call to the kernel hangs, the looks and events of this
            # flow add one waiting thread, and no more.
            with self._asking:
                asked, self._asked = self._asked, _NOTHING
            if self._phase is Phase.SPLICED and self._may_be_over(asked):
                self._settle()

    def _may_be_over(self, asked: int) -> bool:
        if asked in (_COUNT, _WAITING):
            count = self._calls.spliced_count(self.pair[0])
            return count == self._room() or (asked == _WAITING and self._is_stuck(count))
        if asked == _EVENT and not self._had_event:
            self._had_event = True
            # The first event after a set can be from before it (F19: a stale event). If the flow
            # settled the splice nevertheless, the ACKs of the bytes it had moved would make the
            # first event after the next set, and so on as long as the stream lasts. Any later event
            # reports an end.
            return not is_live_drain(self._calls, self._drain)
        return True

    def _is_stuck(self, count: int) -> bool:
        """Return whether only ending the splice and setting it again is left to try (F38).

        The first look that finds the count where it stood pushes the drain. The second returns
        True, and the third and later ones push again. So each look tries one remedy at most.
        """
        moved = self._moved + count  # a new splice goes on from where the last one ended
        if moved != self._stood_at:
            self._stood_at, self._stood = moved, 0
            return False
        self._stood += 1
        if self._stood == 2:
            return True
        with suppress(OSError):  # the drain has died, which ends the splice anyway
            self._calls.push(self.pair[1])
        return False

    def _enter(self, phase: Phase) -> None:
        assert phase in TRANSITIONS[self._phase], (self._phase, phase)
        self._phase = phase

    # Setting and ending

    def _stop(self, reason: Reason) -> None:
        if self._segment is not None:
            segment = self._segment
            self._segment_over(segment, segment.stop(reason), reason)
        elif self._phase is Phase.SPLICED:
            self._settle(reason)
        else:
            self._finish_between(reason)

    def _splice(self) -> None:
        """Set a splice for the bytes that may still be moved.

        First check the drain: the kernel would destroy bytes where the drain isn't writable (F21),
        and spoil the source where it refuses the drain (F22).
        """
        room = self._room()
        failure = drain_failure(self._calls, self._drain)
        if failure is not None:
            self._finish(Reason.DRAIN_ERROR, failure)
            return
        # A cause that an earlier splice has left in SO_ERROR would end this one at once (F10).
        take_cause(self._source)
        source, drain = self.pair
        try:
            self._kernel.events.arm(self)
        except OSError as error:
            self._refused(error)
            return
        self._enter(Phase.SPLICED)
        self._had_event = False
        try:
            # 0 means no limit to the kernel: a limit that is met has ended the flow before.
            # No sp_idle: FreeBSD's ends a busy splice too (F11) and makes an end uncertain (F19),
            # and no kernel restarts it when bytes leave the drain's send buffer.
            set_splice(self._calls, source, drain, 0 if room is None else room, 0.0)
        except OSError as error:
            self._enter(Phase.BETWEEN)
            self._kernel.events.disarm(self)
            self._refused(error)
        else:
            self._kernel.lost_events.begin(self)

    def _settle(self, reason: Reason | None = None) -> None:
        """End the splice with an unsplice call, which is safe at any time, and act on its end.

        Args:
            reason: why the flow is stopped; None: the splice may be over by itself.
        """
        source, _ = self.pair
        try:
            self._calls.end_splice(source)
            was_live = True
        except OSError as error:
            # ENOTCONN, on OpenBSD EPROTO: the splice was over before, and is so for certain now.
            if error.errno not in (errno.ENOTCONN, errno.EPROTO):
                logger.error("unsplice failed: %s", error)
            was_live = False
        moved = self._calls.spliced_count(source)
        self._enter(Phase.BETWEEN)
        self._kernel.lost_events.end(self)
        self._kernel.events.disarm(self)
        ended = EndedSplice(was_live, moved, self._room())
        self._moved += moved
        found = next_step(self._kernel.platform, self._calls, self._source, self._drain, ended)
        if reason is not None:
            reason = self._closed_or(reason)
            if found.comes_before(reason):
                self._finish(found.reason, found.error)
            else:
                self._finish(reason)
        elif found.decision is Decision.RESPLICE:
            self._splice()
        elif found.decision is Decision.MOVE_REMAINDER:
            self._move_remainder()
        else:
            self._finish(found.reason, found.error)

    def _refused(self, error: OSError) -> None:
        """Go on after the kernel refused a splice that the checks had let through."""
        if error.errno in (errno.EBUSY, errno.ENOTRECOVERABLE):
            # Nothing says which socket is in use. Userspace would take bytes from a live splice.
            self._finish(Reason.DRAIN_ERROR, error)
        elif error.errno == errno.ENOTCONN:
            # One of the two sockets has died since the checks. Userspace moves the bytes that are
            # left, and finds out which socket it was.
            self._move_remainder()
        elif self._may_fall_back:
            self._fallback = f"the kernel refused this pair: {error}"
            self._enter(Phase.USERSPACE)
            self._serve_in_userspace(self._room(), b"")
        else:
            self._finish(Reason.SOURCE_ERROR, error)

    def _room(self) -> int | None:
        """Return how many bytes may still be moved; None: no limit."""
        return None if self._limit is None else self._limit - self._moved

    # Moving in userspace

    def _send_initial(self, initial: bytes) -> None:
        allowed = len(initial) if self._limit is None else min(self._limit, len(initial))
        self._surplus = initial[allowed:]
        self._enter(Phase.SENDING_INITIAL)
        self._serve_in_userspace(allowed, initial[:allowed])

    def _move_remainder(self) -> None:
        """Have userspace move the bytes that a splice has left (F13), up to the EOF or error."""
        if self._room() == 0:
            self._finish(Reason.LIMIT)
        else:
            self._enter(Phase.USERSPACE)
            self._serve_in_userspace(self._room(), b"")

    def _serve_in_userspace(self, limit: int | None, initial: bytes) -> None:
        self._ahead = initial
        segment = self._segment = self._kernel.userspace_flow(self._worker)
        segment.ends_when_busy = self._is_new
        if self._before is not None:
            segment.goes_on_from(self._before)
            self._before = None
        self._ahead = b""
        segment.start(
            self._source,
            self._drain,
            limit,
            initial,
            lambda end: self._segment_ended(segment, end),
        )

    def _segment_ended(self, segment: UserspaceFlow, end: End) -> None:
        with self._held():
            self._segment_over(segment, end)

    def _segment_over(
        self, segment: UserspaceFlow, end: End, stopped: Reason | None = None
    ) -> None:
        if self._segment is not segment:
            return  # the thread that stopped the segment has handled its end already
        self._segment = None
        self._moved += end.moved
        self._userspace_mover = end.mover
        if self._phase is Phase.USERSPACE or end.reason is not Reason.LIMIT:
            self._finish(end.reason, end.error, unsent=end.unsent)
        elif self._room() == 0:
            self._finish(Reason.LIMIT)
        elif stopped is not None:
            self._finish_between(stopped)
        else:
            # This is a worker's thread, and setting a splice may have to wait (F24).
            self._enter(Phase.BETWEEN)
            self._kernel.submit(self._splice_after_initial)

    def _splice_after_initial(self) -> None:
        with self._held():
            if self._end is not None:
                return
            if self._is_new:
                self._is_new, self._worker = False, None
                self._fallback = why_not_spliced(self._calls, self._source, self._drain)
            if self._fallback is None:
                self._splice()
            else:
                self._enter(Phase.USERSPACE)
                self._serve_in_userspace(self._room(), b"")

    # The end

    def _finish(
        self,
        reason: Reason,
        error: OSError | None = None,
        *,
        unsent: bytes = b"",
    ) -> None:
        self._enter(Phase.ENDED)
        if self._is_new and self._fallback is None:
            self._fallback = NEVER_BUSY
        self._end = End(
            reason=reason,
            moved=self._moved,
            limit=self._limit,
            unsent=unsent + self._surplus,
            error=error,
            backend="kernel" if self._fallback is None else "userspace",
            mover=MOVER_NAME if self._fallback is None else self._userspace_mover,
            fallback=self._fallback,
        )

    def _finish_between(self, reason: Reason) -> None:
        """Finish a flow that was stopped after it sent ``initial`` and before it set a splice."""
        failure = drain_failure(self._calls, self._drain)
        if failure is not None:
            self._finish(Reason.DRAIN_ERROR, failure)
        else:
            self._finish(self._closed_or(reason))

    def _closed_or(self, reason: Reason) -> Reason:
        return closed_or(reason, self._kernel.platform, self._source, self._drain)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the lock. The outermost release reports the end, after unlocking."""
        with self._lock:
            self._depth += 1
            try:
                yield
            except Exception as error:  # a defect must not leave a flow that never ends
                self._give_up(error)
            finally:
                self._depth -= 1
            tell = not self._depth and self._end is not None and not self._told
            self._told |= tell
        if tell:
            assert self._end is not None
            self._on_end(self._end)

    def _give_up(self, error: Exception) -> None:
        logger.exception("splicing failed unexpectedly")
        if self._phase is Phase.SPLICED:
            self._enter(Phase.BETWEEN)
            self._kernel.lost_events.end(self)
            with suppress(OSError):
                self._calls.end_splice(self.pair[0])
            self._kernel.events.disarm(self)
        if self._end is None:
            failure = OSError(errno.EIO, f"splicing failed unexpectedly: {error!r}")
            self._finish(Reason.SOURCE_ERROR, failure, unsent=self._ahead)
