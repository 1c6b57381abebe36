"""For streams that can't be handed over: the loop copies, with the same promises."""

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
from ._closing import ClosingSide, a_moment
from ._ending import attach
from ._sides import SocketSide, StreamSide
from ._sockets import CopiedSocket
from ._time_limits import LoopTimeLimits

#: What ``Outcome.mover`` says of it.
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
    """``splice`` by copying."""
    limits = LoopTimeLimits(idle_timeout=idle_timeout, timeout=timeout)
    with contextlib.ExitStack() as held:
        way = _Way(
            _taken(source, held, source=True, drain=False),
            _taken(drain, held, source=False, drain=True),
            limit,
            initial,
            why,
        )
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
    """``relay`` by copying."""
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
                await a_moment(*both.close(linger))
            attach(error, both.outcome())
            raise
        if not close:
            return both.outcome()
        held.pop_all()
    closing = both.close(linger)
    try:
        if late is None:
            late = await _closed(closing, limits, both)
        if late is not None and await a_moment(*closing):
            raise asyncio.CancelledError
    except asyncio.CancelledError as error:
        attach(error, both.outcome())
        raise
    return both.outcome()


async def _closed(
    closing: Sequence[ClosingSide], limits: LoopTimeLimits, both: _Both
) -> Reason | None:
    """Wait until both are closed; or why nobody waits any longer."""
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
    """What bytes are read from and written to, until ``held`` is left."""
    if isinstance(side, StreamSide):
        return side
    copied = CopiedSocket(side, source=source, drain=drain)
    held.callback(copied.release)
    return copied


class _Way:
    """One direction."""

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
        """Move until the end, which is a ``reason`` of its own."""
        try:
            self.reason = await self._move()
        finally:
            self._seconds = time.monotonic() - self._started

    def is_lost(self) -> Reason | None:
        """What has ended it without anybody's being told: nothing comes, so nothing is written."""
        if self._source.was_closed or self._drain.was_closed:
            return Reason.CLOSED
        return Reason.DRAIN_ERROR if self._drain.is_lost else None

    def end(self, reason: Reason) -> None:
        """It has ended for ``reason``, unless it has come to an end by itself."""
        self.reason = self.reason or reason
        if self.reason is Reason.DRAIN_ERROR and self._error is None:
            self._error = OSError(errno.EPIPE, os.strerror(errno.EPIPE))

    def ended(self, *, passed_on: bool, found_drain_dead: bool = False) -> Ended:
        assert self.reason is not None
        return Ended(self.reason, self._error, bool(self._ahead), passed_on, found_drain_dead)

    def outcome(self, reason: Reason, undelivered: int | None = 0) -> Outcome:
        """What became of it; ``reason`` where it hasn't come to an end by itself."""
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
        """Changes with every byte that enters the drain's writer, or leaves for its peer."""
        return self.moved, self._drain.undelivered()

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more will come to be moved."""
        return self._source.is_exhausted and not self._ahead

    def pass_eof_on(self) -> bool:
        """Whether the other direction can go on behind it."""
        try:
            goes_on = self._drain.write_eof()
        except (OSError, RuntimeError) as error:  # uvloop's, of one that is closed
            # It has died with bytes in it that its peer may not have got (F16).
            self.reason = Reason.DRAIN_ERROR
            self._error = error if isinstance(error, OSError) else None
            return False
        # TLS closes both ways at once: at its EOF nothing can be sent there any more.
        return goes_on and not self._source.is_tls

    def has_rest(self) -> bool:
        """Whether more has arrived at its source, or would have but for a failure."""
        return self._source.has_rest()

    def close_drain(self, how: Closing, linger: float) -> ClosingSide:
        """Behind what it was sent."""
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
        """All that has been taken, as far as the limit goes."""
        while self._ahead and self.moved != self._limit:
            room = _PIECE if self._limit is None else min(_PIECE, self._limit - self.moved)
            sent = await self._drain.send(self._ahead[:room])
            self.moved += sent
            self._ahead = self._ahead[sent:]
            await self._drain.sent()
            # None of these waits where both ends are fast: the loop's other tasks have their turn.
            await asyncio.sleep(0)


class _Both:
    """The two directions of a pair, by the rules of ``PairPolicy``."""

    def __init__(self, towards: _Way, back: _Way, policy: PairPolicy) -> None:
        self._ways = towards, back
        self._policy = policy
        self._tasks: list[asyncio.Task[None]] = []
        self._started = time.monotonic()
        self._closing: Sequence[ClosingSide] = ()

    async def run(self, limits: LoopTimeLimits) -> Reason | None:
        """Until both have ended; gives which time of the caller's has ended them, if one has."""
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
        """Begin to close both sides, each behind what it was sent."""
        # Before the first of them is closed.
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
        """Changes as long as there is traffic."""
        if self._closing:
            return [side.undelivered for side in self._closing]
        return [way.progress() for way in self._ways]

    def _ended(self, direction: int) -> Reason | None:
        """One has ended; what the other is to be stopped with, if it is."""
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
            if way.reason is not None:  # by itself, in the same moment
                self._ended(direction)
            else:
                way.end(reason)
                self._policy.ended(direction, way.ended(passed_on=False))

    def _lost(self, running: Sequence[_Way]) -> Reason | None:
        if Reason.CLOSED in [way.is_lost() for way in self._ways]:
            return Reason.CLOSED
        if len(running) > 1:
            # A drain that is lost is a source, too, and says first what came before.
            return None
        if running[0].is_lost():  # and nobody reads from there any more
            return Reason.DRAIN_ERROR
        drain_died = any(way.reason is Reason.DRAIN_ERROR for way in self._ways)
        return Reason.CANCELLED if drain_died and running[0].is_exhausted else None


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel what is not done yet; none of them waits for anything on its way out."""
    for task in tasks:
        task.cancel()
    if not all(task.done() for task in tasks):
        await asyncio.wait(tasks)


async def _stop_in_spite_of_cancelling(tasks: Sequence[asyncio.Task[None]]) -> None:
    """The same where an exception is on its way already, which a second one must not replace."""
    for task in tasks:
        task.cancel()
    while not all(task.done() for task in tasks):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)


def _raise_defects(tasks: Sequence[asyncio.Task[None]]) -> None:
    """What is no failure of a connection."""
    for task in tasks:
        if not task.cancelled():
            task.result()
