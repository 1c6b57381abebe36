"""Waiting for an end, on a loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeVar

from .._operation import Operation
from .._relay import RelayOutcome
from .._splice import Outcome

OutcomeT = TypeVar("OutcomeT")


async def end_of(made: Operation[OutcomeT]) -> OutcomeT:
    """Wait until it is over.  Cancelled, it ends it, waits for that, and says how far it came."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set, over)

    made.when_over(tell)
    try:
        # Not the future itself: a cancelled task cancels what it awaits.
        await asyncio.wait([over])
    except BaseException as error:
        made.end_soon()
        if isinstance(error, asyncio.CancelledError):
            await _in_spite_of_cancelling(over)
            attach(error, made.wait(0))
        raise
    return made.wait(0)


def attach(error: BaseException, outcome: object) -> None:
    """Let ``outcome_of`` find it.  On the very exception: ``asyncio.timeout`` takes no other."""
    error.outcome = outcome  # type: ignore[attr-defined]


def outcome_of(error: BaseException) -> Outcome | RelayOutcome | None:
    """How far what ``error`` has cut short came; None where it has cut nothing of ours short.

    For a CancelledError, a TimeoutError that one was turned into (``asyncio.timeout``,
    ``wait_for``), and whatever was raised while one of them was handled.
    """
    waiting, seen = [error], set()
    while waiting:
        looked_at = waiting.pop()
        if id(looked_at) in seen:  # an exception can be its own cause
            continue
        seen.add(id(looked_at))
        found = getattr(looked_at, "outcome", None)
        if isinstance(found, (Outcome, RelayOutcome)):
            return found
        waiting += filter(None, (looked_at.__context__, looked_at.__cause__))
    return None


async def _in_spite_of_cancelling(over: asyncio.Future[None]) -> None:
    """It comes soon, and until then bytes are under way: a second cancelling changes nothing."""
    while not over.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([over])


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
