"""The system's limit on a listening socket's backlog, which listen(2) cuts larger values to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

#: Linux's sysctl and its file, which shows the value of the reader's network namespace.
_LINUX = ("net.core.somaxconn", Path("/proc/sys/net/core/somaxconn"))

#: The other systems' sysctls, by the beginning of ``sys.platform``.
_SYSCTLS = {
    "freebsd": "kern.ipc.soacceptqueue",
    "openbsd": "kern.somaxconn",
    "netbsd": "kern.somaxconn",
    "darwin": "kern.ipc.somaxconn",
}

#: Where sysctl(8) is. PATH isn't searched: a proxy can be started by root.
_PROGRAMS = ("/sbin/sysctl", "/usr/sbin/sysctl")

#: Seconds that sysctl(8) may take.
_TIMEOUT = 5.0


class BacklogLimit(NamedTuple):
    """The system's limit, and the sysctl that sets it.

    Attributes:
        sysctl: the sysctl's name.
        most: the longest backlog, in connections.
    """

    sysctl: str
    most: int


def backlog_limit() -> BacklogLimit | None:
    """Return the system's limit; None if it has none, or none that can be read."""
    try:
        if sys.platform == "linux":
            name, path = _LINUX
            return BacklogLimit(name, int(path.read_text()))
        for system, name in _SYSCTLS.items():
            if sys.platform.startswith(system):
                return BacklogLimit(name, int(_ask_sysctl(name)))
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return None


def _ask_sysctl(name: str) -> str:
    # Python has no sysctl(3), and the layout of its C types differs between systems.
    program = next((path for path in _PROGRAMS if Path(path).exists()), _PROGRAMS[0])
    run = subprocess.run(
        [program, "-n", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    return run.stdout
