"""``Relay``: both directions between two sockets, as one operation with one end."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ._core.closing import Waiting
from ._core.flow import End, Flow, Reason, SoFar
from ._core.pair_policy import Ended, PairPolicy
from ._core.shared_sockets import SharedSocket
from ._core.time_limits import TimeLimits, check_seconds
from ._errors import InvalidArgument, why
from ._operation import Operation
from ._platform.interface import SocketLike
from ._runtime import Runtime, current
from ._splice import Outcome, check_bytes, make_outcome
from ._userspace.workers import LocalWorker

_Data = bytes | bytearray | memoryview
_Bytes = bytes  # ``bytes`` is a property's name below

#: Seconds for which a slow reader may take nothing of what it was sent before its side is reset.
LINGER = 10.0


@dataclass(frozen=True)
class RelayOutcome:
    """How a relay ended.

    ``str(outcome)`` says it in one line, as the proxies' log does::

        78 bytes left to right, 1048576 bytes right to left, eof, 0.012 s, kernel/SO_SPLICE

    An error names the side that failed, as in "source error (left: Connection reset by peer)", and
    bytes that may not have reached their reader come last.

    Attributes:
        left_to_right: the outcome of the direction from left to right.
        right_to_left: the outcome of the direction from right to left.
        reason: why the pair ended: the reason of the direction that ended first, of those that
            ended in any way but by an EOF that was passed on. EOF where both directions ended by
            such an EOF.
        error: that direction's error; None where it had none.
        seconds: the time from the start until the second of the two directions ended.
    """

    left_to_right: Outcome
    right_to_left: Outcome
    reason: Reason
    error: OSError | None
    seconds: float

    def __str__(self) -> str:
        """Return one line: bytes, reason and error, seconds, backend and mover, what is missing."""
        return describe(self, ("left to right", "right to left"), ("left", "right"))


class Relay(Operation[RelayOutcome]):
    """Deliver what arrives at each of two sockets to the other, until both directions have ended.

    A relay starts at once and runs by itself; ``wait()`` returns its ``RelayOutcome``. Until its
    end both sockets are non-blocking, and the caller must not read or write either of them. Closing
    one of the two socket objects ends the relay within a second.

    The EOF of one side is passed on to the other (shutdown(2) for writing) after the last byte
    before it, and the other direction goes on. A direction that fails ends the pair; what the other
    direction had received by then is still delivered, where somebody is left to take it. A
    direction that ended because the other did has the reason CANCELLED.

    Args:
        left: a connected stream socket, as for ``Splice``.
        right: the other one.
        idle_timeout: as for ``Splice``, in seconds, for the pair: traffic in one direction keeps
            both alive.
        timeout: as for ``Splice``, in seconds.
        half_close: False: the first EOF ends the pair, and is not passed on.
        close: True: the relay closes both sockets at its end. It resets a side that has not been
            sent all that had arrived for it, or whose other side was reset, as a FIN would tell
            the side that it has got everything. The bytes that were sent before the reset are
            delivered first (``linger``). A Unix socket can't be reset: its peer reads EOF, even
            where bytes are missing.
        linger: with ``close=True``: for how many seconds the peer of a side may take nothing of
            what it was sent, before the side is reset, or closed with bytes unread. Either destroys
            the bytes under way: ``Outcome.undelivered`` says how many of ``bytes`` those may be. A
            peer that goes on reading gets more time, as long as its system acknowledges something
            within each ``linger`` seconds. The relay is not over until then, unless it was
            cancelled or ended by one of its two time limits: then it is over at once, and the
            waiting goes on in the background. 0: no waiting. Where the system doesn't tell what
            was acknowledged (Windows), the relay waits all of ``linger``.
        initial: what the caller has read already: (bytes from the left, for the right; bytes from
            the right, for the left).
        fallback: as for ``Splice``. The kernel may serve one direction and userspace the other.

    Raises:
        OSError: as ``Splice``: EBUSY, EBADF, EINVAL, EPROTONOSUPPORT, EMFILE. EBUSY where one of
            the sockets is used by a splice or relay already.
        InvalidArgument: (an OSError with EINVAL and a ValueError) left and right are one object.
        BackendUnavailable: (an OSError, ENOPROTOOPT or EPROTONOSUPPORT) the kernel was demanded
            and can't serve this pair.
        ValueError: a time is not a positive number of seconds (``linger`` may be 0).
        TypeError: as ``Splice``: a bare descriptor, or a socket that speaks TLS in this process.
        RuntimeError: as ``Splice``.

    Where it raises, no socket has been touched or closed, not even with ``close=True``. A failure
    of one of the connections raises nothing: it is the outcome's ``reason`` and ``error``.

    Example::

        relay = Relay(client, target, idle_timeout=300, close=True)
        outcome = relay.wait()
        print(outcome)  # 78 bytes left to right, 1048576 bytes right to left, eof, 0.012 s, ...

    A server doesn't wait for each relay: ``add_done_callback`` and ``fileno`` report its end.
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
        runtime = self._its_runtime()
        super().__init__(runtime)
        self._close = close
        self._linger = check_linger(linger)
        self._policy = PairPolicy(half_close=half_close)
        self._flows = self._make_flows(fallback)
        self._ends: list[End | None] = [None, None]
        self._seconds = [0.0, 0.0]
        # For each side, what its closing waits for, and how many bytes may not have arrived.
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
        from_left, from_right = check_pair(initial)
        check_two_sides(left, right)
        self._started = runtime.platform.now()
        runtime.add(self)
        try:
            self._acquire_both(left, right)
        except BaseException:
            self._not_made()
            raise
        try:
            self._start_both(from_left, from_right)
            self._time_limits.start()
        except BaseException:  # raised by a signal handler, as by Ctrl-C
            self._close = False
            self._stop_both(Reason.CANCELLED)
            for direction, flow in enumerate(self._flows):
                # It ends at once, and the sockets are given back.
                if not flow.is_started and self._ends[direction] is None:
                    self._start(direction, b"")
            raise

    @property
    def bytes(self) -> tuple[int, int]:
        """How many bytes have been moved so far, as (left to right, right to left)."""
        self._check_process()
        return self._flows[0].moved(), self._flows[1].moved()

    def progress(self) -> list[tuple[int, tuple[str, str] | None]]:
        """Return how far left to right has come, and right to left. For the package's own use.

        Waits as ``bytes`` does, for the kernel's lock (F24).

        Returns:
            For each direction the bytes, and the backend and the mover that serve now; None where
            that isn't decided yet.
        """
        return [(flow.moved(), flow.served_by()) for flow in self._flows]

    def __repr__(self) -> str:
        state = self._outcome.reason.value if self._outcome is not None else "live"
        return f"<Relay {self._left.original!r} <-> {self._right.original!r}, {state}>"

    def cut_soon(self) -> None:
        """Cut a relay with ``close=True`` in the middle, and don't wait. For the package's own use.

        Each side gets what it was sent and then a reset, unless it has got everything.
        """
        self._cut = True
        self._runtime.run_blocking(partial(self._stop_both, Reason.CANCELLED))

    def _stop(self) -> None:
        self._end_now(Reason.CANCELLED)

    def _end_now(self, reason: Reason) -> None:
        """End the relay for a caller who cancels, or for a time limit.

        The relay is then over at once, and slow readers get their bytes in the background.
        """
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
        """Give the sockets back, or close them: both directions have ended."""
        if not self._close:
            self._is_released = [True, True]
            self._release(self._left)
            self._release(self._right)
            self._tell()
            return
        # Asked for both sides before the first of them is closed.
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
        """Store the outcome and notify every waiter, once."""
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
        """Return how many bytes were sent to that side and may not arrive."""
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
        """Return whether more has arrived there, or would have but for a failure."""
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

    def _its_runtime(self) -> Runtime:
        return current()

    def _make_flows(self, fallback: bool) -> list[Flow]:
        return self._runtime.flows(2, fallback=fallback)

    def _start_both(self, from_left: _Bytes, from_right: _Bytes) -> None:
        self._start(0, from_left)
        self._start(1, from_right)

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

    def _start(self, direction: int, initial: _Bytes) -> None:
        source, drain = self._side(direction), self._side(1 - direction)
        self._flows[direction].start(source, drain, None, initial, partial(self._ended, direction))

    def _acquire(self, original: SocketLike) -> SharedSocket:
        return self._runtime.sockets.acquire(
            original, source=True, drain=True, on_closed=self._socket_closed
        )

    def _release(self, shared: SharedSocket) -> None:
        self._runtime.sockets.release(
            shared, source=True, drain=True, on_closed=self._socket_closed
        )


