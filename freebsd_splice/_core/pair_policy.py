"""What the two directions of a pair mean for each other: rules, and nothing that touches a socket.

``Relay`` and the pairs that ``aio`` copies follow these alike. A direction is known by the side
it comes from: direction 0 goes from side 0 to side 1, direction 1 back. So the direction towards a
side is the one with the other side's number.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from .flow import Reason

#: Reasons that hold for both directions alike.
OF_THE_PAIR = (Reason.CLOSED, Reason.TIMEOUT, Reason.IDLE)

#: Reasons by which a pair ends that nobody wanted to end.
_FAULTS = (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR, Reason.UNSPLICED)

#: With these a drain refuses to be one, and lives: as a source it meets no failure.
_REFUSALS = (errno.EBUSY, errno.ENOTRECOVERABLE, errno.ENOTCONN, errno.EIO)

#: Seconds until the second look whether a side has delivered what it has taken, and at most
#: between two looks: each waits twice as long as the one before.
SOON, _RAREST_LOOK = 0.005, 0.25


class Ended(NamedTuple):
    """How one direction ended."""

    reason: Reason
    error: OSError | None
    #: Bytes were taken from its source that its drain has not taken.
    has_unsent: bool
    #: It is over without harm to the other: its EOF was passed on to its drain.
    passed_on: bool
    #: The drain was dead when the EOF was to be passed on, whatever the error is.
    found_drain_dead: bool = False


class Closing(NamedTuple):
    """How a side is closed."""

    #: With a reset in place of a FIN, which would tell its peer that it has got everything.
    reset: bool
    #: Closing at once could destroy what it has taken: look with ``Delivery`` first.
    after_delivery: bool


class PairPolicy:
    """The state of one pair."""

    def __init__(self, *, half_close: bool = True) -> None:
        self._half_close = half_close
        self._ends: list[Ended | None] = [None, None]
        self._decisive: Ended | None = None

    def passes_on(self, reason: Reason) -> bool:
        """Whether the drain of a direction that ended so is to be shut down for writing."""
        return reason is Reason.EOF and self._half_close

    def ended(self, direction: int, end: Ended) -> Reason | None:
        """Note the end of one direction; gives what the other is to be stopped with.

        None: it goes on. It does so behind an EOF that was passed on, and where the drain has died:
        it reads from that very socket, delivers what came before and meets the failure itself.
        """
        self._ends[direction] = end
        if end.passed_on:
            return None
        if self._decisive is None:
            self._decisive = end
        if end.found_drain_dead or (
            end.reason is Reason.DRAIN_ERROR and not _is_refusal(end.error)
        ):
            return None
        return end.reason if end.reason in OF_THE_PAIR else Reason.CANCELLED

    def has_ended(self, direction: int) -> bool:
        return self._ends[direction] is not None

    @property
    def is_over(self) -> bool:
        return None not in self._ends

    @property
    def decisive(self) -> Ended:
        """The end that ended the pair: the first of a direction other than an EOF passed on.

        Where both directions ended so: the first direction's.
        """
        decisive = self._decisive or self._ends[0]
        assert decisive is not None
        return decisive

    def may_have_more(self, side: int) -> bool:
        """Whether it matters that something is left at that side: its direction saw no EOF."""
        return self._end(side).reason is not Reason.EOF

    def closing(self, side: int, *, rest_at_other: bool, cut: bool = False) -> Closing:
        """How to close that side, once both directions have ended.

        rest_at_other:
            Something has arrived at the other side that nobody has taken, or would have but for a
            failure. Only asked where ``may_have_more`` says so.
        cut:
            The program has ended the pair in the middle.
        """
        towards, back = self._end(1 - side), self._end(side)
        whole = towards.reason is Reason.EOF
        failed = towards.reason is Reason.SOURCE_ERROR
        lost = towards.has_unsent or failed or (rest_at_other and not whole)
        refused = back.reason is Reason.DRAIN_ERROR
        # Whose direction is ended by a fault hasn't got everything, whether or not more has come.
        faulty = self.decisive.reason in _FAULTS
        reset = lost or ((refused or faulty or cut) and not whole)
        # With bytes unread, or with more to come, some systems answer a close by a reset of their
        # own, and each throws away then what the peer has not acknowledged (F27).
        return Closing(reset, after_delivery=reset or back.reason is not Reason.EOF)

    def _end(self, direction: int) -> Ended:
        end = self._ends[direction]
        assert end is not None
        return end


class Delivery:
    """Whether what a side has taken has reached its peer, judged by looks at its send queue.

    It is waited for as long as the peer goes on taking; not longer than ``patience`` seconds in
    which it takes nothing.
    """

    def __init__(self, now: float, patience: float) -> None:
        #: Seconds that the peer may take nothing.
        self.patience = patience
        self._last_change = now
        self._pause = SOON
        #: Bytes that were still unacknowledged at the last look; None: the system doesn't tell.
        self.unacknowledged: int | None = None
        self._looked = False

    def look(self, now: float, unacknowledged: int | None) -> float | None:
        """Judge what the system says now; gives the seconds until the next look, None: it is over.

        Over: all has arrived, or the patience has run out.
        """
        if self._looked and unacknowledged != self.unacknowledged:
            self._last_change = now
        self.unacknowledged, self._looked = unacknowledged, True
        left = self._last_change + self.patience - now
        if unacknowledged == 0 or left <= 0:
            return None
        pause, self._pause = self._pause, min(2 * self._pause, _RAREST_LOOK)
        return min(pause, left)

    def died(self, unacknowledged: int | None) -> None:
        """The connection is gone. Some systems say 0 then: what the last look saw counts as well.

        To be told of a side that is to be reset. One that ends in FINs is gone once all is over.
        """
        self.unacknowledged = max(self.unacknowledged or 0, unacknowledged or 0)


def _is_refusal(error: OSError | None) -> bool:
    return error is not None and error.errno in _REFUSALS
