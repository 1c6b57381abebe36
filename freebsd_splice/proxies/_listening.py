"""Listening on all addresses of a name."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial

from .._errors import why
from .._platform.backlog import backlog_limit
from ._addresses import Address, Resolved, UnixAddress, look_up, show
from ._connecting import PlainError, reason_of, set_buffers
from ._log import fields, logger
from ._unix_sockets import listen_at, remove_file

#: How many ports that are free on one address are tried on the other addresses.
_PORT_ATTEMPTS = 20

#: The permissions of a Unix socket's file unless others are given: its owner's alone.
SOCKET_MODE = 0o600


class ListenError(PlainError):
    """An address could not be listened on, or a socket listens no more; ``errno`` says why.

    ``errno`` is EHOSTUNREACH where the name can't be looked up, EINVAL where it is not a valid host
    name, and else that of the call that failed (EADDRINUSE, EACCES, EADDRNOTAVAIL, ...).
    """


def listen_on(
    address: Address,
    backlog: int | None,
    *,
    share: int | None = None,
    buffers: int | None = None,
    mode: int = SOCKET_MODE,
) -> list[socket.socket]:
    """Return a listening socket for each address of a name.

    Args:
        address: the host and port; port 0 is one free port, the same on all addresses.
        backlog: how many clients may wait to be accepted; None: bind the sockets alone.
        share: the option (SO_REUSEPORT or the like) that lets several processes listen on one port,
            each with a socket of its own.
        buffers: the size, in bytes, that both buffers of accepted sockets begin with.
        mode: the permissions of a Unix socket's file. Such a socket is not shared.

    Raises:
        ListenError: the name can't be looked up, or an address can't be listened on.
    """
    if isinstance(address, UnixAddress):
        return [_unix_listener(address, backlog or 1, buffers, mode)]
    made = partial(_listener, backlog=backlog, share=share, buffers=buffers)
    for attempt in range(_PORT_ATTEMPTS):
        try:
            listeners = _listen_on(address, made)
        except ListenError as error:
            another_may_do = address.port == 0 and error.errno == errno.EADDRINUSE
            if not another_may_do or attempt == _PORT_ATTEMPTS - 1:
                raise
        else:
            if backlog is not None:
                _say_if_cut(backlog)
            return listeners
    raise AssertionError("unreachable")


def _unix_listener(
    address: UnixAddress, backlog: int, buffers: int | None, mode: int
) -> socket.socket:
    try:
        listener = listen_at(
            address.host,
            backlog=backlog,
            mode=mode,
            prepare=lambda sock: set_buffers(sock, buffers),
        )
    except OSError as error:
        raise ListenError(error.errno, f"cannot listen on {address}: {reason_of(error)}") from error
    _say_if_cut(backlog)
    return listener


@cache  # log it once for all addresses and workers: the limit is one setting of the system
def _say_if_cut(backlog: int) -> None:
    limit = backlog_limit()
    if limit is not None and backlog > limit.most:
        logger.warning(
            "the system cuts the backlog of %d to %d (%s): clients beyond that may be reset",
            backlog,
            limit.most,
            limit.sysctl,
            extra=fields("backlog cut", backlog=backlog, limit=limit.most, sysctl=limit.sysctl),
        )


def _listen_on(address: Address, made: Callable[[Resolved], socket.socket]) -> list[socket.socket]:
    try:
        candidates = look_up(address, socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ListenError(errno.EHOSTUNREACH, f"cannot look up {address}: {why(error)}") from error
    except UnicodeError as error:
        raise ListenError(errno.EINVAL, f"{address}: not a valid host name") from error
    listeners: list[socket.socket] = []
    absent = None
    port = address.port
    try:
        for candidate in candidates:
            where = (candidate.address[0], port, *candidate.address[2:])
            try:
                listeners.append(made(Resolved(candidate.family, where)))
            except OSError as error:
                # A machine's name can stand for addresses that the machine doesn't have, above all
                # where IPv6 is disabled. One of the others is enough.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
            else:
                port = listeners[0].getsockname()[1]
        if absent is not None and not listeners:
            raise absent
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise ListenError(error.errno, f"cannot listen on {address}: {reason_of(error)}") from error
    return listeners


def _listener(
    resolved: Resolved, *, backlog: int | None, share: int | None, buffers: int | None
) -> socket.socket:
    listener = socket.socket(resolved.family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if resolved.family == socket.AF_INET6:
            # IPv4 clients have a socket of their own, on every system.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if share is not None:
            listener.setsockopt(socket.SOL_SOCKET, share, 1)
        set_buffers(listener, buffers)
        listener.setblocking(False)
        listener.bind(resolved.address)
        if backlog is not None:
            listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def say_listening(listeners: Iterable[socket.socket]) -> None:
    """Log each address that is listened on, once."""
    for where in dict.fromkeys(show(listener.getsockname()) for listener in listeners):
        logger.info("listening on %s", where, extra=fields("listening", address=where))


def close_listener(listener: socket.socket) -> None:
    """Listen no more; the file of a Unix socket goes with it, if this process has made it."""
    remove_file(listener)
    listener.close()


def listens(listener: socket.socket) -> bool:
    """Return whether the socket listens; True as well where the system doesn't say."""
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        return error.errno not in (errno.EBADF, errno.ENOTSOCK)


def own_name(sock: socket.socket) -> str:
    try:
        return show(sock.getsockname())
    except OSError:  # the socket is closed
        return "a listening socket"
