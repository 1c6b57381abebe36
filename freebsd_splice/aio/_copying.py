"""For streams that can't be handed over: the loop copies, with the same promises."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence

from .._flow import Reason
from .._relay import RelayOutcome
from .._splice import Outcome
from ._closing import flush_before_closing
from ._ending import attach
from ._patience import Patience
from ._sides import SocketSide, StreamSide
from ._sockets import CopiedSocket

#: What ``Outcome.mover`` says of it.
STREAMS = "streams"

_PIECE = 1 << 16

#: See ``flush_before_closing``: a reset destroys what is left, a close sends it.
_LOOKS_BEFORE_RESET = 3


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
    patience = Patience(idle_timeout=idle_timeout, timeout=timeout)
    with contextlib.ExitStack() as held:
        way = _Way(
            held.enter_context(_taken(source, source=True, drain=False)),
            held.enter_context(_taken(drain, source=False, drain=True)),
            limit,
            initial,
            why,
        )
        task = asyncio.ensure_future(way.run())
        try:
            reason = await patience.wait([task], way.progress, way.is_lost)
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
    initial: tuple[bytes, bytes],
    why: str,
) -> RelayOutcome:
    """``relay`` by copying."""
    patience = Patience(idle_timeout=idle_timeout, timeout=timeout)
    with contextlib.ExitStack() as held:
        left, right = (held.enter_context(_taken(each, source=True, drain=True)) for each in sides)
        both = _Both(
            _Way(left, right, None, initial[0], why), _Way(right, left, None, initial[1], why)
        )
        try:
            reason = await both.run(patience, half_close)
        except BaseException as error:
            await both.stop_in_spite_of_cancelling()
            attach(error, both.outcome(Reason.CANCELLED))
            if close:
                await both.close()
            raise
        outcome = both.outcome(reason)
        if close:
            try:
                await both.close()
            except asyncio.CancelledError as error:
                attach(error, outcome)
                raise
    return outcome


@contextlib.contextmanager
def _taken(
    side: SocketSide | StreamSide, *, source: bool, drain: bool
) -> Iterator[CopiedSocket | StreamSide]:
    """What bytes are read from and written to."""
    if isinstance(side, StreamSide):
        yield side
        return
    copied = CopiedSocket(side, source=source, drain=drain)
    try:
        yield copied
    finally:
        copied.release()


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

    def outcome(self, reason: Reason) -> Outcome:
        """What became of it; ``reason`` where it hasn't come to an end by itself."""
        ended = self.reason or reason
        if ended is Reason.DRAIN_ERROR and self._error is None:
            self._error = OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        return Outcome(
            bytes=self.moved,
            unsent=bytes(self._ahead),
            reason=ended,
            error=self._error,
            backend="userspace",
            mover=STREAMS,
            seconds=self._seconds or time.monotonic() - self._started,
            fallback=self._why,
        )

    def progress(self) -> tuple[int, int]:
        """Changes with every byte that enters the drain's writer, or leaves it."""
        return self.moved, self._drain.pending

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

    def is_broken(self) -> bool:
        """Whether an end would tell the drain's peer wrongly that it has got everything."""
        if self._ahead or self.reason is Reason.SOURCE_ERROR:
            return True
        return self.reason is not Reason.EOF and self._source.has_rest()

    async def flush_drain(self, *, broken: bool) -> None:
        await flush_before_closing(self._drain, looks=_LOOKS_BEFORE_RESET if broken else 1)

    def close_drain(self, *, broken: bool) -> None:
        if broken:
            self._drain.reset()
        else:
            self._drain.close()

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
    """The two directions of a pair."""

    def __init__(self, towards: _Way, back: _Way) -> None:
        self._ways = towards, back
        self._tasks: list[asyncio.Task[None]] = []
        self._decisive: _Way | None = None
        self._started = time.monotonic()

    async def run(self, patience: Patience, half_close: bool) -> Reason:
        """Until both have ended; gives the reason of what has not ended by itself."""
        self._tasks = [asyncio.ensure_future(way.run()) for way in self._ways]
        running = dict(zip(self._tasks, self._ways, strict=True))
        while running:
            late = await patience.wait(
                list(running), self._progress, lambda: self._lost(list(running.values()))
            )
            if late is not None:
                await self._stop()
                return late
            for task in [task for task in running if task.done()]:
                if self._ends_both(running.pop(task), half_close):
                    await self._stop()
                    return Reason.CANCELLED
        return Reason.EOF

    def _ends_both(self, way: _Way, half_close: bool) -> bool:
        """Whether the other direction has to end as well."""
        if way.reason is Reason.EOF and half_close and way.pass_eof_on():
            return False
        self._decisive = self._decisive or way
        # Where the drain has died, the other direction reads from that very one: it delivers what
        # came before and meets the failure by itself.
        return way.reason is not Reason.DRAIN_ERROR

    async def stop_in_spite_of_cancelling(self) -> None:
        await _stop_in_spite_of_cancelling(self._tasks)

    def outcome(self, reason: Reason) -> RelayOutcome:
        """``reason``: of what has not ended by itself."""
        towards, back = (way.outcome(reason) for way in self._ways)
        decisive = self._decisive
        decided = next(
            (
                outcome
                for way, outcome in zip(self._ways, (towards, back), strict=True)
                if way is decisive or (decisive is None and outcome.reason is not Reason.EOF)
            ),
            towards,
        )
        seconds = time.monotonic() - self._started
        return RelayOutcome(towards, back, decided.reason, decided.error, seconds)

    async def close(self) -> None:
        """Both sides, behind what their writers hold; at once when it is cancelled."""
        # Before the first of them is closed.
        broken = [self._is_broken(way, back) for way, back in self._each_and_back()]
        drains = list(zip(self._ways, broken, strict=True))
        try:
            await asyncio.gather(*(way.flush_drain(broken=is_broken) for way, is_broken in drains))
        finally:
            for way, is_broken in drains:
                way.close_drain(broken=is_broken)

    def _is_broken(self, way: _Way, back: _Way) -> bool:
        refused = back.reason is Reason.DRAIN_ERROR and way.reason is not Reason.EOF
        return refused or way.is_broken()

    def _each_and_back(self) -> tuple[tuple[_Way, _Way], tuple[_Way, _Way]]:
        towards, back = self._ways
        return (towards, back), (back, towards)

    async def _stop(self) -> None:
        await _stop(self._tasks)
        _raise_defects(self._tasks)

    def _progress(self) -> tuple[tuple[int, int], ...]:
        return tuple(way.progress() for way in self._ways)

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
