"""The thin calls on a kernel that has SO_SPLICE: each makes one call of the kernel.

OpenBSD's kernel checks drains itself and is called without further checks. FreeBSD's kernel accepts
drains into which it then destroys bytes (F21), spoils the source when it refuses the drain (F22,
before 15.1) and resets a live splice's count when asked to splice its source again (F23). So these
calls are recognised beforehand and refused here.
"""

from __future__ import annotations

import errno

from .._errors import refusal
from .._platform.kernel_interface import KernelCalls
from .._platform.splice_checks import DrainUse, drain_error, drain_use, encrypts, is_tcp, set_splice

__all__ = ["ThinKernel"]


class ThinKernel:
    """The three calls, and a record of the splices made here."""

    def __init__(self, calls: KernelCalls) -> None:
        self._calls = calls
        # For F23: source descriptor -> drain descriptor. An entry may be out of date (the splice
        # ended by itself, a descriptor was closed): it says which drain to ask the kernel about.
        self._drains: dict[int, int] = {}

    def splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
        """Splice source to drain."""
        if self._calls.capabilities.checks_drains:
            self._calls.set_splice(source, drain, max_bytes, idle)
            return
        self._check_source(source)
        self._check_drain(source, drain)
        try:
            set_splice(
                self._calls, source, drain, max_bytes, idle, spliced_here=source in self._drains
            )
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise _busy() from None
            raise
        self._remember(source, drain)

    def unsplice(self, source: int) -> None:
        """End source's splice."""
        try:
            self._calls.end_splice(source)
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # it had already ended
                self._drains.pop(source, None)
            raise
        self._drains.pop(source, None)

    def spliced_bytes(self, source: int) -> int:
        """Return the kernel's own count, in bytes."""
        return self._calls.spliced_count(source)

    def _check_source(self, source: int) -> None:
        """F23: asking for a second splice would reset the live one's count and limit."""
        drain = self._drains.get(source)
        if drain is not None and self._is_live_drain(drain):
            raise refusal(
                errno.EBUSY, "the source is spliced already; unsplice(source) ends that splice"
            )

    def _check_drain(self, source: int, drain: int) -> None:
        error = drain_error(self._calls, drain)
        if error is not None and error.errno == errno.ECONNRESET:
            raise refusal(errno.ENOTCONN, "the drain's connection was reset")
        if error is not None:
            raise error
        if not is_tcp(self._calls, drain):
            return  # the kernel refuses this drain itself, before any harm is done
        if encrypts(self._calls, drain):
            raise refusal(errno.EINVAL, "the drain encrypts in the kernel (KTLS)")
        self._check_drain_free(source, drain)

    def _check_drain_free(self, source: int, drain: int) -> None:
        """Refuse a drain that another splice uses (F22: before 15.1 the kernel's refusal of it
        would spoil the source).

        While the drain's buffer is full, no harmless check shows whether it is in use: only ending
        its splice would, and that splice may be somebody's live one. So the kernel is asked to
        splice, unless the drain was last used by another splice made here.
        """
        use = drain_use(self._calls, drain)
        if use is DrainUse.LIVE:
            raise refusal(
                errno.EBUSY,
                "the drain is the drain of another splice; unsplice that splice's source first",
            )
        others = [other for other, used in self._drains.items() if used == drain]
        if (
            use is DrainUse.UNKNOWN
            and self._calls.capabilities.poisons
            and others
            and others != [source]
        ):
            raise refusal(
                errno.EBUSY,
                f"the drain's buffer is full and the splice from fd {others[0]} to it may be alive:"
                f" call unsplice({others[0]}) first, or wait until the drain is writable",
            )

    def _remember(self, source: int, drain: int) -> None:
        """Record the splice. A drain has one source, so an older entry with either number is out of
        date.
        """
        for other, used in list(self._drains.items()):
            if used == drain:
                self._drains.pop(other, None)
        self._drains[source] = drain

    def _is_live_drain(self, drain: int) -> bool:
        """Return whether the socket is the drain of a live splice (F20); False where unknown."""
        try:
            return drain_use(self._calls, drain) is DrainUse.LIVE
        except OSError:
            return False


def _busy() -> OSError:
    return refusal(
        errno.EBUSY,
        "the source is spliced already (or, before FreeBSD 15.1, spoiled by an earlier refusal),"
        " or the drain is the drain of another splice",
    )
