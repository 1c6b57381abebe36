"""Giving up what serving doesn't take, by OpenBSD's pledge(2): --pledge."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterable
from importlib import import_module

from .._platform.pledge import pledge, why_no_pledge
from ..proxies import UnixAddress
from ..proxies._unix_sockets import AF_UNIX, load_getpeereid
from . import service_manager
from .listeners import Served
from .options import UsageError

#: What a process needs that serves: sockets of IPv4 and IPv6, SO_SPLICE among their options, the
#: look-up of names, and reading files (a password file that has changed; Python's own modules).
#: "error" has the kernel refuse other calls, with ENOSYS. It would end the process, with all its
#: connections, at the first one that nobody has thought of.
PROMISES = "stdio rpath inet dns error"


class Limit:
    """What a process gives up once it serves, if ``--pledge`` is there.

    Args:
        options: those of the process.

    Raises:
        ValueError: it was asked for, and can't be had here.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._given: str | None = None
        if not options.pledge:
            return
        why_not = why_no_pledge()
        if why_not is not None:
            raise ValueError(f"--pledge: {why_not}")
        # Both are used later, and couldn't be loaded any more then: the first for a name that is
        # looked up, the second for a client of a Unix socket.
        import_module("encodings.idna")
        load_getpeereid()

    def begin(self, served: Iterable[Served]) -> None:
        """Give the rest up, in a process that serves these, before the first client."""
        if self._options.pledge:
            self._given = promises_for(self._options, served)
            pledge(self._given)

    def check(self, served: Iterable[Served]) -> None:
        """See to it that this process can serve these as well.

        Raises:
            UsageError: it has given up what they take.
        """
        if self._given is None:
            return
        missing = set(promises_for(self._options, served).split()) - set(self._given.split())
        if missing:
            raise UsageError(
                "pledge: Unix sockets were given up at the start; only a restart brings them back"
            )


def promises_for(options: argparse.Namespace, served: Iterable[Served]) -> str:
    """Return what a process promises that serves these proxies.

    Args:
        options: those of the process. With several workers their parent, which promises nothing,
            hands the sockets over, removes files and speaks to the service manager.
        served: the proxies.
    """
    served = list(served)
    is_alone = options.workers == 1
    listens = any(sock.family == AF_UNIX for each in served for sock in _sockets(each))
    connects = any(isinstance(one, UnixAddress) for each in served for one in each.made.targets)
    hands_over = is_alone and options.takeover is not None
    more = {
        "unix": listens or connects or hands_over or (is_alone and service_manager.is_there()),
        "sendfd": hands_over,
        # The files of Unix sockets are removed at the end. Those that a reload brings get their
        # permissions.
        "cpath": is_alone and (listens or hands_over),
        "fattr": is_alone and listens,
    }
    return " ".join([PROMISES, *(promise for promise, is_needed in more.items() if is_needed)])


def _sockets(served: Served) -> Iterable[socket.socket]:
    return (listener for several in served.listeners for listener in several)
