"""What is asked of two sockets before they are spliced: what the kernel must not be left to find.

FreeBSD's accepts drains into which it then destroys bytes (F21), and before 15.1 it spoils the
source when it refuses a drain (F22).  One that checks drains itself isn't asked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._kernel_port import KernelCalls

if TYPE_CHECKING:
    from ._sockets import SharedSocket

#: The states of tcp_fsm.h, as TCP_INFO's first byte tells them.
SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSE_WAIT, FIRST_SHUT_DOWN = 2, 3, 4, 5, 6

POISONED = (
    "FreeBSD before 15.1 spoils the source when it refuses the drain: only closing the source "
    "helps; it can't be spliced again, nor can it be read"
)


def why_not_spliced(calls: KernelCalls, source: SharedSocket, drain: SharedSocket) -> str | None:
    """Why the kernel would refuse a pair that userspace can serve."""
    if calls.capabilities.checks_drains:
        return None
    for shared in (source, drain):
        if not _is_tcp(calls, shared.endpoint.fileno()):
            return f"{shared.original!r} is no TCP socket"
    if _state(calls, source.endpoint.fileno()) in (SYN_SENT, SYN_RECEIVED):
        return f"{source.original!r} is still connecting"
    # A kernel without TLS has no such option.
    if _answer(calls.receive_tls_mode, source.endpoint.fileno()):
        return f"the kernel decrypts what {source.original!r} receives (KTLS)"
    if _answer(calls.transmit_tls_mode, drain.endpoint.fileno()):
        return f"the kernel encrypts what {drain.original!r} sends (KTLS)"
    return None


def is_live_drain(calls: KernelCalls, shared: SharedSocket) -> bool:
    """F20: room, and yet not writable.  False where it can't be told, the buffer being full."""
    if not calls.capabilities.hides_drains:
        return False
    drain = shared.endpoint.fileno()
    if _state(calls, drain) not in (ESTABLISHED, CLOSE_WAIT):
        return False
    # In this order: room that an ACK makes between the two looks is no sign of a splice.
    has_room = calls.send_space(drain) >= calls.send_low_water(drain)
    return has_room and not calls.writable_now(drain)


def drain_failure(calls: KernelCalls, shared: SharedSocket) -> OSError | None:
    """Why the drain takes nothing, or nothing any more (F16, F21)."""
    with shared.lock:
        failure = shared.failure()
    if failure is not None or calls.capabilities.checks_drains:
        return failure
    state = _state(calls, shared.endpoint.fileno())
    if state in (ESTABLISHED, CLOSE_WAIT):
        return None
    if isinstance(state, OSError):
        return state
    return _error(errno.EPIPE if state >= FIRST_SHUT_DOWN else errno.ENOTCONN)


def _is_tcp(calls: KernelCalls, descriptor: int) -> bool:
    state = _state(calls, descriptor)
    return not isinstance(state, OSError) or state.errno == errno.ECONNRESET


def _state(calls: KernelCalls, descriptor: int) -> int | OSError:
    try:
        return calls.tcp_state(descriptor)
    except OSError as error:
        return error


def _answer(ask: Callable[[int], int], descriptor: int) -> int:
    try:
        return ask(descriptor)
    except OSError:
        return 0


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
