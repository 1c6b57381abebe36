"""The thin layer: the kernel's own three calls, on every operating system.

They do what SO_SPLICE does and no more; ``docs/so_splice.md`` says what that is (the F-numbers).
Where the kernel has no SO_SPLICE, or ``FREEBSD_SPLICE_BACKEND=userspace`` asks for it, the module
``emulation`` keeps the same contract; what it can't keep is said there.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from typing import Protocol

from .._backend import backend
from .._errors import InvalidArgument
from .._platform.interface import SocketLike
from .kernel import ThinKernel
from .messages import call_error

if sys.platform != "win32":
    from .._platform.kernel_calls import SystemKernelCalls

__all__ = ["splice", "spliced_bytes", "unsplice"]

LARGEST_COUNT = 2**63 - 1  # off_t
LONGEST_IDLE = 2**31 - 1  # seconds, 68 years: what every kernel's time_t and sbintime_t can hold
SHORTEST_IDLE = 1e-6  # seconds: what a timeval can tell from none


def splice(
    source: int | SocketLike, drain: int | SocketLike, *, max_bytes: int = 0, idle: float = 0.0
) -> None:
    """Move what arrives at source to drain, from now on: setsockopt(SO_SPLICE).

    Returns at once; the moving goes on in the background until the limit is met, source's peer
    sends FIN, one of the connections breaks, the last descriptor of either socket is closed, or
    ``unsplice(source)``. Data waiting at source is moved first. At EOF nothing is passed on:
    shutting down drain is up to the caller, who looks for bytes left at source before (F12, F13).

    On OpenBSD an end leaves its cause in source's SO_ERROR (EFBIG, ETIMEDOUT, EPIPE). Take it from
    there before splicing source again: that splice would end at once, with 0 bytes (F10). A bulk
    splice can stand still for seconds there (F38), which ``Splice`` and ``Relay`` see to.

    On FreeBSD make both sockets non-blocking first and leave them so: a blocking recv or send on
    a spliced socket halts other splices of the whole system (F24).

    Args:
        source: a connected TCP socket: socket, descriptor or object with ``fileno()``.
        drain: another one, or the same for an echo.
        max_bytes: how many bytes to move at most; 0 is no limit.
        idle: seconds until the splice ends; 0.0 is no limit. FreeBSD and userspace: that long
            after the call however busy it is (F11); OpenBSD: that long after the last move.
            At least a microsecond, at most 2147483647 s.

    Raises:
        InvalidArgument: (OSError and ValueError, EINVAL) max_bytes or idle is out of range.
        OSError: with the kernel's errno, the class that belongs to it:
            EBUSY: source is spliced already, or drain is the drain of another splice;
            ENOTCONN: one of them isn't connected, or drain is still connecting;
            EPIPE: drain was shut down for writing; EINVAL: one of them is listening (OpenBSD:
            EOPNOTSUPP), or its kernel does TLS for it;
            EPROTONOSUPPORT: not TCP (OpenBSD joins UDP sockets too); EBADF, ENOTSOCK;
            ENOTRECOVERABLE: FreeBSD before 15.1 spoiled source in refusing drain (F22): close it.
    """
    _check_max_bytes(max_bytes)
    _check_idle(idle)
    descriptors = {"source": _descriptor(source, "source"), "drain": _descriptor(drain, "drain")}
    calls = _calls()
    try:
        _check_open(*descriptors.values())
        calls.splice(descriptors["source"], descriptors["drain"], max_bytes, float(idle))
    except OSError as error:
        raise call_error("splice", error, **descriptors) from None


def unsplice(source: int | SocketLike) -> None:
    """End source's splice; when this returns no byte is in flight (F35).

    Raises:
        OSError: ENOTCONN: there is none, or it is over already (OpenBSD: EPROTO); EINVAL: source
            is listening; EBADF, ENOTSOCK.
    """
    descriptor = _descriptor(source, "source")
    calls = _calls()
    try:
        _check_open(descriptor)
        calls.unsplice(descriptor)
    except OSError as error:
        raise call_error("unsplice", error, source=descriptor) from None


def spliced_bytes(source: int | SocketLike) -> int:
    """Bytes moved by source's splice, or by its last one until it is spliced again (F4).

    0 on a socket that was never spliced.

    Raises:
        OSError: EBADF, ENOTSOCK.
    """
    descriptor = _descriptor(source, "source")
    calls = _calls()
    try:
        _check_open(descriptor)
        return calls.spliced_bytes(descriptor)
    except OSError as error:
        raise call_error("spliced_bytes", error, source=descriptor) from None


class _Calls(Protocol):
    def splice(self, source: int, drain: int, max_bytes: int, idle: float, /) -> None: ...

    def unsplice(self, source: int, /) -> None: ...

    def spliced_bytes(self, source: int, /) -> int: ...


def _calls() -> _Calls:
    if backend().name == "kernel":
        return _kernel()
    from . import emulation  # the only place that does: whoever has the kernel never loads it

    return emulation


@functools.cache
def _kernel() -> _Calls:
    if sys.platform == "win32":
        raise AssertionError("Windows has no such kernel")
    else:
        return ThinKernel(SystemKernelCalls())


def _descriptor(argument: int | SocketLike, name: str) -> int:
    if isinstance(argument, int) and not isinstance(argument, bool):
        return argument
    fileno = getattr(argument, "fileno", None)
    if not callable(fileno):
        raise TypeError(
            f"{name} must be a socket, a descriptor or have fileno(), not {type(argument).__name__}"
        )
    descriptor = fileno()
    if not isinstance(descriptor, int):
        raise TypeError(f"{name}.fileno() must give an int, not {type(descriptor).__name__}")
    return descriptor


def _check_open(*descriptors: int) -> None:
    """A negative drain would mean "end the splice" to the kernel; a closed socket has -1."""
    for descriptor in descriptors:
        if not 0 <= descriptor <= 2**31 - 1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _check_max_bytes(max_bytes: int) -> None:
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
        raise TypeError(f"max_bytes must be an int, not {type(max_bytes).__name__}")
    if not 0 <= max_bytes <= LARGEST_COUNT:
        raise InvalidArgument(
            errno.EINVAL, f"splice(): max_bytes must be 0 (no limit) to 2**63 - 1, not {max_bytes}"
        )


def _check_idle(idle: float) -> None:
    if not isinstance(idle, (int, float)) or isinstance(idle, bool):
        raise TypeError(f"idle must be a number of seconds, not {type(idle).__name__}")
    if idle != 0 and not SHORTEST_IDLE <= idle <= LONGEST_IDLE:  # which NaN isn't either
        raise InvalidArgument(
            errno.EINVAL,
            "splice(): idle must be 0.0 (no limit) or a microsecond to 2147483647 seconds,"
            f" not {idle!r}",
        )
