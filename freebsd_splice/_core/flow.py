"""A flow: one direction of bytes, from its start to its end.

``Splice`` and ``Relay`` are built from flows.  ``UserspaceFlow`` moves the bytes itself,
``KernelFlow`` leaves that to the kernel.  Whatever moves them, it ends in an ``End``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

from .._platform.interface import Platform
from .shared_sockets import SharedSocket


class Reason(enum.Enum):
    """Why a splice ended.

    Where several hold at the end, the one that stands first here is reported: a drain that failed
    is never hidden behind a limit or an EOF that was reached as well (docs/so_splice.md, F16).
    """

    #: The drain failed: its peer has reset or closed the connection, or it was shut down for
    #: writing.  Bytes that it had taken may not have reached its peer.
    DRAIN_ERROR = "drain error"
    #: ``max_bytes`` have been moved; what follows is still to be read at the source.
    LIMIT = "limit"
    #: The source failed, by a reset of its peer for instance; what came before has been moved.
    SOURCE_ERROR = "source error"
    #: The source's peer has sent all it had, and the drain has taken all of it.
    EOF = "eof"
    #: One of the two socket objects was closed by the program.
    CLOSED = "closed"
    #: Somebody else has ended the kernel's splice (``unsplice`` from anywhere).
    UNSPLICED = "unspliced"
    #: ``timeout`` seconds have passed since the start.
    TIMEOUT = "timeout"
    #: ``idle_timeout`` seconds have passed in which not one byte moved.
    IDLE = "idle"
    #: ``cancel()``, the end of a ``with`` block, or ``shutdown()``.
    CANCELLED = "cancelled"


#: Reasons that the program has brought about; that it has closed a socket stands before them.
WEAK_REASONS = (Reason.TIMEOUT, Reason.IDLE, Reason.CANCELLED)


def comes_before(one: Reason, other: Reason) -> bool:
    """Whether ``one`` is reported where both hold."""
    return _ORDER[one] < _ORDER[other]


def closed_or(reason: Reason, platform: Platform, *sockets: SharedSocket) -> Reason:
    """CLOSED where the reason is a weak one and the program has closed one of the objects."""
    is_open = all(platform.is_open(shared.original) for shared in sockets)
    return reason if is_open or reason not in WEAK_REASONS else Reason.CLOSED


_ORDER = {reason: number for number, reason in enumerate(Reason)}


class End(NamedTuple):
    """How a flow ended."""

    reason: Reason
    #: Bytes that the drain's send buffer has taken, ``initial`` ones included.
    moved: int
    #: The most that it was allowed to move; None: no limit.
    limit: int | None
    #: Bytes that were taken from the source, or given as ``initial``, and that the drain has not
    #: taken.  Nobody else has them.
    unsent: bytes
    #: What failed, where the reason is SOURCE_ERROR or DRAIN_ERROR.
    error: OSError | None
    #: "userspace" or "kernel".
    backend: str
    #: What moved the bytes: "SO_SPLICE", "os.splice" or "copy".
    mover: str
    #: Why userspace served although the kernel could have; None where it did not.
    fallback: str | None = None


class Flow(Protocol):
    """One direction.  Made once, prepared once, started once, ended once."""

    def prepare(self, source: SharedSocket, drain: SharedSocket) -> None:
        """Find out what can serve this pair; both flows of a pair before one is started.

        Raises OSError, and nothing has been touched: EBUSY where the drain is used by a splice
        that somebody else has made; BackendUnavailable where the kernel can't serve this pair, and
        userspace must not.
        """
        ...

    def start(
        self,
        source: SharedSocket,
        drain: SharedSocket,
        limit: int | None,
        initial: bytes,
        on_end: Callable[[End], None],
    ) -> None:
        """Begin to move.  Never raises: what goes wrong is an end.

        ``on_end`` is called once, without any lock held, from whichever thread brings the end
        about; that may be this one, before ``start`` has returned.
        """
        ...

    def moved(self) -> int:
        """Bytes that the drain has taken so far."""
        ...

    def stop(self, reason: Reason = Reason.CANCELLED) -> End:
        """End it now, with nothing in flight any more, for ``reason``.

        A flow that is over already keeps the end it had; one that has not started ends when it
        does, with that reason, and what this returns is no more than a promise.  Returns when the
        flow has let go of both sockets; ``on_end`` may still be running in another thread.
        """
        ...

    def look_soon(self) -> None:
        """The other direction has ended: the end of this one is to be expected."""
        ...
