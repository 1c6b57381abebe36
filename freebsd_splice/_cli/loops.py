"""Targets that are the proxy itself: every connection to one would come back, and go out again."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

from ..proxies import Service
from ..proxies._addresses import Resolved, UnixAddress, look_up
from ..proxies._log import fields, logger
from ..proxies._own_addresses import is_of_this_machine
from ..proxies._services import Target


def warn_of_loops(targets: Iterable[Target], listeners: Sequence[socket.socket]) -> None:
    """Log a warning for each target at which one of the sockets listens.

    Only addresses and ``localhost`` are looked at: name servers that don't answer must not hold up
    the start.
    """
    for target in dict.fromkeys(targets):
        for listener in listeners:
            own = Resolved(listener.family, listener.getsockname())
            if _leads_to(target, own):
                logger.warning(
                    "the target %s is this proxy itself (%s): connections to it come back here",
                    target,
                    own,
                    extra=fields("target is the proxy", target=str(target), address=str(own)),
                )
                break


def _leads_to(target: Target, own: Resolved) -> bool:
    if isinstance(target, UnixAddress):
        return str(target) == str(own)
    return any(_is_reached_by(own, resolved) for resolved in _numeric(target))


def _numeric(target: Target) -> list[Resolved]:
    """Return the target's addresses that no name server has to be asked for."""
    if isinstance(target, Service):
        return []
    flags = 0 if target.host.lower() == "localhost" else socket.AI_NUMERICHOST
    try:
        return look_up(target, flags)
    except (OSError, UnicodeError):  # clients will meet it as well
        return []


def _is_reached_by(own: Resolved, target: Resolved) -> bool:
    """Return whether connecting to ``target`` leads to the socket that listens on ``own``."""
    if own.family != target.family or own.address[1] != target.address[1]:
        return False
    if own.address[0] == target.address[0]:
        return True
    listens_on_all = ipaddress.ip_address(own.address[0]).is_unspecified
    return listens_on_all and is_of_this_machine(ipaddress.ip_address(target.address[0]))
