"""``freebsd-splice info``: what this system offers and what the package makes of it."""

from __future__ import annotations

import importlib
import mmap
import platform
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from .._backend import COPY, MOVER, OS_SPLICE, backend, forced_mover
from .._platform import raw_splice
from .._platform.backlog import backlog_limit
from .._platform.pollers import kinds
from .._platform.system import SystemPlatform
from .._userspace.movers import LARGE_PIPE


class Report(NamedTuple):
    """What ``freebsd-splice info`` prints.

    Attributes:
        text: a name and what is known about it on each line.
        errors: why splices can't be made here; empty where they can.
    """

    text: str
    errors: list[str]


def report() -> Report:
    """Return what this system offers and what the package makes of it."""
    system = platform.uname()
    errors: list[str] = []
    facts = {
        "freebsd-splice": f"{__version__} on {platform.python_implementation()} "
        f"{platform.python_version()}",
        "system": f"{system.system} {system.release} {system.machine}",
        "kernel": system.version,
        "SO_SPLICE": raw_splice.missing() or "available",
        "backend": _or_error(_backend, errors),
        "struct splice": _layout(),
        "workers": f"{SystemPlatform().cpus()}, one for each CPU",
        "movers": _or_error(_movers, errors),
        "readiness": f"{kinds()[0]} (of {', '.join(kinds())})",
        "descriptors": _descriptors(),
        "backlog": _backlog(),
        "pipes": _pipes(),
    }
    return Report("\n".join(_line(name, text) for name, text in facts.items() if text), errors)


def _line(name: str, text: str) -> str:
    return textwrap.fill(
        text, 100, initial_indent=f"{name:<16}", subsequent_indent=" " * 16, break_on_hyphens=False
    )


def _or_error(find: Callable[[], str], errors: list[str]) -> str:
    """Return what ``find`` finds, or its error, which is added to ``errors``."""
    try:
        return find()
    except (OSError, ValueError) as error:
        errors.append(str(getattr(error, "strerror", None) or error))
        return f"none: {errors[-1]}"


def _backend() -> str:
    chosen = backend()
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
    forced = forced_mover()
    if forced is not None:
        return f"{forced}: {MOVER}={forced}"
    return ", then ".join([OS_SPLICE, COPY] if SystemPlatform().can_splice() else [COPY])


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
    """Return Linux's limits for pipes, through which os.splice moves bytes.

    All pipes of a user share one limit; past it they are smaller (F31).
    """
    limits = Path("/proc/sys/fs")
    try:
        size = int((limits / "pipe-max-size").read_text())
        pages = int((limits / "pipe-user-pages-soft").read_text())
        page = mmap.PAGESIZE
    except OSError:
        return ""
    return (
        f"{min(size, LARGE_PIPE)} bytes each; all of a user's together {pages * page} bytes, "
        "past which they are smaller"
    )
