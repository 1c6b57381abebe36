"""What must be found out before a kernel is asked to splice, and what its refusal may have cost.

FreeBSD's kernel accepts drains into which it then destroys bytes (F21), spoils the source when it
refuses a drain (F22, before 15.1), and shows a drain in use in one way only (F20). These rules are
stated here once, by descriptor, for the thin functions and for ``Splice`` and ``Relay`` alike. A
kernel that checks drains itself (``Capabilities``) needs none of them.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable

from .._errors import refusal
from .kernel_interface import KernelCalls
from .tcp import State, bsd_state

_POISONED = (
    "FreeBSD before 15.1 spoils the source when it refuses the drain: only closing the source "
    "helps; it can't be spliced again, nor can it be read"
)


class DrainUse(enum.Enum):
    """Whether a socket is the drain of a live splice (F20)."""

    FREE = enum.auto()
    LIVE = enum.auto()
    #: Its send buffer is full. Nothing harmless tells more.
    UNKNOWN = enum.auto()


def tcp_state(calls: KernelCalls, descriptor: int) -> State | OSError:
    """The state, or what the kernel says in its place: ECONNRESET of a dead connection."""
    try:
        return bsd_state(calls.tcp_state(descriptor))
    except OSError as error:
        return error


def is_tcp(calls: KernelCalls, descriptor: int) -> bool:
    state = tcp_state(calls, descriptor)
    return not isinstance(state, OSError) or state.errno == errno.ECONNRESET


def drain_error(calls: KernelCalls, drain: int) -> OSError | None:
    """F21: why bytes would be destroyed if the kernel was asked to splice into that socket.

    None where they would not, and for what is not a TCP socket: that the kernel refuses itself,
    before any harm is done.
    """
    state = tcp_state(calls, drain)
    if isinstance(state, OSError):
        known = (errno.ECONNRESET, errno.EBADF, errno.ENOTSOCK)
        return state if state.errno in known else None
    number, advice = _REFUSED.get(state, (0, ""))
    return refusal(number, advice) if number else None


_REFUSED = {
    State.LISTENING: (errno.EINVAL, "the drain is a listening socket"),
    State.CONNECTING: (
        errno.ENOTCONN,
        "the drain is still connecting; wait until it is writable",
    ),
    State.SHUT_DOWN: (errno.EPIPE, "the drain was shut down for writing"),
    State.CLOSED: (errno.ENOTCONN, "the drain isn't connected"),
}


def drain_use(calls: KernelCalls, drain: int) -> DrainUse:
    """F20: a live drain has room, and yet poll(2) doesn't call it writable."""
    # In this order: room that an ACK makes between the two looks is no sign of a splice.
    has_room = calls.send_space(drain) >= calls.send_low_water(drain)
    if calls.writable_now(drain):
        return DrainUse.FREE
    return DrainUse.LIVE if has_room else DrainUse.UNKNOWN


def encrypts(calls: KernelCalls, drain: int) -> bool:
    """F22: whether the kernel does TLS for what is sent there.

    A kernel without TLS has no such option.
    """
    return bool(_answer(calls.transmit_tls_mode, drain))


def decrypts(calls: KernelCalls, source: int) -> bool:
    """The same of what is received."""
    return bool(_answer(calls.receive_tls_mode, source))


def set_splice(
    calls: KernelCalls,
    source: int,
    drain: int,
    max_bytes: int,
    idle: float,
    *,
    spliced_here: bool = False,
) -> None:
    """Splice, and where that fails find out whether it has spoiled the source (F22).

    spliced_here:
        The caller has made a splice of this source that may live: that is what EBUSY is about then.

    Raises OSError: the kernel's errno; ENOTRECOVERABLE where the source is spoiled, or may be.
    """
    try:
        calls.set_splice(source, drain, max_bytes, idle)
        return
    except OSError as error:
        first = error
    if not calls.capabilities.poisons:
        raise first
    if first.errno == errno.EBUSY:
        # Harmless where it is about the source, which only a free drain shows.
        if spliced_here or drain_use(calls, drain) is DrainUse.FREE:
            raise first
        raise refusal(
            errno.ENOTRECOVERABLE,
            "the kernel called the pair busy, and the drain's buffer being full it can't be told "
            "whether the source was spliced already (then that splice lives on) or the drain is in "
            f"use; in that case {_POISONED}",
        )
    # The first answer wasn't EBUSY, so the source was not spliced. If it is busy now, then with
    # nothing.
    try:
        calls.set_splice(source, drain, max_bytes, idle)
    except OSError as second:
        if second.errno == errno.EBUSY:
            raise refusal(errno.ENOTRECOVERABLE, f"{first.strerror}: {_POISONED}") from None
        raise first from None


def _answer(ask: Callable[[int], int], descriptor: int) -> int:
    try:
        return ask(descriptor)
    except OSError:
        return 0