class RelaySoFar(NamedTuple):
    """How far a relay had come before it became a ``Relay``.

    The first of each pair is for the direction from left to right, or for the left side.
    """

    #: When it began, on the platform's clock.
    started: float
    moved: tuple[SoFar, SoFar]
    #: The end of a direction whose EOF was passed on, and how many seconds after the start.
    ends: tuple[tuple[End, float] | None, tuple[End, float] | None]
    #: What each side has died of, where that is known: the system reports it only once.
    failures: tuple[OSError | None, OSError | None]


class GivenRelay(Relay):
    """A relay of two sockets that are its own from now on (see ``Sockets.take_over``).

    It closes them. ``worker`` moves what comes as long as that is little (see ``Engine.local``).
    ``so_far`` is what was done before, where it goes on with a relay that was none of these, and
    ``runtime`` the one that such a relay belonged to; None: this process's.
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
        so_far: RelaySoFar | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._given_runtime = runtime
        self._worker = worker
        self._so_far = so_far
        super().__init__(left, right, idle_timeout=idle_timeout, close=True, initial=initial)

    def end_idle(self) -> None:
        """End it as its idle time does, which was measured elsewhere."""
        self._runtime.run_blocking(partial(self._end_now, Reason.IDLE))

    def _its_runtime(self) -> Runtime:
        return self._given_runtime or super()._its_runtime()

    def _make_flows(self, fallback: bool) -> list[Flow]:
        # Once the flows have begun the caller must not close the sockets, as it does where this
        # raises.
        self._runtime.timers.begin()
        return self._runtime.flows(2, fallback=fallback, is_new=True, worker=self._worker)

    def _acquire_both(self, left: SocketLike, right: SocketLike) -> None:
        # To release them would close them.
        sockets = self._runtime.sockets
        self._left, self._right = sockets.take_over(left), sockets.take_over(right)
        if self._so_far is not None:
            for shared, failure in zip(
                (self._left, self._right), self._so_far.failures, strict=True
            ):
                if failure is not None:
                    shared.failed(failure)
        self._flows[0].prepare(self._left, self._right)
        self._flows[1].prepare(self._right, self._left)

    def _start_both(self, from_left: _Bytes, from_right: _Bytes) -> None:
        so_far, self._so_far = self._so_far, None
        if so_far is None:
            super()._start_both(from_left, from_right)
            return
        self._started = so_far.started
        for direction, ended in enumerate(so_far.ends):
            self._flows[direction].goes_on_from(so_far.moved[direction])
            if ended is not None:
                self._ends[direction], self._seconds[direction] = ended
                self._policy.ended(direction, Ended(Reason.EOF, None, False, passed_on=True))
        for direction, initial in enumerate((from_left, from_right)):
            if so_far.ends[direction] is None:
                self._start(direction, initial)


def describe(outcome: RelayOutcome, ways: tuple[str, str], sides: tuple[str, str]) -> str:
    """Return one line on the end of a relay: ``str(outcome)``, and the proxies' log.

    Args:
        outcome: how the relay ended.
        ways: names of the directions, left to right and right to left.
        sides: names of the sides, left and right.
    """
    directions = (outcome.left_to_right, outcome.right_to_left)
    named = list(zip(directions, ways, strict=True))
    moved = ", ".join(f"{direction.bytes} bytes {way}" for direction, way in named)
    failure = ""
    if outcome.error is not None:
        failure = f" ({sides[failed_side(outcome)]}: {why(outcome.error)})"
    movers = " and ".join(dict.fromkeys(f"{each.backend}/{each.mover}" for each in directions))
    line = f"{moved}, {outcome.reason.value}{failure}, {outcome.seconds:.3f} s, {movers}"
    missing = [f"{each.undelivered} {way}" for each, way in named if each.undelivered]
    return f"{line}; may not have arrived: {', '.join(missing)}" if missing else line


def failed_side(outcome: RelayOutcome) -> int:
    """Return the number of the side whose connection failed, of an outcome with an error."""
    first = outcome.left_to_right
    decisive = 0 if (first.reason, first.error) == (outcome.reason, outcome.error) else 1
    return decisive if outcome.reason is Reason.SOURCE_ERROR else 1 - decisive


def check_pair(initial: tuple[_Data, _Data]) -> tuple[bytes, bytes]:
    """Return copies of both.

    Raises:
        TypeError: ``initial`` is not a pair of bytes.
    """
    if not isinstance(initial, (tuple, list)) or len(initial) != 2:
        raise TypeError(
            "initial must be a pair of bytes, what was read from the left and what was read from "
            f"the right, not {type(initial).__name__}"
        )
    return check_bytes("initial[0]", initial[0]), check_bytes("initial[1]", initial[1])


def check_two_sides(left: object, right: object) -> None:
    """Check that they are two: ``Splice`` can make an echo, but a relay needs two ends.

    Raises:
        InvalidArgument: (EINVAL) both are the same object.
    """
    if left is right:
        raise InvalidArgument(
            errno.EINVAL, f"left and right must be two connections, not {left!r} twice"
        )


def check_linger(seconds: float) -> float:
    """Return ``seconds`` unchanged.

    Raises:
        ValueError: neither 0 nor a positive, finite number.
    """
    return 0.0 if seconds == 0 else check_seconds("linger", seconds) or 0.0
