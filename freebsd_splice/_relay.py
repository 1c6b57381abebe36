"""``Relay``: both directions between two sockets, as one thing with one life."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial

from ._core.closing import Waiting
from ._core.flow import End, Flow, Reason
from ._core.pair_policy import Ended, PairPolicy
from ._core.shared_sockets import SharedSocket
from ._core.time_limits import TimeLimits, check_seconds
from ._operation import Operation
from ._platform.interface import SocketLike
from ._runtime import current
from ._splice import Outcome, make_outcome
from ._userspace.workers import LocalWorker

#: Seconds that the reader of a side that is to be reset may take nothing of what it was sent.
LINGER = 10.0


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


class Relay(Operation[RelayOutcome]):
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
        it, or whose other side was reset, is reset: a FIN would tell it that all is well.  The
        reset comes behind what the side was sent: ``bytes`` are delivered first (``linger``).
        A Unix socket can't be reset: its peer reads an EOF, whatever is missing.
    linger:
        With ``close``: how many seconds the peer of a side may take nothing of what it was sent
        before the side is reset, or closed with bytes unread, all the same.  Either would destroy
        what is under way: ``Outcome.undelivered`` says how much of ``bytes`` that may have been.
        A peer that goes on reading is waited for, as long as its system acknowledges something in
        that time.  The relay is not over until then, unless it was cancelled or ended by one of the
        two times: then it is over at once, and the waiting goes on behind it.  0: nobody is waited
        for.  Where the system doesn't tell (Windows), the whole time is waited.
    initial:
        What the caller has read already: from the left, for the right; from the right, for the
        left.
    fallback:
        As for ``Splice``.  Each direction is the kernel's or userspace's by itself.

    Raises as ``Splice`` does.  Then nothing has been touched, with ``close=True`` too.
    """

    def __init__(
        self,
        left: SocketLike,
        right: SocketLike,
        *,
        idle_timeout: float | None = None,
        timeout: float | None = None,
        half_close: bool = True,
        close: bool = False,
        linger: float = LINGER,
        initial: tuple[bytes, bytes] = (b"", b""),
        fallback: bool = True,
    ) -> None:
        runtime = current()
        super().__init__(runtime)
        self._close = close
        self._linger = check_linger(linger)
        self._policy = PairPolicy(half_close=half_close)
        self._flows = self._make_flows(fallback)
        self._ends: list[End | None] = [None, None]
        self._seconds = [0.0, 0.0]
        # What the closing of each side waits for; and whether nobody waits for that any more.
        self._waiting: list[Waiting | None] = [None, None]
        self._undelivered: list[int | None] = [0, 0]
        self._open_sides = 2
        self._is_released = [False, False]
        self._closing_has_begun = False
        self._cut = self._hurried = self._told = False
        self._time_limits = TimeLimits(
            runtime.platform,
            runtime.timers,
            idle_timeout=idle_timeout,
            timeout=timeout,
            moved=lambda: sum(flow.moved() for flow in self._flows),
            undelivered=self._undelivered_now,
            expire=self._end_now,
            run_blocking=runtime.run_blocking,
        )
        from_left, from_right = (memoryview(data).tobytes() for data in initial)
        self._started = runtime.platform.now()
        runtime.add(self)
        try:
            self._acquire_both(left, right)
        except BaseException:
            self._not_made()
            raise
        self._flows[0].start(self._left, self._right, None, from_left, partial(self._ended, 0))
        self._flows[1].start(self._right, self._left, None, from_right, partial(self._ended, 1))
        self._time_limits.start()

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes moved so far: left to right, right to left."""
        self._check_process()
        return self._flows[0].moved(), self._flows[1].moved()

    def __repr__(self) -> str:
        state = self._outcome.reason.value if self._outcome is not None else "live"
        return f"<Relay {self._left.original!r} <-> {self._right.original!r}, {state}>"

    def cut_soon(self) -> None:
        """End it in the middle, from any thread: for who has to stop, and ``close=True``.

        Each side gets what it was sent and then a reset, unless it has got everything.
        """
        self._cut = True
        self._runtime.run_blocking(partial(self._stop_both, Reason.CANCELLED))

    def _stop(self) -> None:
        self._end_now(Reason.CANCELLED)

    def _end_now(self, reason: Reason) -> None:
        """For a caller who cancels, or whose time has come: slow readers are served behind that."""
        self._hurried = True
        self._stop_both(reason)
        with self._state:
            closing = self._closing_has_begun
        if closing:
            self._tell()

    def _socket_closed(self) -> None:
        self._stop_both(Reason.CLOSED)

    def _stop_both(self, reason: Reason) -> None:
        for flow in self._flows:
            flow.stop(reason)

    def _ended(self, direction: int, end: End) -> None:
        passed_on, found_drain_dead = self._policy.passes_on(end.reason), False
        if passed_on:
            try:
                # Before this end is recorded: the sockets are given back with the second one.
                self._runtime.platform.shutdown_write(self._side(1 - direction).endpoint)
            except OSError as error:
                # The drain has died with bytes in it that its peer may not have got (F16).
                end = end._replace(reason=Reason.DRAIN_ERROR, error=error)
                passed_on, found_drain_dead = False, True
        ended = Ended(end.reason, end.error, bool(end.unsent), passed_on, found_drain_dead)
        with self._state:
            self._ends[direction] = end
            self._seconds[direction] = self._runtime.platform.now() - self._started
            stop_other = self._policy.ended(direction, ended)
            is_over = self._policy.is_over
        if is_over:
            self._finish()
            return
        self._flows[1 - direction].look_soon()
        if stop_other is not None:
            # This can be an event loop's thread, or a worker's: it must not wait for the kernel.
            self._runtime.run_blocking(partial(self._flows[1 - direction].stop, stop_other))

    def _finish(self) -> None:
        """Both have ended: give the sockets back, or close them."""
        if not self._close:
            self._is_released = [True, True]
            self._release(self._left)
            self._release(self._right)
            self._tell()
            return
        # Before the first of them is closed.
        rests = [self._policy.may_have_more(side) and self._has_rest(side) for side in (0, 1)]
        for side in (0, 1):
            how = self._policy.closing(side, rest_at_other=rests[1 - side], cut=self._cut)
            if not self._side(side).is_given_up:
                self._runtime.platform.close_original(self._side(side).original)
            release = partial(self._closed, side)
            if how.after_delivery:
                endpoint = self._side(side).endpoint
                self._waiting[side] = self._runtime.closer.close(
                    endpoint, how, self._linger, release
                )
            else:
                release(0)
        with self._state:
            self._closing_has_begun = True
        if self._hurried:
            self._tell()

    def _closed(self, side: int, undelivered: int | None) -> None:
        self._is_released[side] = True
        self._release(self._side(side))
        with self._state:
            self._undelivered[side] = undelivered
            self._open_sides -= 1
            both = not self._open_sides
        if both:
            self._tell()

    def _tell(self) -> None:
        """It is over, and nobody is told twice."""
        with self._state:
            if self._told:
                return
            self._told = True
            left_to_right, right_to_left = self._ends
        self._time_limits.cancel()
        assert left_to_right is not None
        assert right_to_left is not None
        decisive = self._policy.decisive
        self._settle(
            RelayOutcome(
                left_to_right=make_outcome(left_to_right, self._seconds[0], self._lost_at(1)),
                right_to_left=make_outcome(right_to_left, self._seconds[1], self._lost_at(0)),
                reason=decisive.reason,
                error=decisive.error,
                seconds=max(self._seconds),
            )
        )

    def _lost_at(self, side: int) -> int | None:
        """Bytes that were sent to that side and may not arrive."""
        waiting = self._waiting[side]
        if waiting is None or waiting.is_over:
            return self._undelivered[side]
        return waiting.unacknowledged

    def _undelivered_now(self) -> int:
        platform = self._runtime.platform
        return sum(
            platform.unacknowledged(self._side(side).endpoint) or 0
            for side in (0, 1)
            if not self._is_released[side]
        )

    def _side(self, side: int) -> SharedSocket:
        return self._right if side else self._left

    def _has_rest(self, side: int) -> bool:
        """Whether more has arrived there, or would have but for a failure."""
        source = self._side(side)
        with source.lock:
            if source.failure() is not None:
                return True
            try:
                return self._runtime.platform.peek(source.endpoint) > 0
            except BlockingIOError:
                return False
            except OSError:
                return True

    def _make_flows(self, fallback: bool) -> list[Flow]:
        return self._runtime.flows(2, fallback=fallback)

    def _acquire_both(self, left: SocketLike, right: SocketLike) -> None:
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

    def _acquire(self, original: SocketLike) -> SharedSocket:
        return self._runtime.sockets.acquire(
            original, source=True, drain=True, on_closed=self._socket_closed
        )

    def _release(self, shared: SharedSocket) -> None:
        self._runtime.sockets.release(
            shared, source=True, drain=True, on_closed=self._socket_closed
        )


class GivenRelay(Relay):
    """A relay of two sockets that are its own from now on (see ``Sockets.take_over``).

    It closes them. ``worker`` moves what comes as long as that is little (see ``Engine.local``).
    Raises OSError, and they are the caller's still.
    """

    def __init__(
        self,
        left: socket.socket,
        right: socket.socket,
        *,
        worker: LocalWorker | None,
        idle_timeout: float | None = None,
        initial: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        self._worker = worker
        super().__init__(left, right, idle_timeout=idle_timeout, close=True, initial=initial)

    def _make_flows(self, fallback: bool) -> list[Flow]:
        # Once the flows have begun the caller must not close the sockets, as it does where this
        # raises.
        self._runtime.timers.begin()
        return self._runtime.flows(2, fallback=fallback, is_new=True, worker=self._worker)

    def _acquire_both(self, left: SocketLike, right: SocketLike) -> None:
        # To release them would close them.
        sockets = self._runtime.sockets
        self._left, self._right = sockets.take_over(left), sockets.take_over(right)
        self._flows[0].prepare(self._left, self._right)
        self._flows[1].prepare(self._right, self._left)


def check_linger(seconds: float) -> float:
    """``seconds`` as they are; ValueError where that is not a time to wait for."""
    return 0.0 if seconds == 0 else check_seconds("linger", seconds) or 0.0
