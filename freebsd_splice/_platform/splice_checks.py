"""Checks before a kernel is asked to splice, and the finding out of what its refusal has spoiled.

FreeBSD's kernel accepts drains into which it then destroys bytes (F21), spoils the source when it
refuses a drain (F22, before 15.1), and shows only by poll(2) that a drain is in use (F20). These
rules are stated here once, for descriptors; the thin functions, ``Splice`` and ``Relay`` all use
them. A kernel that checks drains itself (``Capabilities``) needs none of them.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable

from .._errors import refusal
from .kernel_interface import KernelCalls
from .shortages import raise_if_short
from .tcp import State, bsd_state

_POISONED = (
    "FreeBSD before 15.1 spoils the source when it refuses the drain: only closing the source "
    "helps; it can be neither spliced again nor read"
)


class DrainUse(enum.Enum):
    """A socket's use as the drain of a live splice (F20: poll(2) shows it)."""

    FREE = enum.auto()
    LIVE = enum.auto()
    #: Its send buffer is full, and no harmless call shows more.
    UNKNOWN = enum.auto()


def tcp_state(calls: KernelCalls, descriptor: int) -> State | OSError:
    """Return the state, or the kernel's error: ECONNRESET for a dead connection."""
    try:
        return bsd_state(calls.tcp_state(descriptor))
    except OSError as error:
        return error


def is_tcp(calls: KernelCalls, descriptor: int) -> bool:
    state = tcp_state(calls, descriptor)
    return not isinstance(state, OSError) or state.errno == errno.ECONNRESET


def drain_error(calls: KernelCalls, drain: int) -> OSError | None:
    """Return why a splice into that socket would destroy bytes (F21); None if it would not.

    It is None also for a socket that isn't TCP: the kernel refuses that itself, before any harm is
    done.
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
    """Return a drain's use (F20: a live one has room, yet poll(2) doesn't report it writable)."""
    # Room first: otherwise an ACK that makes room between the two calls would look like a splice.
    has_room = calls.send_space(drain) >= calls.send_low_water(drain)
    if calls.writable_now(drain):
        return DrainUse.FREE
    return DrainUse.LIVE if has_room else DrainUse.UNKNOWN


def encrypts(calls: KernelCalls, drain: int) -> bool:
    """Return whether the kernel encrypts what is sent (KTLS), so that it refuses the drain (F22).

    A kernel without TLS lacks the option, and so the answer is False.

    Raises:
        OSError: one of SHORTAGES.
    """
    return bool(_answer(calls.transmit_tls_mode, drain))


def decrypts(calls: KernelCalls, source: int) -> bool:
    """Return whether the kernel decrypts what is received (KTLS).

    Raises:
        OSError: one of SHORTAGES.
    """
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
    """Splice, and if that fails find out whether the kernel has spoiled the source (F22).

    Args:
        calls: the kernel's calls.
        source: the source's descriptor.
        drain: the drain's descriptor.
        max_bytes: the number of bytes after which the splice ends; 0: no limit.
        idle: ``sp_idle`` in seconds; 0: no limit.
        spliced_here: the caller has made a splice of this source that may be alive: EBUSY is then
            about that one.

    Raises:
        OSError: the kernel's errno; ENOTRECOVERABLE if the source is spoiled, or may be.
    """
    try:
        calls.set_splice(source, drain, max_bytes, idle)
        return
    except OSError as error:
        first = error
    if not calls.capabilities.poisons:
        raise first
    if first.errno == errno.EBUSY:
        # EBUSY is harmless if it is about the source, which only a free drain shows.
        if spliced_here or drain_use(calls, drain) is DrainUse.FREE:
            raise first
        raise refusal(
            errno.ENOTRECOVERABLE,
            "the kernel answered EBUSY, and while the drain's buffer is full nothing shows which "
            "socket is busy: if the source is spliced already, that splice lives on; if the drain "
            f"is in use, {_POISONED}",
        )
    # The first answer wasn't EBUSY, so the source was not spliced. If it is busy now although it
    # isn't spliced, it is spoiled.
    try:
        calls.set_splice(source, drain, max_bytes, idle)
    except OSError as second:
        if second.errno == errno.EBUSY:
            raise refusal(errno.ENOTRECOVERABLE, f"{first.strerror}: {_POISONED}") from None
        raise first from None


def _answer(ask: Callable[[int], int], descriptor: int) -> int:
    try:
        return ask(descriptor)
    except OSError as error:
        raise_if_short(error)
        return 0
