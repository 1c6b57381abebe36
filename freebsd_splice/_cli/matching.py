"""Which listening sockets, of those that are there already, listen on an address."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from ..proxies import Address, UnixAddress
from ..proxies._addresses import Resolved, look_up
from ..proxies._unix_sockets import AF_UNIX


def is_any_port(address: Address) -> bool:
    """Return whether the system chooses the port."""
    return not address.port and not isinstance(address, UnixAddress)


def at_address(listeners: Sequence[socket.socket], address: Address) -> list[socket.socket]:
    """Return those of the sockets that listen on an address.

    All have the same port: where the address has port 0, that of the first.

    Raises:
        OSError, UnicodeError: the name can't be looked up.
    """
    wanted = addresses_of(address) if listeners else []
    found = [listener for listener in listeners if any(is_at(listener, one) for one in wanted)]
    if not found or not is_any_port(address):
        return found
    port = found[0].getsockname()[1]
    return [listener for listener in found if listener.getsockname()[1] == port]


def addresses_of(address: Address) -> list[Resolved]:
    """Return all that an address stands for.

    Raises:
        OSError, UnicodeError: the name can't be looked up.
    """
    if isinstance(address, UnixAddress):
        path: Any = address.host  # in the place of a pair
        return [Resolved(AF_UNIX, path)]
    return look_up(address, socket.AI_PASSIVE)


def is_at(listener: socket.socket, wanted: Resolved) -> bool:
    """Return whether the socket listens on that address; port 0 is any port."""
    if listener.family != wanted.family:
        return False
    own = listener.getsockname()
    if listener.family == AF_UNIX:
        return bool(own == wanted.address)
    host, port, *others = wanted.address
    return bool((own[0], *own[2:]) == (host, *others) and port in (0, own[1]))
