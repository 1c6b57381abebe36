"""What the program tells the service manager that has started it: systemd's sd_notify(3).

Nothing is said where NOTIFY_SOCKET isn't set. The process that was started is the one to call
these: of a proxy with workers that is their parent.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from functools import cache

from .._errors import why
from ..proxies._log import fields, logger

#: Seconds for which a full queue of the service manager is waited for.
_PATIENCE = 1.0


def is_there() -> bool:
    """Return whether anything is said to anybody."""
    return bool(_socket_name())


def ready() -> None:
    """Say that the program serves, after its start or after ``reloading``."""
    _say("READY=1")


def reloading() -> None:
    """Say that the program loads its configuration again; ``ready`` has to follow."""
    _say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Say that the program has begun to stop."""
    _say("STOPPING=1")


def alive() -> None:
    """Say that the program's event loops are alive, as it has to within ``watchdog_seconds``."""
    _say("WATCHDOG=1")


@cache
def watchdog_seconds() -> float | None:
    """Return the time after which a program that says nothing counts as hung; None: never."""
    meant_for = os.environ.pop("WATCHDOG_PID", None)
    time_out = os.environ.pop("WATCHDOG_USEC", "")
    if meant_for not in (None, str(os.getpid())) or not time_out.isdecimal() or not int(time_out):
        return None
    return int(time_out) / 1e6


@cache
def _socket_name() -> str:
    # Removed from the environment: programs that this one starts must not speak for it.
    return os.environ.pop("NOTIFY_SOCKET", "")


def _say(state: str) -> None:
    name = _socket_name()
    if not name or sys.platform == "win32":
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_PATIENCE)
            # A name that begins with @ is one of Linux's abstract names, which are in no directory.
            sock.connect(f"\0{name[1:]}" if name.startswith("@") else name)
            sock.send(state.encode())
    except (OSError, ValueError) as error:
        reason = why(error) if isinstance(error, OSError) else str(error)
        logger.warning(
            "cannot tell the service manager %s (NOTIFY_SOCKET is %s): %s",
            state.partition("\n")[0],
            name,
            reason,
            extra=fields("service manager not told", state=state, error=reason),
        )
