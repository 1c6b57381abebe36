"""The exceptions of the package: always OSErrors with the kernel's errno.

Their messages name the call, both sockets and what to do about it.
"""

from __future__ import annotations

import errno
import os
import socket

from ._borrow import Borrowed

__all__ = ["BackendUnavailable", "InvalidArgument", "call_error", "describe", "refusal", "why"]


class InvalidArgument(OSError, ValueError):
    """An argument that the kernel would take wrongly. errno is EINVAL."""


class BackendUnavailable(OSError):
    """The kernel was demanded, by ``FREEBSD_SPLICE_BACKEND=kernel`` or ``fallback=False``, and
    can't be had: errno is ENOPROTOOPT where it has no SO_SPLICE, EPROTONOSUPPORT where it can't
    splice this pair.
    """


def refusal(number: int, advice: str) -> OSError:
    """An OSError of the class that belongs to errno, its text the system's and the advice."""
    return OSError(number, f"{os.strerror(number)}: {advice}")


def why(error: OSError) -> str:
    """The reason of an error, in the system's words where its errno is one of the system's.

    Not every OSError has such an errno: those of name servers have numbers of their own, a timeout
    mostly has none, and what an event loop raises can have neither errno nor text.
    """
    number = error.errno or 0
    if number > 0 and not isinstance(error, (socket.gaierror, socket.herror)):
        return os.strerror(number)
    if error.strerror or str(error):
        return error.strerror or str(error)
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__


def call_error(call: str, error: OSError, **sockets: int) -> OSError:
    """The error of a call, naming it and its sockets (descriptors, in the call's order)."""
    number = error.errno or errno.EIO
    text = error.strerror or why(error)
    if text == os.strerror(number) and number in _ADVICE:
        text = f"{text}: {_ADVICE[number]}"
    arguments = ", ".join(f"{name}=<{describe(value)}>" for name, value in sockets.items())
    return OSError(number, f"{call}({arguments}): {text}")


def describe(descriptor: int) -> str:
    """A socket in words: descriptor, address and peer's address. Never fails or changes it."""
    try:
        borrowed = Borrowed()
    except OSError:  # no descriptor left to look at it with
        return f"fd {descriptor}"
    try:
        borrowed.take(descriptor)
        name = _address(borrowed.socket.getsockname())
    except OverflowError:
        return f"fd {descriptor}, closed"
    except OSError as error:
        return f"fd {descriptor}, {'closed' if error.errno == errno.EBADF else error.strerror}"
    else:
        try:
            return f"fd {descriptor}, {name} -> {_address(borrowed.socket.getpeername())}"
        except OSError:
            return f"fd {descriptor}, {name}, not connected"
    finally:
        borrowed.close()


def _address(name: object) -> str:
    if not isinstance(name, tuple):
        return str(name) or "unnamed"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


_ADVICE = {
    errno.EBADF: "the descriptor is closed",
    errno.ENOTSOCK: "the descriptor is not a socket",
    errno.EPROTONOSUPPORT: "only TCP sockets can be spliced",
    errno.EBUSY: (
        "the source is spliced already or the drain is one already; unsplice(source) ends a splice"
    ),
    errno.ENOTCONN: "a socket isn't connected or, with unsplice(), there is no splice to end",
    errno.ENXIO: "the kernel could not start its so_splice threads; see its messages (dmesg)",
}
_NOT_CAPABLE = getattr(errno, "ENOTCAPABLE", None)
if _NOT_CAPABLE is not None:
    _ADVICE[_NOT_CAPABLE] = (
        "a splice needs CAP_RECV and CAP_SETSOCKOPT on its source, CAP_SEND on its drain"
    )
