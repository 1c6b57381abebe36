"""Before a stream is handed over: what its writer holds has to be in the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .._flow import Reason
from ._patience import Patience
from ._sides import SocketSide, StreamSide


async def flush(
    sides: Sequence[SocketSide | StreamSide],
    *,
    idle_timeout: float | None,
    timeout: float | None,
) -> Reason | None:
    """Wait until no side's writer holds anything; None, or the reason why that is given up.

    When it returns None there has been no moment since.  Raises what the writers have to report.
    """
    patience = Patience(idle_timeout=idle_timeout, timeout=timeout)
    while any(each.pending for each in sides):
        task = asyncio.ensure_future(_flush(sides))
        try:
            late = await patience.wait([task], lambda: -sum(each.pending for each in sides))
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
    low, high = stream.transport.get_write_buffer_limits()
    stream.transport.set_write_buffer_limits(high=0)  # ``drain`` waits for less than that otherwise
    try:
        await stream.writer.drain()
    finally:
        stream.transport.set_write_buffer_limits(high=high, low=low)
