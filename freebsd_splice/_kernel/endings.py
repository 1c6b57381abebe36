"""Find out why a splice in the kernel ended, and what its flow must do next.

Only once an unsplice call has made the end certain: before, neither socket tells (F15: a source can
look readable while bytes are still moving).
"""

from __future__ import annotations

import enum
import errno
from typing import NamedTuple

from .._core.flow import Reason, comes_before
from .._core.shared_sockets import SharedSocket
from .._platform.interface import Platform
from .._platform.kernel_interface import KernelCalls, PollBits
from .checks import drain_failure


class Decision(enum.Enum):
    """What a flow does once its splice is over."""

    #: The stream goes on: splice the pair again.
    RESPLICE = enum.auto()
    #: Bytes are left that the kernel won't move: userspace moves them (F13: an early end).
    MOVE_REMAINDER = enum.auto()
    #: The flow has come to its end.
    FINISH = enum.auto()


class EndedSplice(NamedTuple):
    """A splice that an unsplice call has ended, or found over."""

    #: Whether the unsplice call ended it: it had not ended by itself.
    was_live: bool
    #: Bytes that it moved.
    moved: int
    #: Bytes that it was allowed to move at most; None: no limit.
    room: int | None


class NextStep(NamedTuple):
    """A decision and, with FINISH, the reason of the end."""

    decision: Decision
    reason: Reason = Reason.EOF
    error: OSError | None = None

    def comes_before(self, reason: Reason) -> bool:
        """Return whether this is an end that is reported rather than ``reason``."""
        return self.decision is Decision.FINISH and comes_before(self.reason, reason)


def finish(reason: Reason, error: OSError | None = None) -> NextStep:
    """Return the step that ends the flow for ``reason``."""
    return NextStep(Decision.FINISH, reason, error)


RESPLICE, MOVE_REMAINDER = NextStep(Decision.RESPLICE), NextStep(Decision.MOVE_REMAINDER)


def next_step(
    platform: Platform,
    calls: KernelCalls,
    source: SharedSocket,
    drain: SharedSocket,
    ended: EndedSplice,
) -> NextStep:
    """Return what the flow does next."""
    cause = take_cause(source)
    failure = drain_failure(calls, drain)
    if failure is not None:
        # First: bytes that the drain had taken may have vanished with it (F16).
        return finish(Reason.DRAIN_ERROR, failure)
    if ended.room is not None and ended.moved >= ended.room:
        return finish(Reason.LIMIT)
    if calls.capabilities.keeps_causes:
        return _by_cause(platform, source, cause, ended)
    return _by_looking(platform, calls, source, ended)


def take_cause(source: SharedSocket) -> OSError | None:
    """Take the cause of the last splice's end out of the source's SO_ERROR, and return it.

    F10: OpenBSD leaves it there. Left in place, the next reader of the source would take it for the
    connection's failure, and a new splice would end at once because of it. None on other kernels.
    """
    if not source.connection.keeps_causes:
        return None
    with source.lock:
        source.failure()
        return source.take_cause()


def _by_looking(
    platform: Platform, calls: KernelCalls, source: SharedSocket, ended: EndedSplice
) -> NextStep:
    left = _at_source(platform, source)
    if isinstance(left, NextStep):
        return left
    if left and _hangs_up(calls, source.endpoint.fileno()):
        # F13: a FIN, or a reset, came after bytes that found the drain full.
        return MOVE_REMAINDER
    # Nothing explains the end, unless the unsplice call made it: somebody else ended the splice.
    return RESPLICE if ended.was_live else finish(Reason.UNSPLICED)


def _by_cause(
    platform: Platform, source: SharedSocket, cause: OSError | None, ended: EndedSplice
) -> NextStep:
    if cause is not None and cause.errno not in (errno.EFBIG, errno.ENOBUFS):
        # EPIPE, ELOOP, or the error that the drain has died of.
        return finish(Reason.DRAIN_ERROR, cause)
    left = _at_source(platform, source)
    if isinstance(left, NextStep):
        return left
    with source.lock:
        failure = source.failure()
    if left and failure is not None and not isinstance(failure, BrokenPipeError):
        return MOVE_REMAINDER  # a reset came after bytes that found the drain full
    if ended.was_live:
        return RESPLICE
    if (left and ended.room is not None) or cause is not None:
        # A short splice: splice again for what is left of the limit. One that moved nothing is
        # not repeated, as that could go on for ever.
        return RESPLICE if ended.moved else MOVE_REMAINDER
    return finish(Reason.UNSPLICED)


def _at_source(platform: Platform, source: SharedSocket) -> NextStep | bool:
    """Return whether bytes are left at the source; where EOF or an error came instead, that end."""
    with source.lock:
        try:
            if platform.peek(source.endpoint):
                return True
            failure = source.failure()
        except BlockingIOError:
            return False
        except OSError as error:
            source.failed(error)
            failure = error
    if failure is None or isinstance(failure, BrokenPipeError):
        # EPIPE concerns the sending side, or a reset that came after the FIN.
        return finish(Reason.EOF)
    return finish(Reason.SOURCE_ERROR, failure)


def _hangs_up(calls: KernelCalls, descriptor: int) -> bool:
    poll_set = calls.poll_set()
    poll_set.put(descriptor, PollBits.READ_HANGUP)
    return any(shown & (PollBits.READ_HANGUP | PollBits.HANGUP) for _, shown in poll_set.look())
