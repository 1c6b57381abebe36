"""Which addresses are this machine's own."""

from __future__ import annotations

import ipaddress
import socket
import sys

from .._errors import SHORTAGES

#: Linux's settings that let a socket be bound to an address which the machine doesn't have.
_NONLOCAL_BIND = "/proc/sys/net/ipv{}/ip_nonlocal_bind"


def is_of_this_machine(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether the address is one of this machine's: a socket can be bound to it.

    The system is asked each time, as addresses come and go. No packet is sent.

    Raises:
        OSError: descriptors or memory are short; the errno is one of SHORTAGES.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
        return not _may_bind_to_any(address.version) or _is_its_own_source(family, str(address))
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return False


def _may_bind_to_any(version: int) -> bool:
    """Return whether a socket that could be bound proves nothing."""
    if sys.platform != "linux":
        return False
    try:
        with open(_NONLOCAL_BIND.format(version)) as file:
            return file.read().strip() != "0"
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return True  # /proc is not mounted, or closed to this process


def _is_its_own_source(family: int, address: str) -> bool:
    """Return whether Linux, which has a route for each of its own addresses, says it is one."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # any port: nothing is sent
        return bool(probe.getsockname()[0] == address)
