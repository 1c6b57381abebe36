"""How many descriptors this process has open, and how many it may have."""

from __future__ import annotations

import ctypes
import os
import sys
import time

#: Seconds that listing all descriptors may take. The listing gives the interpreter to other threads
#: at each entry, so in a busy process it could take very long.
_LISTING_SECONDS = 0.2

#: CTL_KERN, KERN_PROC, KERN_PROC_NFDS and this process (FreeBSD's sys/sysctl.h, sysctl(3)).
_FREEBSD_NFDS = (1, 14, 43, 0)


def open_descriptors() -> int | None:
    """Return how many are open; None where the system doesn't say, or not soon."""
    try:
        if sys.platform == "linux":
            # Since Linux 6.2 the directory's size is their number; before, it is 0.
            return os.stat("/proc/self/fd").st_size or _listed("/proc/self/fd")
        if sys.platform == "darwin":
            return _listed("/dev/fd")
        if sys.platform.startswith("freebsd"):  # /dev/fd shows three of them there
            return _freebsd()
        if sys.platform.startswith("openbsd"):
            return int(ctypes.CDLL(None).getdtablecount())
    except (OSError, AttributeError):
        pass
    return None


def descriptor_limit() -> int | None:
    """Return how many there may be, as RLIMIT_NOFILE says; None where there is no such limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _listed(directory: str) -> int | None:
    deadline = time.monotonic() + _LISTING_SECONDS
    count = -1  # the descriptor that lists them
    with os.scandir(directory) as entries:
        for _ in entries:
            count += 1
            if time.monotonic() > deadline:
                return None
    return count


def _freebsd() -> int:
    names = (ctypes.c_int * len(_FREEBSD_NFDS))(*_FREEBSD_NFDS)
    count, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    sysctl = ctypes.CDLL(None, use_errno=True).sysctl
    answer, length = ctypes.byref(count), ctypes.byref(size)
    if sysctl(names, len(_FREEBSD_NFDS), answer, length, None, ctypes.c_size_t(0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return count.value
