"""Wait on a loop for an operation to end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .._operation import Operation
from .._relay import RelayOutcome
from .._splice import Outcome

OutcomeT = TypeVar("OutcomeT")


async def end_of(
    made: Operation[OutcomeT], is_in_callback: Callable[[], bool] = lambda: False
) -> OutcomeT:
    """Wait until the operation is over, and return its outcome.

    When the wait is cancelled, end the operation, wait for its end, and attach to the exception how
    far it came. ``is_in_callback`` says, on the loop's thread, whether the loop is running a
    callback at that moment; the loop need not be woken from there.
    """
    try:
        await _end_of(made, is_in_callback)
    except BaseException as error:
        made.end_soon()
        if isinstance(error, asyncio.CancelledError):
            # Wait on a new future: a cancelled task cancels the one that it awaits.
            await _despite_cancelling(_end_of(made, is_in_callback))
            attach(error, made.wait(0))
        raise
    return made.wait(0)


def _end_of(made: Operation[Any], is_in_callback: Callable[[], bool]) -> asyncio.Future[None]:
    """Return a future that is done once the operation is over."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    over: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
            # A signal handler also runs on the loop's thread, while the loop sleeps.
            if threading.get_ident() == thread and is_in_callback():
                _set(over)
            else:
                loop.call_soon_threadsafe(_set, over)

    made.when_over(tell)
    return over


def attach(error: BaseException, outcome: object) -> None:
    """Attach the outcome to the exception, for ``outcome_of`` to find.

    The exception stays the same object: ``asyncio.timeout`` accepts no other.
    """
    error.outcome = outcome  # type: ignore[attr-defined]


def outcome_of(error: BaseException) -> Outcome | RelayOutcome | None:
    """Return how far the call came that an exception has cut short.

    Args:
        error: a CancelledError, a TimeoutError that one was turned into (``asyncio.timeout``,
            ``wait_for``), or an exception that was raised while one of them was handled.

    Returns:
        The outcome of the ``splice``, ``transfer`` or ``relay``; None where the exception has cut
        none of them short.
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


async def _despite_cancelling(over: asyncio.Future[None]) -> None:
    """Wait for the end, which comes soon, and ignore another cancellation.

    Bytes are in flight until then.
    """
    while not over.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([over])


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
