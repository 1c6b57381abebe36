"""What a flow asks of its two sockets before they are spliced, and behind a splice's end."""

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
    """Why the kernel would refuse a pair that userspace can serve."""
    if calls.capabilities.checks_drains:
        return None
    for shared in (source, drain):
        if not is_tcp(calls, shared.endpoint.fileno()):
            return f"{shared.original!r} is not a TCP socket"
    if tcp_state(calls, source.endpoint.fileno()) is State.CONNECTING:
        return f"{source.original!r} is still connecting"
    if decrypts(calls, source.endpoint.fileno()):
        return f"the kernel decrypts what {source.original!r} receives (KTLS)"
    if encrypts(calls, drain.endpoint.fileno()):
        return f"the kernel encrypts what {drain.original!r} sends (KTLS)"
    return None


def is_live_drain(calls: KernelCalls, shared: SharedSocket) -> bool:
    """F20: whether it is the drain of a live splice. False where it can't be told."""
    drain = shared.endpoint.fileno()
    if not calls.capabilities.hides_drains or drain_error(calls, drain) is not None:
        return False
    return drain_use(calls, drain) is DrainUse.LIVE


def drain_failure(calls: KernelCalls, shared: SharedSocket) -> OSError | None:
    """Why the drain takes nothing, or nothing any more (F16, F21)."""
    with shared.lock:
        failure = shared.failure()
    if failure is not None or calls.capabilities.checks_drains:
        return failure
    return drain_error(calls, shared.endpoint.fileno())
