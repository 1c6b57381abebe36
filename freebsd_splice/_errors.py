"""The exceptions of the package: always OSErrors with the kernel's errno.

Their messages name what failed and what to do about it.
"""

from __future__ import annotations

import os
import socket

__all__ = ["BackendUnavailable", "InvalidArgument", "refusal", "why"]


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
