"""Choose the backend that moves the bytes, and userspace's mover, by two environment variables."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, Literal, NamedTuple

from ._errors import BackendUnavailable
from ._platform import raw_splice
from ._platform.kernel_interface import KernelCalls

__all__ = ["BACKEND", "COPY", "OS_SPLICE", "Backend", "KernelChoice", "backend", "choose_kernel"]

BACKEND = "FREEBSD_SPLICE_BACKEND"
MOVER = "FREEBSD_SPLICE_MOVER"

#: The variable's name, and a value of it, as ``os.environ`` keeps them.
_RAW_NAME, _RAW_KERNEL = (
    (BACKEND, "kernel") if sys.platform == "win32" else (os.fsencode(BACKEND), b"kernel")
)

#: The names of userspace's movers.
OS_SPLICE = "os.splice"
COPY = "copy"


class Backend(NamedTuple):
    """Which backend moves the bytes, and why it was chosen.

    Attributes:
        name: "kernel" (SO_SPLICE) or "userspace".
        reason: why, in one sentence: the environment variable that chose, or what the kernel has
            or lacks.
    """

    name: Literal["kernel", "userspace"]
    reason: str


def backend() -> Backend:
    """Return the backend that a splice made now would use, and why.

    The environment variable ``FREEBSD_SPLICE_BACKEND`` chooses; it is read at each call:

    - ``auto`` (the default): the kernel where it has SO_SPLICE, else userspace;
    - ``userspace``: userspace, even where the kernel has SO_SPLICE;
    - ``kernel``: the kernel; where it can't serve, an error instead of userspace.

    A kernel that has SO_SPLICE can still refuse one pair of sockets. With ``auto`` userspace then
    serves that pair, and ``Outcome.fallback`` says why.

    Raises:
        BackendUnavailable: (an OSError, ENOPROTOOPT) ``kernel`` was asked for and can't be used;
            the message says what is missing: system, release, option or extension.
        ValueError: the variable has another value.

    Example::

        >>> freebsd_splice.backend()
        Backend(name='kernel', reason='the kernel has SO_SPLICE')
    """
    return _backend(os.environ.get(BACKEND, "") or "auto")


def _backend(wanted: str) -> Backend:
    if wanted not in ("auto", "kernel", "userspace"):
        raise ValueError(f"{BACKEND}={wanted!r}: it must be auto, kernel or userspace")
    if wanted == "userspace":
        return Backend("userspace", f"{BACKEND}=userspace")
    missing = raw_splice.missing()
    if missing is None:
        return Backend("kernel", "the kernel has SO_SPLICE")
    if wanted == "kernel":
        raise BackendUnavailable(errno.ENOPROTOOPT, f"{BACKEND}=kernel: {missing}")
    return Backend("userspace", missing)


def kernel_demanded() -> bool:
    """Whether userspace must not stand in for the kernel."""
    environ: Any = os.environ
    try:
        # ``get`` raises and catches two exceptions where the variable is not set. This is asked for
        # each transfer, and would cost half as much as the write.
        return bool(environ._data.get(_RAW_NAME) == _RAW_KERNEL)
    except AttributeError:  # the program has replaced ``os.environ``
        return bool(environ.get(BACKEND) == "kernel")


class KernelChoice(NamedTuple):
    """Whether the kernel serves new splices."""

    #: The kernel's calls; None where userspace has to serve.
    calls: KernelCalls | None
    #: Whether userspace must not stand in where the kernel can't serve.
    demanded: bool


def choose_kernel() -> KernelChoice:
    """Return what ``backend()`` says, with the kernel's calls. Raises as ``backend()`` does."""
    wanted = os.environ.get(BACKEND, "") or "auto"  # once: this is asked for each connection
    chosen, demanded = _backend(wanted), wanted == "kernel"
    if sys.platform != "win32" and chosen.name == "kernel":
        from ._platform.kernel_calls import SystemKernelCalls

        return KernelChoice(SystemKernelCalls(), demanded)
    return KernelChoice(None, demanded)


def forced_mover() -> str | None:
    """Return the mover that ``FREEBSD_SPLICE_MOVER`` names; None stands for the best there is.

    Raises:
        ValueError: the variable has another value.
    """
    wanted = os.environ.get(MOVER, "auto")
    if wanted not in ("auto", OS_SPLICE, COPY):
        raise ValueError(f"{MOVER} is {wanted!r}; it can be 'auto', {OS_SPLICE!r} or {COPY!r}")
    return None if wanted == "auto" else wanted
