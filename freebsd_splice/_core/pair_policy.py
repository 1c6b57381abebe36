"""Rules for the two directions of a pair: what the end of one means for the other. No I/O.

``Relay`` and the pairs that ``aio`` copies follow the same rules. A direction has the number of the
side it comes from: direction 0 goes from side 0 to side 1, direction 1 back. So the direction
towards a side has the other side's number.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from .._errors import SHORTAGES
from .flow import Reason

#: Reasons that hold for both directions alike.
OF_THE_PAIR = (Reason.CLOSED, Reason.TIMEOUT, Reason.IDLE)

#: Reasons by which a pair ends although nobody wanted it to end.
_FAULTS = (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR, Reason.UNSPLICED)

#: With these errors a socket can't be a drain but lives: reading from it doesn't fail.
_REFUSALS = {errno.EBUSY, errno.ENOTRECOVERABLE, errno.ENOTCONN, errno.EIO, *SHORTAGES}

#: Seconds between the first and the second look at whether a side has delivered what it has taken,
#: and the most between two looks: each pause is twice the one before.
SOON, _RAREST_LOOK = 0.005, 0.25


class Ended(NamedTuple):
    """How one direction ended."""

    reason: Reason
    error: OSError | None
    #: Whether bytes were taken from its source that its drain has not taken.
    has_unsent: bool
    #: Whether its EOF was passed on to its drain, so that the other direction can go on.
    passed_on: bool
    #: Whether the drain was dead when the EOF was to be passed on, whatever the error is.
    found_drain_dead: bool = False


class Closing(NamedTuple):
    """How a side is closed."""

    #: Whether by a reset: a FIN would tell its peer that it has got everything.
    reset: bool
    #: Whether closing at once could destroy bytes that it has taken: wait for ``Delivery`` first.
    after_delivery: bool


class PairPolicy:
    """The state of one pair."""

    def __init__(self, *, half_close: bool = True) -> None:
        self._half_close = half_close
        self._ends: list[Ended | None] = [None, None]
        self._decisive: Ended | None = None

    def passes_on(self, reason: Reason) -> bool:
        """Return whether the drain of a direction with that end must be shut down for writing."""
        return reason is Reason.EOF and self._half_close

    def ended(self, direction: int, end: Ended) -> Reason | None:
        """Note the end of one direction; return the reason to stop the other for.

        None: the other goes on. It does after an EOF that was passed on, and where the drain has
        died: the other reads from that very socket, delivers the bytes that arrived before and then
        meets the failure itself.
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
        """The end that ended the pair: the first that was not an EOF passed on.

        Where both directions ended with an EOF that was passed on: the end of direction 0.
        """
        decisive = self._decisive or self._ends[0]
        assert decisive is not None
        return decisive

    def may_have_more(self, side: int) -> bool:
        """Return whether bytes can be left at that side, whose direction ended without an EOF."""
        return self._end(side).reason is not Reason.EOF

    def closing(self, side: int, *, rest_at_other: bool, cut: bool = False) -> Closing:
        """Return how to close that side, once both directions have ended.

        Args:
            side: 0 or 1.
            rest_at_other: whether bytes have arrived at the other side that nobody has taken, or
                would have arrived but for a failure. Where ``may_have_more`` is false: False.
            cut: whether the program has ended the pair in the middle.
        """
        towards, back = self._end(1 - side), self._end(side)
        whole = towards.reason is Reason.EOF
        failed = towards.reason is Reason.SOURCE_ERROR
        lost = towards.has_unsent or failed or (rest_at_other and not whole)
        refused = back.reason is Reason.DRAIN_ERROR
        # A fault that ends the pair cuts this side off, whether or not more has arrived for it.
        faulty = self.decisive.reason in _FAULTS
        reset = lost or ((refused or faulty or cut) and not whole)
        # Where bytes are unread or still to come, some systems reset the connection by themselves
        # when it is closed (F27: Linux does, FreeBSD and OpenBSD send a FIN). All of them then
        # throw away what the peer has not acknowledged.
        return Closing(reset, after_delivery=reset or back.reason is not Reason.EOF)

    def _end(self, direction: int) -> Ended:
        end = self._ends[direction]
        assert end is not None
        return end


class Delivery:
    """Judge by looks at a side's send queue whether its peer has got what the side has taken.

    The wait lasts while the peer goes on taking bytes, and until it has taken none for ``patience``
    seconds.
    """

    def __init__(self, now: float, patience: float) -> None:
        #: Seconds for which the peer may take nothing.
        self.patience = patience
        self._last_change = now
        self._pause = SOON
        #: Bytes that were still unacknowledged at the last look; None: the system doesn't tell.
        self.unacknowledged: int | None = None
        self._looked = False

    def look(self, now: float, unacknowledged: int | None) -> float | None:
        """Judge what the system says now; return the seconds until the next look.

        None: the wait is over, as all bytes have arrived or the patience has run out.
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
        """Note that the connection is gone: what the last look saw may not have arrived.

        Some systems say 0 once it is gone, so the larger of the two numbers counts. Only for a side
        that is to be reset: a connection that ends in FINs is gone once all has arrived.
        """
        self.unacknowledged = max(self.unacknowledged or 0, unacknowledged or 0)


def _is_refusal(error: OSError | None) -> bool:
    return error is not None and error.errno in _REFUSALS
