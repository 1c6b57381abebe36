"""The thin layer: the kernel's own three calls, on every operating system.

They do what SO_SPLICE does and no more; ``docs/so_splice.md`` describes it, fact by fact (F1 to
F40). Where the kernel has no SO_SPLICE, or ``FREEBSD_SPLICE_BACKEND=userspace`` asks for it, the
package ``emulation`` keeps the same contract, apart from the differences that its docstring lists.
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
SHORTEST_IDLE = 1e-6  # seconds: the shortest time that a timeval can hold, besides 0


def splice(
    source: int | SocketLike, drain: int | SocketLike, *, max_bytes: int = 0, idle: float = 0.0
) -> None:
    """Move whatever arrives at source to drain, in the background: setsockopt(SO_SPLICE).

    Data that already waits at source is moved first, within the call (F34). The call then returns,
    and bytes go on moving until one of these ends the splice: ``max_bytes`` or ``idle`` is
    reached, source's peer sends FIN, one of the connections breaks, the last descriptor of either
    socket is closed, or ``unsplice(source)`` is called. One call splices one direction; for the
    other one, call again with the sockets exchanged. ``spliced_bytes(source)`` returns the count.

    The caller watches for the end and looks after both sockets, as with the bare kernel call.
    (``Splice`` and ``Relay`` do all of this, and report why a splice ended.)

    - kevent(2) shows most ends in the kernel, for filters registered before the call (F19:
      EVFILT_READ of source and EVFILT_WRITE of drain, both with EV_CLEAR). On FreeBSD a FIN that
      arrives while the last bytes are being moved gives no event at all (F14).
    - Nothing closes or shuts down drain. At EOF, first move the bytes left at source, which
      FreeBSD leaves there if drain was full (F13), then shut drain down for writing (F12: the
      kernel passes no FIN on).
    - On FreeBSD both sockets must be non-blocking before the call and until the end: a blocking
      recv or send on a spliced socket halts other splices, of other processes too (F24).

    FreeBSD (14.3 and later) and OpenBSD splice in the kernel. On OpenBSD an end leaves its cause
    in source's SO_ERROR (EFBIG, ETIMEDOUT, EPIPE). Read it before splicing source again: otherwise
    the new splice ends at once, with 0 bytes (F10). A bulk splice can stand still for seconds
    there (F38: setting and clearing TCP_NOPUSH on drain sets it going again). On every other
    system a thread of this package emulates the call: the splice belongs to this process and ends
    with its last descriptor of either socket, and poll(2) still reports source readable and drain
    writable.

    Args:
        source: a connected TCP socket: a socket object, a descriptor (int) or an object with
            ``fileno()``.
        drain: another one, or the same one for an echo.
        max_bytes: the number of bytes after which the splice ends, 0 to 2**63 - 1; 0 means no
            limit. Later bytes stay readable at source.
        idle: the number of seconds after which the splice ends; 0.0 means no limit, else 0.000001
            to 2147483647. FreeBSD and the emulation count from the call, however busy the splice
            is (F11); OpenBSD counts from the last byte moved.

    Raises:
        InvalidArgument: (an OSError with EINVAL, and a ValueError) max_bytes or idle is out of
            range.
        TypeError: an argument is of the wrong type.
        OSError: with the kernel's errno, in the subclass that belongs to it:
            EBUSY: source is spliced already, or drain is the drain of another splice;
            ENOTCONN: one of them isn't connected, or drain is still connecting (OpenBSD waits
            for it);
            EPIPE: drain was shut down for writing (OpenBSD accepts it, and the splice ends at
            once with EPIPE in source's SO_ERROR; Windows learns of it with the first byte);
            EINVAL: one of them is a listening socket (OpenBSD: EOPNOTSUPP), or the kernel does
            TLS for it (KTLS: decrypts at source, or encrypts at drain);
            EPROTONOSUPPORT: one of them isn't a TCP socket (OpenBSD also joins UDP with UDP);
            EBADF, ENOTSOCK: a descriptor is closed, or isn't a socket;
            ENOTRECOVERABLE: FreeBSD before 15.1 has spoiled source by refusing drain, or may have
            (F22): source can only be closed;
            ENXIO: FreeBSD could not start its so_splice threads (F6);
            ENOTCAPABLE: Capsicum rights are missing (F7: CAP_RECV and CAP_SETSOCKOPT for source,
            CAP_SEND for drain);
            EMFILE: the emulation has no descriptor left.
        BackendUnavailable: (an OSError) ``FREEBSD_SPLICE_BACKEND=kernel`` is set, and the kernel
            can't be used.
        ValueError: ``FREEBSD_SPLICE_BACKEND`` has an unknown value.
        RuntimeError: the emulation can't start its thread, because the system refuses it or gevent
            has patched ``threading``, ``select`` or ``queue``.

    Source: setsockopt(2) of FreeBSD and OpenBSD; docs/so_splice.md describes each fact (F).

    Example::

        client.setblocking(False)
        server.setblocking(False)
        splice(client, server)
        splice(server, client, max_bytes=content_length)
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
    """End the splice whose source is ``source``.

    When this returns, no byte is in flight (F35: the kernel has waited for its worker to let go):
    ``spliced_bytes(source)`` is final, and what was not moved is readable at source. Drain stays
    open. No signal interrupts the call (F34); other threads run meanwhile. Any process with a
    descriptor of source can end a splice in the kernel (F8); an emulated one can be ended only by
    the process that made it.

    Args:
        source: the splice's source: a socket object, a descriptor (int) or an object with
            ``fileno()``.

    Raises:
        TypeError: source is of the wrong type.
        OSError: with the kernel's errno, in the subclass that belongs to it:
            ENOTCONN (OpenBSD: EPROTO): source isn't spliced, or its splice has already ended. If
            ``idle`` has ended it on FreeBSD, a last batch may still be moving then (F19);
            EINVAL (OpenBSD: EPROTO): source is a listening socket;
            EBADF, ENOTSOCK: the descriptor is closed, or isn't a socket;
            ENOTCAPABLE: the Capsicum right CAP_SETSOCKOPT is missing (F7).
        BackendUnavailable: (an OSError) ``FREEBSD_SPLICE_BACKEND=kernel`` is set, and the kernel
            can't be used.
        ValueError: ``FREEBSD_SPLICE_BACKEND`` has an unknown value.

    Example::

        unsplice(client)
        print(spliced_bytes(client), "bytes went from the client to the server")
    """
    descriptor = _descriptor(source, "source")
    calls = _calls()
    try:
        _check_open(descriptor)
        calls.unsplice(descriptor)
    except OSError as error:
        raise call_error("unsplice", error, source=descriptor) from None


def spliced_bytes(source: int | SocketLike) -> int:
    """Return how many bytes the splice of ``source`` has moved: getsockopt(SO_SPLICE).

    After the end the count stays, until source is spliced again or closed (F4). On FreeBSD this
    call waits while a blocking recv on source holds its lock (F24). Only the process that made an
    emulated splice knows its count; in others it is 0.

    Args:
        source: the splice's source: a socket object, a descriptor (int) or an object with
            ``fileno()``.

    Returns:
        Bytes that the current splice, or else the last one, has moved to its drain; 0 for a
        socket that was never spliced.

    Raises:
        TypeError: source is of the wrong type.
        OSError: EBADF, ENOTSOCK: the descriptor is closed, or isn't a socket.
        BackendUnavailable: (an OSError) ``FREEBSD_SPLICE_BACKEND=kernel`` is set, and the kernel
            can't be used.
        ValueError: ``FREEBSD_SPLICE_BACKEND`` has an unknown value.
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
    from . import emulation  # imported here alone: a process that has the kernel never loads it

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
    """Refuse negative descriptors.

    A closed socket's is -1, and to the kernel a negative drain would mean "end the splice".
    """
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
    if idle != 0 and not SHORTEST_IDLE <= idle <= LONGEST_IDLE:  # false for NaN
        raise InvalidArgument(
            errno.EINVAL,
            "splice(): idle must be 0.0 (no limit) or a microsecond to 2147483647 seconds,"
            f" not {idle!r}",
        )
