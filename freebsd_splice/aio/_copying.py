"""Copy on the loop, for streams that can't be handed over, with the same promises."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Sequence
from functools import partial

from .._core.flow import Reason
from .._core.pair_policy import Closing, Ended, PairPolicy
from .._relay import RelayOutcome
from .._splice import Outcome
from ._closing import ClosingSide, wait_briefly
from ._ending import attach
from ._sides import SocketSide, StreamSide
from ._sockets import CopiedSocket
from ._time_limits import LoopTimeLimits

#: The ``Outcome.mover`` of a copied pair.
STREAMS = "streams"

_PIECE = 1 << 16


async def copy_one_way(
    source: SocketSide | StreamSide,
    drain: SocketSide | StreamSide,
    *,
    limit: int | None,
    idle_timeout: float | None,
    timeout: float | None,
    initial: bytes,
    why: str,
) -> Outcome:
    """Do what ``splice`` does, by copying."""
    limits = LoopTimeLimits(idle_timeout=idle_timeout, timeout=timeout)
    with contextlib.ExitStack() as held:
        way = _Way(
            _taken(source, held, source=True, drain=False),
            _taken(drain, held, source=False, drain=True),
            limit,
            initial,
            why,
        )
        if way.move_at_once():
            return way.outcome(Reason.LIMIT)
        task = asyncio.ensure_future(way.run())
        try:
            reason = await limits.wait([task], way.progress, way.is_lost)
            await _stop([task])
        except BaseException as error:
            await _stop_in_spite_of_cancelling([task])
            attach(error, way.outcome(Reason.CANCELLED))
            raise
        _raise_defects([task])
    return way.outcome(reason or Reason.CANCELLED)


async def copy_both_ways(
    sides: Sequence[SocketSide | StreamSide],
    *,
    idle_timeout: float | None,
    timeout: float | None,
    half_close: bool,
    close: bool,
    linger: float,
    initial: tuple[bytes, bytes],
    why: str,
) -> RelayOutcome:
    """Do what ``relay`` does, by copying."""
    limits = LoopTimeLimits(idle_timeout=idle_timeout, timeout=timeout)
    with contextlib.ExitStack() as held:
        left, right = (_taken(each, held, source=True, drain=True) for each in sides)
        both = _Both(
            _Way(left, right, None, initial[0], why),
            _Way(right, left, None, initial[1], why),
            PairPolicy(half_close=half_close),
        )
        try:
            late = await both.run(limits)
        except BaseException as error:
            await both.stop_in_spite_of_cancelling()
            if close:
                held.pop_all()
                await wait_briefly(*both.close(linger))
            attach(error, both.outcome())
            raise
        if not close:
            return both.outcome()
        held.pop_all()
    closing = both.close(linger)
    try:
        if late is None:
            late = await _closed(closing, limits, both)
        if late is not None and await wait_briefly(*closing):
            raise asyncio.CancelledError
    except asyncio.CancelledError as error:
        attach(error, both.outcome())
        raise
    return both.outcome()


async def _closed(
    closing: Sequence[ClosingSide], limits: LoopTimeLimits, both: _Both
) -> Reason | None:
    """Wait until both sides are closed. Return None, or the reason why the wait was given up."""
    live = [side.over for side in closing]
    while live:
        late = await limits.wait(live, both.progress)
        if late is not None:
            return late
        live = [over for over in live if not over.done()]
    return None


def _taken(
    side: SocketSide | StreamSide, held: contextlib.ExitStack, *, source: bool, drain: bool
) -> CopiedSocket | StreamSide:
    """Return the object to read from and write to; it is valid until ``held`` is left."""
    if isinstance(side, StreamSide):
        return side
    copied = CopiedSocket(side, source=source, drain=drain)
    held.callback(copied.release)
    return copied


class _Way:
    """One direction of a pair."""

    def __init__(
        self,
        source: CopiedSocket | StreamSide,
        drain: CopiedSocket | StreamSide,
        limit: int | None,
        initial: bytes,
        why: str,
    ) -> None:
        self.moved = 0
        self.reason: Reason | None = None
        self._error: OSError | None = None
        self._source, self._drain = source, drain
        self._limit = limit
        self._ahead = memoryview(initial)
        self._why = why
        self._started = time.monotonic()
        self._seconds = 0.0

    async def run(self) -> None:
        """Move bytes until the direction ends by itself, and store its ``reason``."""
        try:
            self.reason = await self._move()
        finally:
            self._seconds = time.monotonic() - self._started

    def move_at_once(self) -> bool:
        """Move all bytes, if the reader has buffered them and the writer has room for them.

        Return whether they were moved.
        """
        if self._limit is None or isinstance(self._source, CopiedSocket):
            return False
        if isinstance(self._drain, CopiedSocket) or self._drain.is_lost:
            return False
        wanted = self._limit - len(self._ahead)
        if not 0 <= wanted <= self._source.buffered or self._limit > self._drain.room:
            return False
        self._drain.writer.write(bytes(self._ahead) + self._source.take_buffered(wanted))
        self._ahead = memoryview(b"")
        self.moved = self._limit
        return True

    def is_lost(self) -> Reason | None:
        """Return what has ended the direction unnoticed; None if it has not ended.

        No read or write reports such an end: nothing arrives, so nothing is written.
        """
        if self._source.was_closed or self._drain.was_closed:
            return Reason.CLOSED
        return Reason.DRAIN_ERROR if self._drain.is_lost else None

    def end(self, reason: Reason) -> None:
        """Store ``reason`` as the reason of the end, unless the direction has ended by itself."""
        self.reason = self.reason or reason
        if self.reason is Reason.DRAIN_ERROR and self._error is None:
            self._error = OSError(errno.EPIPE, os.strerror(errno.EPIPE))

    def ended(self, *, passed_on: bool, found_drain_dead: bool = False) -> Ended:
        assert self.reason is not None
        return Ended(self.reason, self._error, bool(self._ahead), passed_on, found_drain_dead)

    def outcome(self, reason: Reason, undelivered: int | None = 0) -> Outcome:
        """Return the outcome, with ``reason`` unless the direction has ended by itself."""
        self.end(reason)
        assert self.reason is not None
        return Outcome(
            bytes=self.moved,
            unsent=bytes(self._ahead),
            reason=self.reason,
            error=self._error,
            backend="userspace",
            mover=STREAMS,
            seconds=self._seconds or time.monotonic() - self._started,
            fallback=self._why,
            undelivered=undelivered,
        )

    def progress(self) -> tuple[int, int | None]:
        """Return a value that changes with every byte of traffic.

        It changes when a byte enters the drain's writer, and when one leaves for its peer.
        """
        return self.moved, self._drain.undelivered()

    @property
    def is_exhausted(self) -> bool:
        """Whether no more bytes will arrive to be moved."""
        return self._source.is_exhausted and not self._ahead

    def pass_eof_on(self) -> bool:
        """Pass the EOF on to the drain. Return whether the other direction can go on after it."""
        try:
            goes_on = self._drain.write_eof()
        except (OSError, RuntimeError) as error:  # RuntimeError: uvloop, for a closed one
            # The drain died with bytes in it that its peer may not have received: what a dead drain
            # has taken is not a success (F16).
            self.reason = Reason.DRAIN_ERROR
            self._error = error if isinstance(error, OSError) else None
            return False
        # TLS closes both directions at once: after its EOF nothing can be sent to it any more.
        return goes_on and not self._source.is_tls

    def has_rest(self) -> bool:
        """Return whether more has arrived at the source, or would have but for a failure."""
        return self._source.has_rest()

    def close_drain(self, how: Closing, linger: float) -> ClosingSide:
        """Begin to close the drain, after the bytes that were sent to it."""
        return ClosingSide(self._drain, how, linger)

    async def _move(self) -> Reason:
        while True:
            try:
                await self._push()
            except OSError as error:
                self._error = error
                return Reason.DRAIN_ERROR
            room = _PIECE if self._limit is None else min(_PIECE, self._limit - self.moved)
            if not room:
                return Reason.LIMIT
            try:
                data = await self._source.receive(room)
            except OSError as error:
                self._error = error
                return Reason.SOURCE_ERROR
            if not data:
                return Reason.CLOSED if self._source.was_closed else Reason.EOF
            self._ahead = memoryview(data)

    async def _push(self) -> None:
        """Send all that has been taken, up to the limit."""
        while self._ahead and self.moved != self._limit:
            room = _PIECE if self._limit is None else min(_PIECE, self._limit - self.moved)
            sent = await self._drain.send(self._ahead[:room])
            self.moved += sent
            self._ahead = self._ahead[sent:]
            await self._drain.sent()
            # Where both ends are fast, nothing above waits: give the loop's other tasks their turn.
            await asyncio.sleep(0)


class _Both:
    """The two directions of a pair, which end by the rules of ``PairPolicy``."""

    def __init__(self, towards: _Way, back: _Way, policy: PairPolicy) -> None:
        self._ways = towards, back
        self._policy = policy
        self._tasks: list[asyncio.Task[None]] = []
        self._started = time.monotonic()
        self._closing: Sequence[ClosingSide] = ()

    async def run(self, limits: LoopTimeLimits) -> Reason | None:
        """Run both directions until they have ended.

        Return which of the caller's time limits ended them, or None.
        """
        self._tasks = [asyncio.ensure_future(way.run()) for way in self._ways]
        running = {task: direction for direction, task in enumerate(self._tasks)}
        while running:
            live = [self._ways[direction] for direction in running.values()]
            late = await limits.wait(list(running), self.progress, partial(self._lost, live))
            if late is not None:
                await self._stop(late)
                return late if late in (Reason.TIMEOUT, Reason.IDLE) else None
            for task in [task for task in running if task.done()]:
                _raise_defects([task])
                stop_other = self._ended(running.pop(task))
                if stop_other is not None:
                    await self._stop(stop_other)
                    return None
        return None

    async def stop_in_spite_of_cancelling(self) -> None:
        await _stop_in_spite_of_cancelling(self._tasks)
        self._end_the_rest(Reason.CANCELLED)

    def outcome(self) -> RelayOutcome:
        lost = [side.undelivered for side in self._closing] or [0, 0]  # by side
        towards, back = (
            way.outcome(Reason.CANCELLED, lost[1 - direction])
            for direction, way in enumerate(self._ways)
        )
        decisive = self._policy.decisive
        seconds = time.monotonic() - self._started
        return RelayOutcome(towards, back, decisive.reason, decisive.error, seconds)

    def close(self, linger: float) -> Sequence[ClosingSide]:
        """Begin to close both sides, each after the bytes that were sent to it."""
        # Both sides are asked before the first of them is closed.
        rests = [
            self._policy.may_have_more(side) and self._ways[side].has_rest() for side in (0, 1)
        ]
        self._closing = [
            self._ways[1 - side].close_drain(
                self._policy.closing(side, rest_at_other=rests[1 - side]), linger
            )
            for side in (0, 1)
        ]
        return self._closing

    def progress(self) -> object:
        """Return a value that changes as long as there is traffic."""
        if self._closing:
            return [side.undelivered for side in self._closing]
        return [way.progress() for way in self._ways]

    def _ended(self, direction: int) -> Reason | None:
        """Tell the policy that a direction has ended.

        Return the reason to stop the other direction with; None if it is not to be stopped.
        """
        way = self._ways[direction]
        assert way.reason is not None
        if not self._policy.passes_on(way.reason):
            return self._policy.ended(direction, way.ended(passed_on=False))
        passed_on = way.pass_eof_on()
        found_drain_dead = way.reason is Reason.DRAIN_ERROR
        return self._policy.ended(
            direction, way.ended(passed_on=passed_on, found_drain_dead=found_drain_dead)
        )

    async def _stop(self, reason: Reason) -> None:
        await _stop(self._tasks)
        self._end_the_rest(reason)
        _raise_defects(self._tasks)

    def _end_the_rest(self, reason: Reason) -> None:
        for direction, way in enumerate(self._ways):
            if self._policy.has_ended(direction):
                continue
            if way.reason is not None:  # ended by itself, at the same moment
                self._ended(direction)
            else:
                way.end(reason)
                self._policy.ended(direction, way.ended(passed_on=False))

    def _lost(self, running: Sequence[_Way]) -> Reason | None:
        if Reason.CLOSED in [way.is_lost() for way in self._ways]:
            return Reason.CLOSED
        if len(running) > 1:
            # A lost drain is also a source, and first gives what arrived before the loss.
            return None
        if running[0].is_lost():  # and nothing reads from it any more
            return Reason.DRAIN_ERROR
        drain_died = any(way.reason is Reason.DRAIN_ERROR for way in self._ways)
        return Reason.CANCELLED if drain_died and running[0].is_exhausted else None


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel the tasks that are not done yet; none waits for anything once it is cancelled."""
    for task in tasks:
        task.cancel()
    if not all(task.done() for task in tasks):
        await asyncio.wait(tasks)


async def _stop_in_spite_of_cancelling(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Do what ``_stop`` does while an exception is being raised.

    A second exception must not replace the first.
    """
    for task in tasks:
        task.cancel()
    while not all(task.done() for task in tasks):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)


def _raise_defects(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raise what is a defect, not a failure of a connection."""
    for task in tasks:
        if not task.cancelled():
            task.result()
