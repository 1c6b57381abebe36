"""For streams that can't be handed over: the loop copies, with the same promises."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Sequence

from .._flow import Reason
from .._relay import RelayOutcome
from .._splice import Outcome
from ._ending import attach
from ._patience import Patience
from ._sides import SocketSide, StreamSide

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
    _check_loop(source, drain)
    patience = Patience(idle_timeout=idle_timeout, timeout=timeout)
    way = _Way(source, drain, limit, initial, why)
    task = asyncio.ensure_future(way.run())
    try:
        reason = await patience.wait([task], lambda: way.moved, way.drain_is_lost)
    except BaseException as error:
        await _stop([task])
        attach(error, way.outcome(Reason.CANCELLED))
        raise
    await _stop([task])
    _raise_defects([task])
    return way.outcome(reason or Reason.DRAIN_ERROR)


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
    _check_loop(*sides)
    patience = Patience(idle_timeout=idle_timeout, timeout=timeout)
    left, right = sides
    both = _Both(_Way(left, right, None, initial[0], why), _Way(right, left, None, initial[1], why))
    try:
        reason = await both.run(patience, half_close)
    except BaseException as error:
        await both.stop()
        attach(error, both.outcome(Reason.CANCELLED))
        raise
    finally:
        if close:
            both.close()
    return both.outcome(reason)


class _Way:
    """One direction."""

    def __init__(
        self,
        source: SocketSide | StreamSide,
        drain: SocketSide | StreamSide,
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

    def drain_is_lost(self) -> bool:
        drain = self._drain
        return isinstance(drain, StreamSide) and drain.is_lost

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

    @property
    def ends_both(self) -> bool:
        """TLS closes both ways at once: nothing can be sent there any more."""
        return isinstance(self._source, StreamSide) and self._source.is_tls

    def pass_eof_on(self) -> bool:
        """False: its drain can't be told."""
        drain = self._drain
        if isinstance(drain, StreamSide):
            if not drain.writer.can_write_eof():  # TLS can't
                return False
            drain.writer.write_eof()
            return True
        with contextlib.suppress(OSError):  # the other direction meets it
            drain.socket.shutdown(socket.SHUT_WR)
        return True

    def close_drain(self) -> None:
        """With an end that says whether anything is missing."""
        if self._ahead or (self.reason is not Reason.EOF and self._source.has_rest()):
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
                data = await _receive(self._source, room)
            except OSError as error:
                self._error = error
                return Reason.SOURCE_ERROR
            if not data:
                return Reason.EOF
            self._ahead = memoryview(data)

    async def _push(self) -> None:
        """All that has been taken, as far as the limit goes."""
        while self._ahead and self.moved != self._limit:
            room = len(self._ahead) if self._limit is None else self._limit - self.moved
            sent = await _send(self._drain, self._ahead[:room])
            self.moved += sent
            self._ahead = self._ahead[sent:]
            if isinstance(self._drain, StreamSide):
                await self._drain.writer.drain()


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
            late = await patience.wait(list(running), lambda: sum(way.moved for way in self._ways))
            if late is not None:
                await self.stop()
                return late
            for task in [task for task in running if task.done()]:
                way = running.pop(task)
                passed_on = way.reason is Reason.EOF and half_close and way.pass_eof_on()
                if not passed_on or way.ends_both:
                    self._decisive = self._decisive or way
                    await self.stop()
                    return Reason.CANCELLED
        return Reason.EOF

    async def stop(self) -> None:
        await _stop(self._tasks)
        _raise_defects(self._tasks)

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

    def close(self) -> None:
        for way in self._ways:
            way.close_drain()


async def _receive(source: SocketSide | StreamSide, count: int) -> bytes:
    """Some bytes, b"" at EOF.  Cancelled, it has taken none."""
    if isinstance(source, StreamSide):
        return await source.reader.read(count)
    while True:
        try:
            return source.socket.recv(count)
        except BlockingIOError:
            await _ready(source.socket, to_read=True)


async def _send(drain: SocketSide | StreamSide, data: memoryview) -> int:
    """How many the drain has taken.  Cancelled, it has taken none."""
    if isinstance(drain, StreamSide):
        if drain.is_lost:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        drain.writer.write(bytes(data))
        return len(data)
    while True:
        try:
            return drain.socket.send(data)
        except BlockingIOError:
            await _ready(drain.socket, to_read=False)


async def _ready(sock: socket.socket, *, to_read: bool) -> None:
    """Wait for it, and do nothing yet: ``sock_recv`` may have received when it is cancelled."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    watch, forget = (
        (loop.add_reader, loop.remove_reader) if to_read else (loop.add_writer, loop.remove_writer)
    )
    watch(sock, _set, ready)
    try:
        await ready
    finally:
        forget(sock)


def _check_loop(*sides: SocketSide | StreamSide) -> None:
    """Windows' proactor loop tells of no readiness, and loses what a cancelled receive has got."""
    for each in sides:
        if isinstance(each, SocketSide):
            try:
                asyncio.get_running_loop().remove_reader(each.socket)
            except NotImplementedError:
                raise NotImplementedError(
                    f"this loop can't copy between a stream and a socket ({each.socket!r}): make "
                    "it a stream as well (asyncio.open_connection(sock=...))"
                ) from None


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel what is not done yet; none of them waits for anything on its way out."""
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


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
