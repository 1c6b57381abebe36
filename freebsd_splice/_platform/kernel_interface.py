"""The kernel's side of the platform: the calls that a splice in the kernel needs.

``kernel_calls`` makes them on this machine; a test can hand in a model of a kernel. All methods
take descriptors, and every method can raise OSError with the kernel's errno.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from .interface import Readiness


class PollBits(enum.IntFlag):
    """The bits that a level-triggered poll(2) shows of a socket.

    Attributes:
        NONE: nothing.
        READ_HANGUP: POLLRDHUP: no more bytes will arrive. OpenBSD has no such bit.
        HANGUP: POLLHUP: the connection is dead. It is reported without being asked for.
        WRITE: POLLOUT: there is room. FreeBSD hides it for the drain of a live splice (F25).
    """

    NONE = 0
    #: POLLRDHUP: no more bytes will arrive after the unread ones. OpenBSD has no such bit.
    READ_HANGUP = 1
    #: POLLHUP, reported without being asked for: the connection is dead.
    HANGUP = 2
    #: POLLOUT: there is room. Where a kernel hides drains, it also shows that the socket isn't the
    #: drain of a live splice (F25).
    WRITE = 4


@dataclass(frozen=True)
class Capabilities:
    """How one kernel's SO_SPLICE differs from another's."""

    #: The kernel checks the drain itself: it refuses one without harm to the source, and destroys
    #: no waiting bytes (F21, F22 don't apply). Otherwise the drain is checked before each call.
    checks_drains: bool
    #: A refusal because of the drain spoils the source (F22).
    poisons: bool
    #: poll(2) never reports the drain of a live splice writable (F20, F25).
    hides_drains: bool
    #: The cause of an end stays in the source's SO_ERROR (F10). A splice set while an error is
    #: there ends at once.
    keeps_causes: bool
    #: A splice can stand still although bytes wait and its drain has room (F38).
    stalls: bool


def capabilities_of(system: str, release: tuple[int, int]) -> Capabilities:
    """Return the capabilities of a kernel.

    Args:
        system: ``FreeBSD`` or ``OpenBSD``.
        release: its major and minor number.
    """
    openbsd = system == "OpenBSD"
    return Capabilities(
        checks_drains=openbsd,
        poisons=not openbsd and release < (15, 1),
        hides_drains=not openbsd,
        keeps_causes=openbsd,
        stalls=openbsd,
    )


class KernelCalls(Protocol):
    """SO_SPLICE, and the calls that its users need besides."""

    @property
    def capabilities(self) -> Capabilities:
        """How this kernel differs from others."""

    def set_splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
        """Splice source to drain; 0 bytes and 0 seconds mean no limit."""

    def end_splice(self, source: int) -> None:
        """End source's splice; the call sleeps until the kernel's worker has let go (F34)."""

    def spliced_count(self, source: int) -> int:
        """Return the bytes moved by source's current or last splice.

        The call waits while a blocking call holds the source's lock (F24).
        """

    def tcp_state(self, descriptor: int) -> int:
        """Return the first byte of TCP_INFO; 4 is ESTABLISHED (F21)."""

    def transmit_tls_mode(self, descriptor: int) -> int:
        """Return TCP_TXTLS_MODE; 0: the kernel doesn't encrypt what is sent."""

    def receive_tls_mode(self, descriptor: int) -> int:
        """Return TCP_RXTLS_MODE; 0: the kernel doesn't decrypt what is received."""

    def writable_now(self, descriptor: int) -> bool:
        """Return whether poll(2) for POLLOUT reports anything at once: POLLOUT, POLLHUP or POLLERR.

        If the kernel hides drains, it reports none of them for a live drain, and only POLLHUP for
        a dead one (F20).
        """

    def send_space(self, descriptor: int) -> int:
        """Return the free bytes in the send buffer."""

    def send_low_water(self, descriptor: int) -> int:
        """Return the number of free bytes from which a socket counts as writable."""

    def unread(self, descriptor: int) -> int:
        """Return the bytes in the receive buffer (FIONREAD)."""

    def push(self, drain: int) -> None:
        """Make the drain's TCP send what it holds back; only for a kernel that stalls (F38)."""

    def end_events(self) -> EndEvents:
        """Make a kqueue for the ends of splices."""

    def poll_set(self) -> PollSet:
        """Make an empty set of sockets for one poll(2)."""


class EndEvents(Protocol):
    """One kqueue: EVFILT_READ of sources and EVFILT_WRITE of drains, both with EV_CLEAR.

    F19: this is how the end of a splice is learnt. An event is (descriptor, READ) or (descriptor,
    WRITE), and comes once.
    """

    def fileno(self) -> int:
        """Return the descriptor, which poll(2) reports readable while events wait."""

    def arm(self, source: int, drain: int) -> list[tuple[int, Readiness]]:
        """Register both filters; return what ``collect`` does, with events that fired at once."""

    def disarm(self, source: int, drain: int) -> None:
        """Remove both filters."""

    def collect(self) -> list[tuple[int, Readiness]]:
        """Return the events that have fired since the last call, without waiting."""

    def close(self) -> None: ...

    def abandon(self) -> None:
        """In a forked child, which doesn't inherit the kqueue, forget it without a system call."""


class PollSet(Protocol):
    """Sockets that one level-triggered poll(2) looks at together, without waiting."""

    def put(self, descriptor: int, asked: PollBits) -> None:
        """Ask for these bits of that socket from now on, in place of those before."""

    def drop(self, descriptor: int) -> None:
        """Stop looking at that socket."""

    def look(self) -> list[tuple[int, PollBits]]:
        """Return every socket that shows something, with its bits."""
