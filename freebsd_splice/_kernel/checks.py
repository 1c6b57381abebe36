"""Checks of a flow's two sockets, before they are spliced and after a splice's end."""

from __future__ import annotations

from .._core.shared_sockets import SharedSocket
from .._platform.kernel_interface import KernelCalls
from .._platform.splice_checks import (
    DrainUse,
    decrypts,
    drain_error,
    drain_use,
    encrypts,
    is_tcp,
    tcp_state,
)
from .._platform.tcp import State


def why_not_spliced(calls: KernelCalls, source: SharedSocket, drain: SharedSocket) -> str | None:
    """Return why the kernel would refuse this pair; None where it would splice it.

    Userspace can serve such a pair. A kernel that checks drains itself is simply asked.
    """
    if calls.capabilities.checks_drains:
        return None
    for shared in (source, drain):
        if not is_tcp(calls, shared.endpoint.fileno()):
            return f"{shared.original!r} is not a TCP socket"
    if tcp_state(calls, source.endpoint.fileno()) is State.CONNECTING:
        return f"{source.original!r} is still connecting"
    try:
        if decrypts(calls, source.endpoint.fileno()):
            return f"the kernel decrypts what {source.original!r} receives (KTLS)"
        if encrypts(calls, drain.endpoint.fileno()):
            return f"the kernel encrypts what {drain.original!r} sends (KTLS)"
    except OSError as error:  # F22: a refusal could spoil the source
        return f"the kernel didn't say whether it does TLS: {error}"
    return None


def is_live_drain(calls: KernelCalls, shared: SharedSocket) -> bool:
    """Return whether the socket is the drain of a live splice; False where that can't be known.

    F20: poll(2) reports a socket with room as writable unless it is a drain.
    """
    drain = shared.endpoint.fileno()
    if not calls.capabilities.hides_drains or drain_error(calls, drain) is not None:
        return False
    return drain_use(calls, drain) is DrainUse.LIVE


def drain_failure(calls: KernelCalls, shared: SharedSocket) -> OSError | None:
    """Return why the drain takes no bytes (any more); None where it does.

    F16: its peer has reset. F21: it is connecting, or was shut down for writing, and FreeBSD would
    destroy what is pushed into it.
    """
    with shared.lock:
        failure = shared.failure()
    if failure is not None or calls.capabilities.checks_drains:
        return failure
    return drain_error(calls, shared.endpoint.fileno())
