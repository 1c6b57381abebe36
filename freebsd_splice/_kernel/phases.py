"""The phases of a flow that the kernel serves, and which may follow which."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """What a flow is doing."""

    #: The flow has not been started.
    NEW = "new"
    #: Userspace sends what the caller has read already; a splice follows.
    SENDING_INITIAL = "sending initial"
    #: No byte moves: the flow is about to set the next splice, or decides what comes next.
    BETWEEN = "between"
    #: The kernel moves the bytes.
    SPLICED = "spliced"
    #: Userspace moves all bytes that are still to come.
    USERSPACE = "userspace"
    #: The flow is over.
    ENDED = "ended"


#: The phases that may follow each phase.
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.SENDING_INITIAL, Phase.BETWEEN, Phase.USERSPACE, Phase.ENDED}),
    Phase.SENDING_INITIAL: frozenset({Phase.BETWEEN, Phase.ENDED}),
    Phase.BETWEEN: frozenset({Phase.SPLICED, Phase.USERSPACE, Phase.ENDED}),
    Phase.SPLICED: frozenset({Phase.BETWEEN}),
    Phase.USERSPACE: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset(),
}
