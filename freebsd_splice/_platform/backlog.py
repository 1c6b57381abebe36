"""The longest queue that the system lets a listening socket have, whatever it asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

#: Of Linux, for the network namespace of whoever reads it.
_LINUX = ("net.core.somaxconn", Path("/proc/sys/net/core/somaxconn"))

#: By how ``sys.platform`` begins.
_SYSCTLS = {
    "freebsd": "kern.ipc.soacceptqueue",
    "openbsd": "kern.somaxconn",
    "netbsd": "kern.somaxconn",
    "darwin": "kern.ipc.somaxconn",
}

#: Where sysctl(8) is.  PATH isn't asked: a proxy can be started by root.
_PROGRAMS = ("/sbin/sysctl", "/usr/sbin/sysctl")

#: Seconds that it may take.
_PATIENCE = 5.0


class BacklogLimit(NamedTuple):
    """The system's limit, and the sysctl that it is set with."""

    sysctl: str
    most: int


def backlog_limit() -> BacklogLimit | None:
    """None where the system has none that could be read, or none at all."""
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
    # The library has no sysctl(3), and how its C types are laid out is the system's business.
    program = next((path for path in _PROGRAMS if Path(path).exists()), _PROGRAMS[0])
    run = subprocess.run(
        [program, "-n", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=True,
    )
    return run.stdout
