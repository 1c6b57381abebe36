"""The kernel's side of the platform: the calls that a splice in the kernel needs, and no others.

``kernel_calls`` makes them on this machine; a test can hand in a model of a kernel.  Everything
is by descriptor, and every method can raise OSError with the kernel's errno.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from .interface import Readiness


class PollBits(enum.IntFlag):
    """What a level-triggered poll(2) shows of a socket."""

    NONE = 0
    #: POLLRDHUP: no more will arrive behind what is unread.  OpenBSD has no such bit.
    READ_HANGUP = 1
    #: POLLHUP, reported without being asked for: the connection is dead.
    HANGUP = 2
    #: POLLOUT: there is room.  Where a kernel hides drains, also: it isn't a drain (F25).
    WRITE = 4


@dataclass(frozen=True)
class Capabilities:
    """What one kernel's SO_SPLICE does otherwise than another's."""

    #: It checks the drain itself: it refuses one without harm to the source, and destroys no byte
    #: that waits (no F21, no F22).  Else that is asked before each call.
    checks_drains: bool
    #: A refusal because of the drain spoils the source (F22).
    poisons: bool
    #: poll(2) never calls the drain of a live splice writable (F20, F25).
    hides_drains: bool
    #: Why a splice has ended stays in its source's SO_ERROR (F10).  A splice set while something
    #: is there ends at once.
    keeps_causes: bool
    #: A splice can stand still although bytes wait and its drain has room (F38).
    stalls: bool


def capabilities_of(system: str, release: tuple[int, int]) -> Capabilities:
    """What the kernel of that system, ``FreeBSD`` or ``OpenBSD``, and release can do."""
    openbsd = system == "OpenBSD"
    return Capabilities(
        checks_drains=openbsd,
        poisons=not openbsd and release < (15, 1),
        hides_drains=not openbsd,
        keeps_causes=openbsd,
        stalls=openbsd,
    )


class KernelCalls(Protocol):
    """SO_SPLICE, and what must be asked around it."""

    @property
    def capabilities(self) -> Capabilities:
        """What this kernel does otherwise than others."""

    def set_splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
        """Splice source to drain; 0 bytes and 0 seconds mean no limit."""

    def end_splice(self, source: int) -> None:
        """End source's splice; it sleeps until the kernel's worker has let go (F34)."""

    def spliced_count(self, source: int) -> int:
        """Bytes moved by source's current or last splice; it may have to wait (F24)."""

    def tcp_state(self, descriptor: int) -> int:
        """The first byte of TCP_INFO: 4 is ESTABLISHED (F21)."""

    def transmit_tls_mode(self, descriptor: int) -> int:
        """0: what is sent isn't encrypted by the kernel."""

    def receive_tls_mode(self, descriptor: int) -> int:
        """0: what is received isn't decrypted by the kernel."""

    def writable_now(self, descriptor: int) -> bool:
        """Does poll(2) for POLLOUT report anything at once: POLLOUT, POLLHUP or POLLERR?

        Where drains are hidden, a live one is reported by none of them, a dead one by POLLHUP
        alone (F20).
        """

    def send_space(self, descriptor: int) -> int:
        """Free bytes in the send buffer."""

    def send_low_water(self, descriptor: int) -> int:
        """The free bytes from which a socket counts as writable."""

    def unread(self, descriptor: int) -> int:
        """Bytes in the receive buffer (FIONREAD)."""

    def push(self, drain: int) -> None:
        """Have its TCP send what it holds back.  Only a kernel that stalls is asked (F38)."""

    def end_events(self) -> EndEvents:
        """A new kqueue for the ends of splices."""

    def poll_set(self) -> PollSet:
        """A new set of sockets for one poll(2)."""


class EndEvents(Protocol):
    """One kqueue: EVFILT_READ of sources and EVFILT_WRITE of drains, both with EV_CLEAR (F19).

    An event is (descriptor, READ) or (descriptor, WRITE); it comes once.
    """

    def fileno(self) -> int:
        """Readable, for poll(2), while there is something to collect."""

    def arm(self, source: int, drain: int) -> list[tuple[int, Readiness]]:
        """Register both filters, and collect as ``collect`` does: also what has fired at once."""

    def disarm(self, source: int, drain: int) -> None:
        """Take both filters out again."""

    def collect(self) -> list[tuple[int, Readiness]]:
        """What has fired since; it doesn't wait."""

    def close(self) -> None: ...

    def abandon(self) -> None:
        """In a forked child, which has not inherited it: forget it without a call."""


class PollSet(Protocol):
    """Sockets to look at together, by one level-triggered poll(2) that doesn't wait."""

    def put(self, descriptor: int, asked: PollBits) -> None:
        """Ask so of that socket from now on, in place of what was asked before."""

    def drop(self, descriptor: int) -> None:
        """Look at it no more."""

    def look(self) -> list[tuple[int, PollBits]]:
        """Every socket that shows something."""
