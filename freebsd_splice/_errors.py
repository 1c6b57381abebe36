"""The exceptions of the package: OSErrors with the kernel's errno.

Their messages name what failed and what to do about it.
"""

from __future__ import annotations

import os
import socket

__all__ = ["BackendUnavailable", "InvalidArgument", "refusal", "why"]


class InvalidArgument(OSError, ValueError):
    """An argument of ``splice`` or ``Splice`` is out of range: ``max_bytes`` or ``idle``.

    Both an OSError, with EINVAL in ``errno``, and a ValueError. The package checks before the
    kernel's call, as FreeBSD would accept a negative idle time and use its absolute value.
    """


class BackendUnavailable(OSError):
    """The kernel was demanded and can't serve.

    ``FREEBSD_SPLICE_BACKEND=kernel`` demands it for all splices, ``fallback=False`` for one. An
    OSError whose ``errno`` is ENOPROTOOPT where the kernel has no SO_SPLICE, and EPROTONOSUPPORT
    where it has but can't splice this pair of sockets. The message says what is missing.
    """


def refusal(number: int, advice: str) -> OSError:
    """Return the OSError subclass that belongs to this errno: the system's text and the advice."""
    return OSError(number, f"{os.strerror(number)}: {advice}")


def why(error: OSError) -> str:
    """Return the reason of an error, in the system's words where its errno is the system's.

    Not every OSError has such an errno: those of name servers have numbers of their own, a timeout
    mostly has none, and what an event loop raises can have neither errno nor text.
    """
    number = error.errno or 0
    if number > 0 and not isinstance(error, (socket.gaierror, socket.herror)):
        return os.strerror(number)
    if error.strerror or str(error):
        return error.strerror or str(error)
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__
