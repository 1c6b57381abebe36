"""``Relay``: both directions between two sockets, as one thing with one life."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass

from ._deadlines import Deadlines
from ._flow import End, Reason
from ._port import Source
from ._runtime import current
from ._sockets import SharedSocket
from ._splice import Outcome, make_outcome
from ._waitable import Waitable

#: With these a drain refuses to be one, and lives: as a source it is met by no failure.
_REFUSALS = (errno.EBUSY, errno.ENOTRECOVERABLE, errno.ENOTCONN, errno.EIO)

#: Reasons that hold for both directions alike.
_OF_THE_PAIR = (Reason.CLOSED, Reason.TIMEOUT, Reason.IDLE)


@dataclass(frozen=True)
class RelayOutcome:
    """How a relay ended."""

    left_to_right: Outcome
    right_to_left: Outcome
    #: What ended the pair: the reason of the first direction that ended otherwise than by an EOF
    #: which was passed on; EOF where both did.
    reason: Reason
    #: That direction's error.
    error: OSError | None
    #: From the start to the end of the later direction.
    seconds: float


class Relay(Waitable[RelayOutcome]):
    """Deliver what arrives at each of two sockets to the other, until both directions have ended.

    It starts at once and runs by itself.  An EOF is passed on (shutdown(2) for writing) after the
    last byte before it, and the other direction lives on.  A direction that fails ends the pair,
    but what the other had received by then is still delivered where there is somebody to take it.
    A direction that ended because the other did has the reason CANCELLED.

    left, right:
        Two sockets, as for ``Splice``: non-blocking and not to be touched until it is over.
    idle_timeout, timeout:
        As for ``Splice``, for the pair: traffic either way keeps both directions alive.
    half_close:
        False: the first EOF ends the pair, and is not passed on.
    close:
        True: both sockets are closed at the end.  A side that was not sent all that had arrived for
        it, or whose other side was reset, is reset: a FIN would tell it that all is well.  (With
        SO_LINGER and a time set, closing waits, and the other relays of that worker with it.)
    initial:
        What the caller has read already: from the left, for the right; from the right, for the
        left.
    fallback:
        As for ``Splice``.  Each direction is the kernel's or userspace's by itself.

    Raises as ``Splice`` does.  Then nothing has been touched, with ``close=True`` too.
    """

    def __init__(
        self,
        left: Source,
        right: Source,
        *,
        idle_timeout: float | None = None,
        timeout: float | None = None,
        half_close: bool = True,
        close: bool = False,
        initial: tuple[bytes, bytes] = (b"", b""),
        fallback: bool = True,
    ) -> None:
        runtime = current()
        super().__init__(runtime)
        self._half_close = half_close
        self._close = close
        self._flows = runtime.flows(2, fallback=fallback)
        self._ends: list[End | None] = [None, None]
        self._seconds = [0.0, 0.0]
        self._decisive: End | None = None
        self._deadlines = Deadlines(
            runtime.port,
            runtime.watcher,
            idle_timeout=idle_timeout,
            timeout=timeout,
            moved=lambda: sum(flow.moved() for flow in self._flows),
            expire=self._stop_both,
            errand=runtime.errand,
        )
        from_left, from_right = (memoryview(data).tobytes() for data in initial)
        self._started = runtime.port.now()
        runtime.add(self)
        try:
            self._acquire_both(left, right)
        except BaseException:
            self._not_made()
            raise
        self._flows[0].start(self._left, self._right, None, from_left, self._left_to_right_ended)
        self._flows[1].start(self._right, self._left, None, from_right, self._right_to_left_ended)
        self._deadlines.start()

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes moved so far: left to right, right to left."""
        self._check_process()
        return self._flows[0].moved(), self._flows[1].moved()

    def __repr__(self) -> str:
        state = self._outcome.reason.value if self._outcome is not None else "live"
        return f"<Relay {self._left.original!r} <-> {self._right.original!r}, {state}>"

    def _stop(self) -> None:
        self._stop_both(Reason.CANCELLED)

    def _socket_closed(self) -> None:
        self._stop_both(Reason.CLOSED)

    def _stop_both(self, reason: Reason) -> None:
        for flow in self._flows:
            flow.stop(reason)

    def _left_to_right_ended(self, end: End) -> None:
        self._ended(0, end, self._right)

    def _right_to_left_ended(self, end: End) -> None:
        self._ended(1, end, self._left)

    def _ended(self, direction: int, end: End, drain: SharedSocket) -> None:
        dies_by_itself = end.reason is Reason.DRAIN_ERROR and not _is_refusal(end)
        passed_on = end.reason is Reason.EOF and self._half_close
        if passed_on:
            try:
                # Before this end is recorded: the sockets are given back with the second one.
                self._runtime.port.shutdown_write(drain.endpoint)
            except OSError as error:
                # The drain has died with bytes in it that its peer may not have got (F16).
                end, passed_on = end._replace(reason=Reason.DRAIN_ERROR, error=error), False
                dies_by_itself = True
        with self._state:
            self._ends[direction] = end
            self._seconds[direction] = self._runtime.port.now() - self._started
            if not passed_on and self._decisive is None:
                self._decisive = end
            left_to_right, right_to_left = self._ends
        if left_to_right is not None and right_to_left is not None:
            self._finish(left_to_right, right_to_left)
            return
        self._flows[1 - direction].look_soon()
        if not passed_on and not dies_by_itself:
            # Where the drain has died, the other direction reads from that very socket: it
            # delivers what came before and meets the failure by itself.
            self._flows[1 - direction].stop(
                end.reason if end.reason in _OF_THE_PAIR else Reason.CANCELLED
            )

    def _finish(self, left_to_right: End, right_to_left: End) -> None:
        self._deadlines.cancel()
        if self._close:
            self._reset_if_broken(self._left, self._right, left_to_right, right_to_left)
            self._reset_if_broken(self._right, self._left, right_to_left, left_to_right)
        self._release(self._left)
        self._release(self._right)
        if self._close:
            self._runtime.port.close_original(self._left.original)
            self._runtime.port.close_original(self._right.original)
        decisive = self._decisive or left_to_right
        self._settle(
            RelayOutcome(
                left_to_right=make_outcome(left_to_right, self._seconds[0]),
                right_to_left=make_outcome(right_to_left, self._seconds[1]),
                reason=decisive.reason,
                error=decisive.error,
                seconds=max(self._seconds),
            )
        )

    def _reset_if_broken(
        self, source: SharedSocket, drain: SharedSocket, towards: End, back: End
    ) -> None:
        """Close with a reset where a FIN would say that all is well.

        That is so for the peer of a drain that has not got all the bytes, and for the peer of a
        source whose bytes nobody took, unless it has got its whole answer.
        """
        lost = towards.unsent or (towards.reason is not Reason.EOF and self._has_rest(source))
        refused = back.reason is Reason.DRAIN_ERROR and towards.reason is not Reason.EOF
        if lost or refused:
            with suppress(OSError):  # dead already
                self._runtime.port.reset_on_close(drain.endpoint)

    def _has_rest(self, source: SharedSocket) -> bool:
        """Whether more has arrived, or would have but for a failure."""
        with source.lock:
            if source.failure() is not None:
                return True
            try:
                return self._runtime.port.peek(source.endpoint) > 0
            except BlockingIOError:
                return False
            except OSError:
                return True

    def _acquire_both(self, left: Source, right: Source) -> None:
        self._left = self._acquire(left)
        try:
            self._right = self._acquire(right)
        except BaseException:
            self._release(self._left)
            raise
        try:
            self._flows[0].prepare(self._left, self._right)
            self._flows[1].prepare(self._right, self._left)
        except BaseException:
            self._release(self._left)
            self._release(self._right)
            raise

    def _acquire(self, original: Source) -> SharedSocket:
        return self._runtime.sockets.acquire(
            original, source=True, drain=True, on_closed=self._socket_closed
        )

    def _release(self, shared: SharedSocket) -> None:
        self._runtime.sockets.release(
            shared, source=True, drain=True, on_closed=self._socket_closed
        )


def _is_refusal(end: End) -> bool:
    return end.error is not None and end.error.errno in _REFUSALS
