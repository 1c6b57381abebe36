"""Flush a stream's writer into its socket, before the stream is handed over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from .._core.flow import Reason
from ._sides import SocketSide, StreamSide
from ._time_limits import LoopTimeLimits


async def flush(
    sides: Sequence[SocketSide | StreamSide],
    *,
    idle_timeout: float | None,
    timeout: float | None,
) -> Reason | None:
    """Wait until no side's writer holds anything.

    Return None, or the reason why the wait was given up. When it returns None, the loop has run
    nothing since the writers were found empty. Raise what the writers have to report.
    """
    limits = LoopTimeLimits(idle_timeout=idle_timeout, timeout=timeout)
    while any(each.pending for each in sides):
        task = asyncio.ensure_future(_flush(sides))
        try:
            late = await limits.wait([task], lambda: [each.undelivered() for each in sides])
        finally:
            task.cancel()
            await asyncio.wait([task])
        if late is not None:
            return late
        task.result()
    for each in sides:
        each.check_open()
    return None


async def _flush(sides: Sequence[SocketSide | StreamSide]) -> None:
    for each in sides:
        if isinstance(each, StreamSide) and each.pending:
            await _flush_one(each)


async def _flush_one(stream: StreamSide) -> None:
    with _no_limit(stream.transport):  # otherwise ``drain`` waits for only some of the bytes
        await stream.writer.drain()


@contextlib.contextmanager
def _no_limit(transport: asyncio.Transport) -> Iterator[None]:
    """Have the writer's ``drain`` wait until the writer holds nothing.

    The transport's own limits are restored after the last flush that uses it.
    """
    limits, users = _in_use.get(id(transport), (transport.get_write_buffer_limits(), 0))
    _in_use[id(transport)] = limits, users + 1
    transport.set_write_buffer_limits(high=0)
    try:
        yield
    finally:
        users = _in_use[id(transport)][1] - 1
        _in_use[id(transport)] = limits, users
        if not users:
            del _in_use[id(transport)]
            with contextlib.suppress(RuntimeError):  # uvloop, for a closed transport
                transport.set_write_buffer_limits(high=limits[1], low=limits[0])


#: By the transport's identity: its own limits, and how many flushes have lifted them.
_in_use: dict[int, tuple[tuple[int, int], int]] = {}
