"""A flow: one direction of bytes, from its start to its end.

``Splice`` and ``Relay`` are built from flows. ``UserspaceFlow`` moves the bytes itself,
``KernelFlow`` leaves that to the kernel. Both end in an ``End``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

from .._platform.interface import Platform
from .shared_sockets import SharedSocket


class Reason(enum.Enum):
    """Why a splice, or one direction of a relay, ended.

    Where several reasons hold at the end, the one that stands first here is reported: a drain that
    failed is never hidden behind a limit or an EOF that was reached as well (docs/so_splice.md,
    F16: a dead drain can swallow the last bytes). The values are the words of the log.

    Attributes:
        DRAIN_ERROR: the drain failed: its peer has reset or closed the connection, or it was shut
            down for writing. Bytes that it had taken may not have reached its peer.
        LIMIT: ``max_bytes`` have been moved; the bytes after them can still be read at the source.
        SOURCE_ERROR: the source failed, for instance by a reset of its peer. The bytes that
            arrived before have been moved.
        EOF: the source's peer has sent all it had (FIN), and the drain has taken all of it.
        CLOSED: the program has closed one of the two socket objects.
        UNSPLICED: somebody else has ended the kernel's splice, by an ``unsplice`` call in this or
            in another process.
        TIMEOUT: ``timeout`` seconds have passed since the start.
        IDLE: ``idle_timeout`` seconds have passed in which not one byte moved.
        CANCELLED: by ``cancel()``, the end of a ``with`` block, or ``shutdown()``; or the other
            direction of the relay ended, and ended this one with it.
    """

    DRAIN_ERROR = "drain error"
    LIMIT = "limit"
    SOURCE_ERROR = "source error"
    EOF = "eof"
    CLOSED = "closed"
    UNSPLICED = "unspliced"
    TIMEOUT = "timeout"
    IDLE = "idle"
    CANCELLED = "cancelled"


#: Reasons that the program has brought about. CLOSED, which it has brought about too, wins.
WEAK_REASONS = (Reason.TIMEOUT, Reason.IDLE, Reason.CANCELLED)


def comes_before(one: Reason, other: Reason) -> bool:
    """Return whether ``one`` is reported where both hold."""
    return _ORDER[one] < _ORDER[other]


def closed_or(reason: Reason, platform: Platform, *sockets: SharedSocket) -> Reason:
    """Return CLOSED for a weak reason where the program has closed one of the sockets."""
    if reason not in WEAK_REASONS or all(platform.is_open(each.original) for each in sockets):
        return reason
    return Reason.CLOSED


_ORDER = {reason: number for number, reason in enumerate(Reason)}


class End(NamedTuple):
    """How a flow ended."""

    reason: Reason
    #: Bytes that the drain's send buffer has taken, ``initial`` ones included.
    moved: int
    #: Bytes that it was allowed to move at most; None: no limit.
    limit: int | None
    #: Bytes that were taken from the source, or given as ``initial``, and that the drain has not
    #: taken. Nobody else has them.
    unsent: bytes
    #: What failed, where the reason is SOURCE_ERROR or DRAIN_ERROR.
    error: OSError | None
    #: "userspace" or "kernel".
    backend: str
    #: What moved the bytes: "SO_SPLICE", "os.splice" or "copy".
    mover: str
    #: Why userspace served although the kernel could have; None where it did not.
    fallback: str | None = None


class SoFar(NamedTuple):
    """What was moved of a direction before it became a flow."""

    moved: int
    #: How many messages that was.
    messages: int
    #: Whether the last of them were so many bytes that more are to be expected.
    has_much: bool = False


class Flow(Protocol):
    """One direction. It is made once, prepared once, started once, and ends once."""

    def prepare(self, source: SharedSocket, drain: SharedSocket) -> None:
        """Find out which backend can serve this pair.

        Both flows of a pair are prepared before the first is started. Where this raises, nothing
        has been touched.

        Raises:
            OSError: EBUSY: the drain is used by a splice that somebody else has made.
            BackendUnavailable: the kernel can't serve this pair, and userspace must not.
        """
        ...

    def goes_on_from(self, so_far: SoFar) -> None:
        """Count ``so_far`` as moved already. Called before ``start``, if at all."""
        ...

    def start(
        self,
        source: SharedSocket,
        drain: SharedSocket,
        limit: int | None,
        initial: bytes,
        on_end: Callable[[End], None],
    ) -> None:
        """Begin to move bytes. Never raises: a failure is an end.

        ``on_end`` is called once, without any lock held, on the thread that brings the end about;
        that may be this one, before ``start`` has returned.
        """
        ...

    @property
    def is_started(self) -> bool:
        """Whether ``on_end`` has been called or will be."""
        ...

    def moved(self) -> int:
        """Return how many bytes the drain has taken so far."""
        ...

    def served_by(self) -> tuple[str, str] | None:
        """Return the backend and the mover that serve now, as ``End`` names them.

        None where that isn't decided yet.
        """
        ...

    def stop(self, reason: Reason = Reason.CANCELLED) -> End:
        """End the flow now, for ``reason``, with no byte in flight any more; return its end.

        A flow that is over already keeps the end that it has. A flow that has not started yet ends
        for that reason as soon as it is started; what this returns for it is provisional. Returns
        once the flow has let go of both sockets; ``on_end`` may still be running in another thread.
        """
        ...

    def look_soon(self) -> None:
        """Look for this flow's end soon: the other direction has ended."""
        ...
