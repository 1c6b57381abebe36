"""What was behind the end of a splice in the kernel: the verdict of one that is over for certain.

To be asked once the splice has been ended by hand; until then neither socket tells (F15).
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

    #: Nothing ended it for good: splice the pair again.
    RESPLICE = enum.auto()
    #: The kernel moves no more of it, but bytes are left: userspace moves those (F13).
    MOVE_REMAINDER = enum.auto()
    #: It has come to its end.
    FINISH = enum.auto()


class EndedSplice(NamedTuple):
    """A splice that has been ended by hand."""

    #: It had not ended by itself.
    was_live: bool
    moved: int
    #: The most that it was allowed to move; None: no limit.
    room: int | None


class NextStep(NamedTuple):
    """A decision and, with FINISH, the reason of the end."""

    decision: Decision
    reason: Reason = Reason.EOF
    error: OSError | None = None

    def comes_before(self, reason: Reason) -> bool:
        """Whether it is an end, and one to be reported rather than ``reason``."""
        return self.decision is Decision.FINISH and comes_before(self.reason, reason)


def finish(reason: Reason, error: OSError | None = None) -> NextStep:
    return NextStep(Decision.FINISH, reason, error)


RESPLICE, MOVE_REMAINDER = NextStep(Decision.RESPLICE), NextStep(Decision.MOVE_REMAINDER)


def next_step(
    platform: Platform,
    calls: KernelCalls,
    source: SharedSocket,
    drain: SharedSocket,
    ended: EndedSplice,
) -> NextStep:
    """What the flow does next."""
    cause = take_cause(source)
    failure = drain_failure(calls, drain)
    if failure is not None:
        # F16: first, for bytes that the drain has taken may have vanished with it.
        return finish(Reason.DRAIN_ERROR, failure)
    if ended.room is not None and ended.moved >= ended.room:
        return finish(Reason.LIMIT)
    if calls.capabilities.keeps_causes:
        return _by_cause(platform, source, cause, ended)
    return _by_looking(platform, calls, source, ended)


def take_cause(source: SharedSocket) -> OSError | None:
    """Why a splice of it has ended, out of SO_ERROR where the kernel leaves that there (F10).

    Who reads the source next would take it for the connection's, and a new splice would end at
    once because of it.
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
        return MOVE_REMAINDER  # F13: a FIN, or a reset, behind bytes that found the drain full
    # Nothing explains that it has ended: somebody else has ended it.
    return RESPLICE if ended.was_live else finish(Reason.UNSPLICED)


def _by_cause(
    platform: Platform, source: SharedSocket, cause: OSError | None, ended: EndedSplice
) -> NextStep:
    if cause is not None and cause.errno not in (errno.EFBIG, errno.ENOBUFS):
        # EPIPE, ELOOP, or what the drain has died of.
        return finish(Reason.DRAIN_ERROR, cause)
    left = _at_source(platform, source)
    if isinstance(left, NextStep):
        return left
    with source.lock:
        failure = source.failure()
    if left and failure is not None and not isinstance(failure, BrokenPipeError):
        return MOVE_REMAINDER  # a reset behind bytes that found the drain full
    if ended.was_live:
        return RESPLICE
    if (left and ended.room is not None) or cause is not None:
        # A short splice: what is left of the limit has to be asked for again.  Not for ever.
        return RESPLICE if ended.moved else MOVE_REMAINDER
    return finish(Reason.UNSPLICED)


def _at_source(platform: Platform, source: SharedSocket) -> NextStep | bool:
    """Whether bytes are left, or what came instead: EOF or an error."""
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
        # EPIPE is of the sending side, or of a reset that came behind the FIN.
        return finish(Reason.EOF)
    return finish(Reason.SOURCE_ERROR, failure)


def _hangs_up(calls: KernelCalls, descriptor: int) -> bool:
    poll_set = calls.poll_set()
    poll_set.put(descriptor, PollBits.READ_HANGUP)
    return any(shown & (PollBits.READ_HANGUP | PollBits.HANGUP) for _, shown in poll_set.look())
