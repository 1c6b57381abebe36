"""Splicing for asyncio: one line in place of a copy loop.

A side is a non-blocking socket, or a ``(StreamReader, StreamWriter)`` pair, whose buffers are
emptied first and whose transport reads nothing meanwhile::

    outcome = await aio.relay((client_reader, client_writer), (reader, writer))

These functions have no thread of their own and copy nothing: ``Splice`` and ``Relay`` do the work,
and report to the loop when it is over. Two things the loop does itself: it writes bytes that a
reader has buffered already, where they are all that is wanted; and it copies a stream that can't be
handed over (TLS; any stream on Windows), which ``Outcome.fallback`` says.

Cancelling the task ends the call, with nothing in flight any more. The ``CancelledError`` carries
how far the call came, and so does any exception that it is turned into (``asyncio.timeout``,
``wait_for``): ``outcome_of(error)`` returns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Sequence
from functools import partial

from .._core.flow import Reason
from .._core.pair_policy import Closing
from .._core.time_limits import check_seconds
from .._errors import BackendUnavailable, why
from .._platform.interface import Endpoint
from .._public import set_public_module
from .._relay import (
    LINGER,
    Relay,
    RelayOutcome,
    check_linger,
    check_pair,
    check_two_sides,
)
from .._runtime import Runtime, current
from .._splice import Outcome, Splice, check_bytes, check_limit
from ._at_once import continue_after, write_buffered
from ._copying import copy_both_ways, copy_one_way
from ._ending import attach, end_of, outcome_of
from ._flushing import flush
from ._sides import Side, SocketSide, StreamSide, side

_LIMIT = Reason.LIMIT  # an enum's members cost a call each, on some versions

_Data = bytes | bytearray | memoryview

__all__ = ["IncompleteTransferError", "Side", "outcome_of", "relay", "splice", "transfer"]


class IncompleteTransferError(ConnectionError):
    """``transfer`` ended before it had moved all bytes.

    Attributes:
        outcome (Outcome): why it ended, and how many bytes were moved.
    """

    def __init__(self, outcome: Outcome, wanted: int) -> None:
        super().__init__(f"{outcome.bytes} of {wanted} bytes were transferred: {_why(outcome)}")
        self.outcome = outcome


async def splice(
    source: Side,
    drain: Side,
    *,
    max_bytes: int | None = None,
    idle_timeout: float | None = None,
    timeout: float | None = None,
    initial: _Data = b"",
    fallback: bool = True,
) -> Outcome:
    """Deliver everything that arrives at one side to the other, until the end, as ``Splice`` does.

    The bytes go in this order: those that the writer of ``drain`` still holds; ``initial``; those
    that the reader of ``source`` has buffered; those that arrive. Until the call is over, nothing
    else may read from ``source`` or write to ``drain``; the other direction of both stays free.
    Afterwards both are the caller's again, and the reader goes on after the last byte taken.

    Args:
        source: a non-blocking socket, or a ``(StreamReader, StreamWriter)`` pair.
        drain: the side to write to, likewise.
        max_bytes: how many bytes to move at most, those of ``initial`` included. None: no limit.
        idle_timeout: as for ``Splice``, in seconds from the call on.
        timeout: as for ``Splice``, in seconds from the call on.
        initial: bytes that the caller has read from the source already.
        fallback: as for ``Splice``. A stream that speaks TLS is never the kernel's.

    Returns:
        The outcome; a failure of one of the connections is its ``reason`` and ``error``.

    Raises:
        OSError: as ``Splice``; also what the reader or the writer has to report already
            (ConnectionResetError).
        BackendUnavailable: (an OSError, ENOPROTOOPT or EPROTONOSUPPORT) as ``Splice``; with
            EPROTONOSUPPORT for TLS.
        ValueError: as ``Splice``; also for a socket that blocks.
        TypeError: as ``Splice``; also for a transport, or for half a pair.
        CancelledError: the task was cancelled; ``outcome_of(error)`` says how far the call came.

    Where it raises one of the first four, nothing has been taken.

    Example::

        outcome = await aio.splice((reader, writer), target, idle_timeout=60)
        print(outcome)  # 78 bytes, eof, 0.250 s, userspace/os.splice
    """
    ahead = check_bytes("initial", initial)
    _check_times(idle_timeout, timeout)
    outcome = write_buffered(source, drain, max_bytes, ahead) if fallback else 0
    if isinstance(outcome, int):
        limit = check_limit(max_bytes)
        outcome = await _rest(outcome, source, drain, limit, idle_timeout, timeout, ahead, fallback)
    return outcome


async def transfer(
    source: Side,
    drain: Side,
    count: int,
    *,
    idle_timeout: float | None = None,
    timeout: float | None = None,
    initial: _Data = b"",
    fallback: bool = True,
) -> Outcome:
    """Deliver exactly ``count`` bytes from one side to the other: a body with a Content-Length.

    Afterwards both sides are the caller's again, and what follows is still to be read at
    ``source``. Reading from its reader and transfers may alternate. Everything else is as for
    ``splice``.

    Args:
        source: as for ``splice``.
        drain: as for ``splice``.
        count: how many bytes, those of ``initial`` included.
        idle_timeout: as for ``splice``, in seconds.
        timeout: as for ``splice``, in seconds.
        initial: as for ``splice``.
        fallback: as for ``splice``.

    Returns:
        The outcome, with the reason LIMIT.

    Raises:
        IncompleteTransferError: (a ConnectionError) it ended before: at an EOF, a time limit, or a
            failure of one of the connections.
        OSError: as ``splice``, and so for its other exceptions.

    Example::

        head = await reader.readuntil(b"\\r\\n\\r\\n")
        target[1].write(head)
        await aio.transfer((reader, writer), target, content_length)
    """
    ahead = check_bytes("initial", initial)
    _check_times(idle_timeout, timeout)
    outcome = write_buffered(source, drain, count, ahead) if fallback else 0
    if isinstance(outcome, int):
        limit = check_limit(count, "count", may_be_none=False)
        outcome = await _rest(outcome, source, drain, limit, idle_timeout, timeout, ahead, fallback)
    if outcome.reason is not _LIMIT:
        raise IncompleteTransferError(outcome, count) from outcome.error
    return outcome


def _check_times(idle_timeout: float | None, timeout: float | None) -> None:
    if idle_timeout is not None or timeout is not None:
        check_seconds("idle_timeout", idle_timeout)
        check_seconds("timeout", timeout)


async def _rest(
    sent: int,
    source: Side,
    drain: Side,
    limit: int | None,
    idle_timeout: float | None,
    timeout: float | None,
    initial: bytes,
    fallback: bool,
) -> Outcome:
    unsent = initial[sent:]
    rest = None if limit is None else limit - sent
    splicing = _splice(source, drain, rest, idle_timeout, timeout, unsent, fallback)
    return await (continue_after(sent, unsent, splicing) if sent else splicing)


async def _splice(
    source: Side,
    drain: Side,
    limit: int | None,
    idle_timeout: float | None,
    timeout: float | None,
    initial: bytes,
    fallback: bool,
) -> Outcome:
    from_side, to_side = side(source), side(drain)
    why = _why_copied(from_side, to_side, fallback=fallback)
    if why is not None:
        return await copy_one_way(
            from_side,
            to_side,
            limit=limit,
            idle_timeout=idle_timeout,
            timeout=timeout,
            initial=initial,
            why=why,
        )
    started = time.monotonic()
    try:
        late = await flush([to_side], idle_timeout=idle_timeout, timeout=timeout)
    except asyncio.CancelledError as error:
        attach(error, _not_begun(Reason.CANCELLED, initial, started))
        raise
    if late is not None:
        return _not_begun(late, initial, started)
    # From here to the splice there is no await: nothing can arrive in between.
    room = None if limit is None else max(0, limit - len(initial))
    taken = from_side.take_over(room)
    try:
        made = Splice(
            from_side.original,
            to_side.original,
            max_bytes=limit,
            idle_timeout=idle_timeout,
            timeout=_left(timeout, started),
            initial=initial + taken,
            fallback=fallback,
        )
    except BaseException:
        from_side.put_back(taken)
        raise
    try:
        outcome = await end_of(made)
        _tell_readers(outcome, from_side, to_side)
    finally:
        if made.done:  # otherwise it goes on to its end, which nothing waits for any more
            from_side.resume()
    return outcome


async def relay(
    left: Side,
    right: Side,
    *,
    idle_timeout: float | None = None,
    timeout: float | None = None,
    half_close: bool = True,
    close: bool = False,
    linger: float = LINGER,
    initial: tuple[_Data, _Data] = (b"", b""),
    fallback: bool = True,
) -> RelayOutcome:
    """Deliver what arrives at each side to the other, until both directions have ended.

    It does what ``Relay`` does, and treats what readers and writers have buffered as ``splice``
    does. A side that speaks TLS can't half-close: an EOF that it sends ends the pair, and so does
    an EOF that a TLS client would have to be sent. A TLS server that would have to be sent one
    answers first; give a time limit if it may wait for the EOF.

    Args:
        left: a non-blocking socket, or a ``(StreamReader, StreamWriter)`` pair.
        right: the other side, likewise.
        idle_timeout: as for ``Relay``, in seconds.
        timeout: as for ``Relay``, in seconds.
        half_close: as for ``Relay``.
        close: as for ``Relay``: True closes both sides at the end.
        linger: as for ``Relay``, in seconds.
        initial: as for ``Relay``: bytes read from the left, and bytes read from the right.
        fallback: as for ``splice``.

    Returns:
        The outcome of the pair.

    Raises:
        OSError: as ``splice``, and so for its other exceptions. Then nothing has been taken, and
            nothing is closed.
        CancelledError: the task was cancelled; ``outcome_of(error)`` says how far the pair came.

    Example::

        there = await asyncio.open_connection(host, port)
        outcome = await aio.relay((reader, writer), there, idle_timeout=300, close=True)
    """
    ahead, linger = check_pair(initial), check_linger(linger)
    sides = side(left), side(right)
    check_two_sides(*(getattr(each, "transport", each.original) for each in sides))
    why = _why_copied(*sides, fallback=fallback)
    if why is not None:
        return await copy_both_ways(
            sides,
            idle_timeout=idle_timeout,
            timeout=timeout,
            half_close=half_close,
            close=close,
            linger=linger,
            initial=ahead,
            why=why,
        )
    started = time.monotonic()
    try:
        late = await flush(sides, idle_timeout=idle_timeout, timeout=timeout)
    except asyncio.CancelledError as error:
        attach(error, _pair_not_begun(Reason.CANCELLED, ahead, started))
        if close:
            _reset(sides, linger)
        raise
    if late is not None:
        if close:
            _reset(sides, linger)
        return _pair_not_begun(late, ahead, started)
    taken: list[bytes] = []
    try:
        for each in sides:
            taken.append(each.take_over(None))
        made = Relay(
            sides[0].original,
            sides[1].original,
            idle_timeout=idle_timeout,
            timeout=_left(timeout, started),
            half_close=half_close,
            close=close,
            linger=linger,
            initial=(ahead[0] + taken[0], ahead[1] + taken[1]),
            fallback=fallback,
        )
    except BaseException:
        for each, data in zip(sides, taken, strict=False):
            each.put_back(data)
        raise
    try:
        return await end_of(made)
    finally:
        if made.done:
            for each in sides:
                each.resume()


def _tell_readers(
    outcome: Outcome, source: SocketSide | StreamSide, drain: SocketSide | StreamSide
) -> None:
    """Report a failure that the splice met to the reader; the system reports it only once."""
    if outcome.error is not None:
        failed = source if outcome.reason is Reason.SOURCE_ERROR else drain
        failed.failed(outcome.error)


def _why_copied(*sides: SocketSide | StreamSide, fallback: bool) -> str | None:
    """Return why the loop has to copy, or None. Raise BackendUnavailable where it must not."""
    why = next((each.why_copied for each in sides if each.why_copied), None)
    if why is not None and (not fallback or not current().may_fall_back()):
        raise BackendUnavailable(errno.EPROTONOSUPPORT, f"the kernel can't splice this pair: {why}")
    return why


def _reset(sides: Sequence[SocketSide | StreamSide], linger: float) -> None:
    """Reset the sides, after what their sockets hold is delivered.

    What their writers hold will not arrive.
    """
    runtime = current()
    for each in sides:
        with contextlib.suppress(OSError):  # no descriptor left: reset it immediately
            endpoint, _ = runtime.platform.duplicate(each.original)
            closing = Closing(reset=True, after_delivery=True)
            runtime.closer.close(endpoint, closing, linger, partial(_release, runtime, endpoint))
            each.abandon()
            continue
        each.reset()


def _release(runtime: Runtime, endpoint: Endpoint, undelivered: int | None) -> None:
    runtime.platform.close(endpoint)


def _pair_not_begun(reason: Reason, initial: tuple[bytes, bytes], started: float) -> RelayOutcome:
    towards, back = (_not_begun(reason, data, started) for data in initial)
    return RelayOutcome(towards, back, reason, None, towards.seconds)


def _not_begun(reason: Reason, initial: bytes, started: float) -> Outcome:
    """Return the outcome of a call that ended before the writer had sent what it held."""
    return Outcome(
        bytes=0,
        unsent=initial,
        reason=reason,
        error=None,
        backend="userspace",
        mover="none",
        seconds=time.monotonic() - started,
    )


def _left(timeout: float | None, started: float) -> float | None:
    """Return the time that the flush has left; more than 0, because 0 is not a valid limit."""
    return None if timeout is None else max(1e-3, timeout - (time.monotonic() - started))


def _why(outcome: Outcome) -> str:
    reason = outcome.reason.value
    return f"{reason} ({why(outcome.error)})" if outcome.error is not None else reason


set_public_module(globals())
