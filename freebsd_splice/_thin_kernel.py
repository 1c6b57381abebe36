"""The thin calls on a kernel that has SO_SPLICE: one call of the kernel each.

A kernel that checks drains itself (OpenBSD's) is asked and nothing else. FreeBSD's accepts drains
into which it then destroys bytes (F21), spoils the source when it refuses the drain (F22, before
15.1) and resets a live splice's count when asked to splice its source again (F23): there, what it
must not be asked is found out before.
"""

from __future__ import annotations

import errno

from ._errors import refusal
from ._kernel_port import KernelCalls

__all__ = ["ThinKernel"]

ESTABLISHED, CLOSE_WAIT = 4, 5  # the states of tcp_fsm.h a drain may be in
LISTEN, SYN_SENT, SYN_RECEIVED = 1, 2, 3
FIRST_SHUT_DOWN = 6

POISONED = "only closing the source helps; splice() can't be called on it again, nor can it be read"


class ThinKernel:
    """The three calls, and what is remembered of the splices made here."""

    def __init__(self, calls: KernelCalls) -> None:
        self._calls = calls
        # For F23: source descriptor -> drain descriptor. It may be out of date (the splice ended
        # by itself, a descriptor was closed): it says where to look, the kernel says what is.
        self._drains: dict[int, int] = {}

    def splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
        """Splice source to drain."""
        if self._calls.capabilities.checks_drains:
            self._calls.set_splice(source, drain, max_bytes, idle)
            return
        self._check_source(source)
        drain_unknown = False
        if self._is_tcp_and_connected(drain):
            self._check_drain_plain(drain)
            drain_unknown = self._check_drain_free(source, drain)
        try:
            self._calls.set_splice(source, drain, max_bytes, idle)
        except OSError as error:
            if error.errno == errno.EBUSY:
                self._explain_busy(source, drain_unknown)
            elif self._calls.capabilities.poisons:
                self._second_try(source, drain, max_bytes, idle, error)
            else:
                raise
        self._remember(source, drain)

    def unsplice(self, source: int) -> None:
        """End source's splice."""
        try:
            self._calls.end_splice(source)
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # it was over before
                self._drains.pop(source, None)
            raise
        self._drains.pop(source, None)

    def spliced_bytes(self, source: int) -> int:
        """The kernel's own count."""
        return self._calls.spliced_count(source)

    def _check_source(self, source: int) -> None:
        """F23: asking for a second splice would reset the live one's count and limit."""
        drain = self._drains.get(source)
        if drain is not None and self._is_live_drain(drain):
            raise refusal(errno.EBUSY, "the source is spliced already; unsplice(source) ends that")

    def _is_tcp_and_connected(self, drain: int) -> bool:
        """F21: what waits at the source is destroyed by any other TCP drain, without an error.

        False for what is no TCP socket: that the kernel refuses before any harm is done.
        """
        try:
            state = self._calls.tcp_state(drain)
        except OSError as error:
            if error.errno == errno.ECONNRESET:
                raise refusal(errno.ENOTCONN, "the drain's connection was reset") from None
            if error.errno in (errno.EBADF, errno.ENOTSOCK):
                raise
            return False
        if state == LISTEN:
            raise refusal(errno.EINVAL, "the drain is a listening socket")
        if state in (SYN_SENT, SYN_RECEIVED):
            raise refusal(
                errno.ENOTCONN, "the drain is still connecting; wait until it is writable"
            )
        if state >= FIRST_SHUT_DOWN:
            raise refusal(errno.EPIPE, "the drain was shut down for writing")
        if state not in (ESTABLISHED, CLOSE_WAIT):
            raise refusal(errno.ENOTCONN, "the drain isn't connected")
        return True

    def _check_drain_plain(self, drain: int) -> None:
        """F22: the kernel refuses a drain that encrypts only when the source is half spliced."""
        try:
            mode = self._calls.transmit_tls_mode(drain)
        except OSError:
            return  # this kernel has no TLS
        if mode != 0:
            raise refusal(errno.EINVAL, "the drain encrypts in the kernel (KTLS)")

    def _check_drain_free(self, source: int, drain: int) -> bool:
        """F22: the same for a drain that is one already. True: can't be told, its buffer is full.

        The kernel is asked then, which before 15.1 costs the source if the drain is busy. Nothing
        harmless would tell more: ending is the only question a full drain answers, and it would
        end somebody's live splice. Only a drain last used by another splice made here isn't
        risked.
        """
        # In this order: room that an ACK makes between the two looks is no sign of a splice.
        has_room = self._has_room(drain)
        if self._calls.writable_now(drain):
            return False
        if has_room:
            raise refusal(
                errno.EBUSY, "the drain is the drain of another splice; unsplice that one's source"
            )
        others = [other for other, used in self._drains.items() if used == drain]
        if self._calls.capabilities.poisons and others and others != [source]:
            raise refusal(
                errno.EBUSY,
                f"the drain's buffer is full and the splice from fd {others[0]} to it may be alive:"
                f" call unsplice({others[0]}) first, or wait until the drain is writable",
            )
        return True

    def _explain_busy(self, source: int, drain_unknown: bool) -> None:
        """The kernel said EBUSY. Where that may have been the drain's fault, say what it did."""
        poisons = self._calls.capabilities.poisons
        if poisons and drain_unknown and source not in self._drains:
            raise refusal(
                errno.ENOTRECOVERABLE,
                "the kernel called it busy, and the drain's buffer being full it can't be told"
                " whether the source was spliced already (then that splice lives on) or the drain"
                f" in use; in the second case this kernel (before 15.1) has spoiled the source:"
                f" {POISONED}",
            )
        raise refusal(
            errno.EBUSY,
            "the source is spliced already (or, before FreeBSD 15.1, spoiled by an earlier"
            " refusal), or the drain is one already",
        )

    def _second_try(
        self, source: int, drain: int, max_bytes: int, idle: float, first: OSError
    ) -> None:
        """F22: a refusal in spite of the checks may have poisoned the source: ask once more.

        The first answer wasn't EBUSY, so the source was not spliced. If it is busy now, then with
        nothing.
        """
        try:
            self._calls.set_splice(source, drain, max_bytes, idle)
        except OSError as second:
            if second.errno == errno.EBUSY:
                raise refusal(
                    errno.ENOTRECOVERABLE,
                    f"the kernel refused the drain ({first.strerror}) and spoiled the source by"
                    f" it (FreeBSD before 15.1): {POISONED}",
                ) from None
            raise first from None

    def _remember(self, source: int, drain: int) -> None:
        """A drain has one source: an older entry with either number is out of date."""
        for other, used in list(self._drains.items()):
            if used == drain:
                self._drains.pop(other, None)
        self._drains[source] = drain

    def _is_live_drain(self, drain: int) -> bool:
        """F20. False where it can't be told."""
        try:
            return self._has_room(drain) and not self._calls.writable_now(drain)
        except OSError:
            return False

    def _has_room(self, drain: int) -> bool:
        return self._calls.send_space(drain) >= self._calls.send_low_water(drain)
