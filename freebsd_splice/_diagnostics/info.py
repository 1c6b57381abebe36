"""``freebsd-splice info``: what this system offers and what the package makes of it."""

from __future__ import annotations

import importlib
import mmap
import os
import platform
import sys
import textwrap
from pathlib import Path

from .. import __version__
from .._backend import COPY, OS_SPLICE, backend
from .._platform import raw_splice
from .._platform.backlog import backlog_limit
from .._platform.pollers import kinds
from .._platform.system import PIPE_BYTES, SystemPlatform


def report() -> str:
    """All of it as text: a name and what is to say about it on each line."""
    system = platform.uname()
    facts = {
        "freebsd-splice": f"{__version__} on {platform.python_implementation()} "
        f"{platform.python_version()}",
        "system": f"{system.system} {system.release} {system.machine}",
        "kernel": system.version,
        "SO_SPLICE": raw_splice.missing() or "available",
        "backend": _backend(),
        "struct splice": _layout(),
        "workers": f"{SystemPlatform().cpus()}, one for each CPU",
        "movers": _movers(),
        "readiness": f"{kinds()[0]} (of {', '.join(kinds())})",
        "descriptors": _descriptors(),
        "backlog": _backlog(),
        "pipes": _pipes(),
    }
    return "\n".join(_line(name, text) for name, text in facts.items() if text)


def _line(name: str, text: str) -> str:
    return textwrap.fill(
        text, 100, initial_indent=f"{name:<16}", subsequent_indent=" " * 16, break_on_hyphens=False
    )


def _backend() -> str:
    try:
        chosen = backend()
    except (OSError, ValueError) as error:
        return f"none: {getattr(error, 'strerror', None) or error}"
    return f"{chosen.name}: {chosen.reason}"


def _layout() -> str:
    try:
        ffi = importlib.import_module("freebsd_splice._so_splice").ffi
    except ImportError:
        return "unknown: only the extension, built where the headers have it, knows its layout"
    fields = ("sp_fd", "sp_max", "sp_idle")
    offsets = ", ".join(f"{field} at {ffi.offsetof('struct splice', field)}" for field in fields)
    return (
        f"{ffi.sizeof('struct splice')} bytes: {offsets}; "
        f"struct timeval {ffi.sizeof('struct timeval')} bytes"
    )


def _movers() -> str:
    movers = [OS_SPLICE, COPY] if SystemPlatform().can_splice() else [COPY]
    forced = os.environ.get("FREEBSD_SPLICE_MOVER")
    return ", then ".join(movers) + (f"; FREEBSD_SPLICE_MOVER={forced}" if forced else "")


def _descriptors() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    def count(limit: int) -> str:
        return "no limit" if limit == resource.RLIM_INFINITY else str(limit)

    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{count(limit)}; forward raises it to {count(most)}"


def _backlog() -> str:
    limit = backlog_limit()
    return "" if limit is None else f"{limit.most} at most, by {limit.sysctl}"


def _pipes() -> str:
    """Linux's limits of what os.splice goes through (F31)."""
    limits = Path("/proc/sys/fs")
    try:
        size = int((limits / "pipe-max-size").read_text())
        pages = int((limits / "pipe-user-pages-soft").read_text())
        page = mmap.PAGESIZE
    except OSError:
        return ""
    return (
        f"{min(size, PIPE_BYTES)} bytes each; all of a user's together {pages * page} bytes, "
        "past which they are smaller"
    )
