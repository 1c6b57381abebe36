"""Questions to a socket. None of them changes the socket or takes its SO_ERROR away."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple, NoReturn

from ..._errors import SHORTAGES, refusal
from ..._platform import tcp
from ..._platform.shortages import raise_if_short
from ..._platform.tcp import KERNEL_TLS, State, bsd_state, identity, linux_state, peer_of

__all__ = ["State", "identity"]

_HAS_ERROR_QUEUES = sys.platform.startswith("linux")
OWN_DESCRIPTORS = "/proc/self/fd"
MOST_TRIED = 65536

PEEK = socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)
RECEIVE = getattr(socket, "MSG_DONTWAIT", 0)
SEND = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


def tcp_state(asked: socket.socket) -> State:
    """Return the connection's state.

    Raises:
        OSError: EPROTONOSUPPORT: it isn't a TCP socket; ENOTSOCK: it isn't a socket; EBADF; one of
            SHORTAGES.
    """
    try:
        asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    except OSError as error:
        if error.errno in {errno.ENOTSOCK, errno.EBADF, *SHORTAGES}:
            raise
        if error.errno in (errno.ECONNRESET, errno.EINVAL) and _is_stream(asked):
            return State.CLOSED  # the BSDs' answer on a broken connection
        raise refusal(errno.EPROTONOSUPPORT, "only TCP sockets can be spliced") from None
    if tcp.STATE_OPTION is None:
        return _guessed_state(asked)
    try:
        number = asked.getsockopt(socket.IPPROTO_TCP, tcp.STATE_OPTION, 1)[0]
    except OSError as error:
        raise_if_short(error)
        return State.CLOSED
    return linux_state(number) if sys.platform == "linux" else bsd_state(number)


def _is_stream(asked: socket.socket) -> bool:
    return isinstance(asked.getsockname(), tuple) and (
        asked.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    )


def _guessed_state(asked: socket.socket) -> State:
    """Return the state without TCP_INFO: a socket shut down looks open until a send fails."""
    if asked.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return State.LISTENING
    return State.CLOSED if peer_of(asked) is None else State.OPEN


def does_tls(asked: socket.socket, *, sending: bool) -> bool:
    """Return whether the kernel encrypts what is sent, or decrypts what is received (KTLS).

    Raises:
        OSError: one of SHORTAGES.
    """
    options = KERNEL_TLS.get(sys.platform.rstrip("0123456789"))
    if options is None:
        return False
    try:
        return any(asked.getsockopt(*options[0 if sending else 1], 4))
    except OSError as error:
        raise_if_short(error)
        return False


def is_same(known: Hashable, now: Hashable) -> bool:
    """Return whether both identities are of one socket.

    A broken connection has lost its peer's address.
    """
    if tcp.HAS_INODES or known == now:
        return known == now
    return isinstance(known, tuple) and now == (known[0], None)


def own_sockets() -> Iterator[tuple[int, Hashable]]:
    """Yield this process's descriptors and their identities, where sockets have inodes."""
    if sys.platform == "win32" or not tcp.HAS_INODES:
        return
    numbers: Iterable[int]
    try:
        numbers = map(int, os.listdir(OWN_DESCRIPTORS))
    except OSError:  # no /proc, or no descriptor left to open it
        numbers = range(min(MOST_TRIED, os.sysconf("SC_OPEN_MAX")))
    for number in numbers:
        with contextlib.suppress(OSError):  # closed
            status = os.fstat(number)
            yield number, (status.st_dev, status.st_ino)


class Look(NamedTuple):
    """The state of a source and a drain as one poll shows it, without waiting."""

    readable: bool
    source_broken: bool
    source_notices: bool  # its error queue holds something for the caller to read
    writable: bool
    drain_broken: bool
    drain_notices: bool


def look(source: socket.socket, drain: socket.socket) -> Look:
    """Poll both sockets.

    A broken one is seen here, before a call on it could take its SO_ERROR (F16, F18: that is where
    the cause of the end is).
    """
    if sys.platform == "win32":
        readable, writable, _ = select.select([source], [drain], [], 0)
        return Look(bool(readable), False, False, bool(writable), False, False)
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(drain, select.POLLOUT)
    events = dict(poll.poll(0))
    at_source, at_drain = events.get(source.fileno(), 0), events.get(drain.fileno(), 0)
    # On Linux POLLERR can also mean an error queue, and a broken connection shows POLLHUP as well.
    broken = select.POLLHUP | select.POLLNVAL | (0 if _HAS_ERROR_QUEUES else select.POLLERR)
    return Look(
        bool(at_source & select.POLLIN),
        bool(at_source & broken),
        bool(at_source & select.POLLERR & ~broken),
        bool(at_drain & select.POLLOUT),
        bool(at_drain & broken),
        bool(at_drain & select.POLLERR & ~broken),
    )


def check_socket(asked: socket.socket) -> None:
    """Raise OSError (ENOTSOCK) if the descriptor isn't a socket."""
    asked.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)


def refuse_to_end(asked: socket.socket) -> NoReturn:
    """Raise the error of an unsplice on a socket that never was a source."""
    check_socket(asked)
    if asked.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise refusal(errno.EINVAL, "the source is a listening socket")
    raise none_to_end()


def none_to_end() -> OSError:
    """Return the error of an unsplice where there is no splice."""
    return refusal(errno.ENOTCONN, "there is no splice to end, or it has already ended")
