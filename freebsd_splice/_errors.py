"""The exceptions of the package: OSErrors with the kernel's errno.

Their messages name what failed and what to do about it.
"""

from __future__ import annotations

import errno
import os
import socket

__all__ = [
    "SHORTAGES",
    "BackendUnavailable",
    "InvalidArgument",
    "ThreadRefusedError",
    "advice_for",
    "refusal",
    "short_of",
    "why",
]

#: Errnos of the process or the system having run out of something that others may give back.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: The process has too many open files, or the whole system has.
_ADVICE = {
    errno.EMFILE: "raise ulimit -n (systemd: LimitNOFILE)",
    errno.ENFILE: "raise kern.maxfiles (Linux: fs.file-max)",
}


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


class ThreadRefusedError(RuntimeError):
    """The system can't start another thread; the text says which one, and what to do about it."""


def refusal(number: int, advice: str) -> OSError:
    """Return the OSError subclass that belongs to this errno: the system's text and the advice."""
    return OSError(number, f"{os.strerror(number)}: {advice}")


def short_of(error: OSError, what: str) -> OSError:
    """Return the error of a call, with a text that names ``what`` it was for and what to do.

    An error other than a shortage is returned as it is.
    """
    if error.errno not in SHORTAGES:
        return error
    return OSError(error.errno, f"{os.strerror(error.errno)}: {what}{advice_for(error)}")


def advice_for(error: OSError) -> str:
    """Return what to do about a shortage of descriptors, to be added to the error's text."""
    is_of_name_servers = isinstance(error, socket.gaierror)  # with numbers of their own
    advice = None if is_of_name_servers else _ADVICE.get(error.errno or 0)
    return "" if advice is None else f"; {advice}"


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
