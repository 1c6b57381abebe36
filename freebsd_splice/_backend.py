"""Which of the two does the moving: the kernel, or the package itself in userspace."""

from __future__ import annotations

import errno
import os
from typing import Literal, NamedTuple

from . import _abi
from ._errors import BackendUnavailable

__all__ = ["VARIABLE", "Backend", "backend"]

VARIABLE = "FREEBSD_SPLICE_BACKEND"

#: The variable, and the value that demands the kernel, as ``os.environ`` keeps them.
_KEY, _KERNEL = os.environ.encodekey(VARIABLE), os.environ.encodevalue("kernel")


class Backend(NamedTuple):
    """What moves the bytes, and why that."""

    name: Literal["kernel", "userspace"]
    reason: str


def backend() -> Backend:
    """The backend that splices made now use.

    The environment variable ``FREEBSD_SPLICE_BACKEND``, read at each call, chooses:
    ``auto`` (the default) the kernel where it has SO_SPLICE, ``userspace`` never the kernel,
    ``kernel`` nothing else.

    Raises:
        BackendUnavailable: (an OSError, ENOPROTOOPT) ``kernel`` was asked for and can't be used;
            the message says what is missing: system, release, option or extension.
        ValueError: the variable has another value.
    """
    wanted = os.environ.get(VARIABLE, "") or "auto"
    if wanted not in ("auto", "kernel", "userspace"):
        raise ValueError(f"{VARIABLE}={wanted!r}: it must be auto, kernel or userspace")
    if wanted == "userspace":
        return Backend("userspace", f"{VARIABLE}=userspace")
    missing = _abi.missing()
    if missing is None:
        return Backend("kernel", "the kernel has SO_SPLICE")
    if wanted == "kernel":
        raise BackendUnavailable(errno.ENOPROTOOPT, f"{VARIABLE}=kernel: {missing}")
    return Backend("userspace", missing)


def kernel_demanded() -> bool:
    """Whether userspace is not to stand in for the kernel."""
    # Past ``os.environ.get``, which takes as long as a short write where nothing is set.
    kept: dict[object, object] = os.environ._data  # type: ignore[attr-defined]
    return kept.get(_KEY) == _KERNEL
