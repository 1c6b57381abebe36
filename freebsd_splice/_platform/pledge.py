"""pledge(2), by which a process on OpenBSD gives up what it doesn't need from the kernel."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

_extension: Any = None
_why_not_built = ""
try:
    _extension = importlib.import_module("freebsd_splice._so_splice")
except ImportError as error:
    _why_not_built = str(error)


def why_no_pledge() -> str | None:
    """Return why this process can't call pledge(2); None: it can."""
    if not sys.platform.startswith("openbsd"):
        return "only OpenBSD has pledge(2)"
    if _extension is None:
        return f"the extension freebsd_splice._so_splice is not built ({_why_not_built})"
    return None


def pledge(promises: str) -> None:
    """Give up, for good, all that none of the promises is about.

    Args:
        promises: as pledge(2) has them, with blanks between.

    Raises:
        OSError: (EINVAL) there is no such promise, (EPERM) an earlier call gave one of them up.
    """
    if _extension.lib.give_up_all_but(promises.encode()) != 0:
        number = _extension.ffi.errno
        raise OSError(number, os.strerror(number))
