"""Connecting to names, for one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from .._errors import SHORTAGES, advice_for, why
from .._platform.reset import no_linger, reset_on_close
from ._addresses import Address, Resolved, SocketAddress, UnixAddress
from ._attempts import first_connected, interleaved
from ._resolving import Resolver
from ._unix_sockets import AF_UNIX, connect_at

if sys.platform != "win32":
    import resource

#: How many addresses of a name are considered, and how many of them a message names. The owner of
#: the name, who can be a client, chooses how many there are.
MOST_ADDRESSES = 16
_MOST_NAMED = 3

TOO_LATE = "no answer in time, see --connect-timeout"

#: Errnos that are about the address that is connected from (as with ``--transparent``): they say
#: nothing about the target.
NO_WAY_FROM_HERE = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

#: Windows' usual loop; elsewhere there is none.
_PROACTOR: Any = getattr(asyncio, "ProactorEventLoop", ())

#: What connect answers where the connection is not there yet.
UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR)


class PlainError(OSError):
    """An OSError whose text is its ``strerror`` alone, a sentence for the log."""

    def __str__(self) -> str:
        return str(self.strerror)


def reason_of(error: OSError) -> str:
    """Return the sentence of an error of ours, or the system's words and what to do about it."""
    return str(error) if isinstance(error, PlainError) else f"{why(error)}{advice_for(error)}"


class TargetError(PlainError):
    """No connection to the target could be made; ``errno`` and the text say why.

    ``errno`` is EHOSTUNREACH where the name can't be looked up, EINVAL where it is not a valid host
    name, ETIMEDOUT where no answer came within the connect timeout, and else the errno of the last
    attempt (ECONNREFUSED, ...).
    """


class RefusedTargetError(TargetError):
    """The rules let nobody connect to the target; ``errno`` is EACCES."""

    def __init__(self, address: Address, reason: str) -> None:
        super().__init__(errno.EACCES, f"{address} is refused: {reason}")


class StarvedError(TargetError):
    """Descriptors, memory or threads were short for too long; ``errno`` is ETIMEDOUT.

    That is not the target's fault: it doesn't count as dead.
    """

    def __init__(self, target: object, reason: str) -> None:
        super().__init__(errno.ETIMEDOUT, f"cannot connect to {target}, for too long: {reason}")


#: A function that says why nobody may connect to an address, or returns None.
Refusal = Callable[[Resolved], str | None]

#: A coroutine function that returns all addresses of a name. It is given the host and port, the
#: seconds that it has, and the client whose turn it takes. It raises OSError or
#: asyncio.TimeoutError.
LookUp = Callable[[Address, float, str], Awaitable[list[Resolved]]]

#: A function that makes a socket ready for its ``connect`` to an address.
Prepare = Callable[[socket.socket, Resolved], object]


def tune(sock: socket.socket, keepalive: bool) -> None:
    """Turn TCP_NODELAY on, and SO_KEEPALIVE as ``keepalive`` says."""
    # Some systems take no option for a client that has reset already; its relay will report that.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalive)


def as_usual(sock: socket.socket) -> None:
    """Take back what accepted sockets inherit and a relay of theirs would have to mind.

    Whoever made the listener can have set a mark below which nothing is readable, or a time for
    which a close waits. For the listener, and for clients that came before.
    """
    with contextlib.suppress(OSError):  # Windows has no such mark
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    with contextlib.suppress(OSError):
        no_linger(sock)


def set_buffers(sock: socket.socket, size: int | None) -> None:
    """Set the size of both buffers, in bytes; None leaves them to the system.

    Call it before the connection is made, as a window is agreed on then, and never during a splice:
    a smaller SO_SNDBUF destroys bytes under way (F26).

    Raises:
        PlainError: (EINVAL) the system refuses that size.
    """
    if size is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        except OSError as error:  # ENOBUFS on FreeBSD, which isn't a shortage that passes
            raise PlainError(errno.EINVAL, f"no buffers of {size} bytes: {why(error)}") from error


def peer_of(sock: socket.socket) -> SocketAddress | None:
    """Return whom the socket is connected to; None: to nobody yet, or any more."""
    try:
        peer: SocketAddress = sock.getpeername()
    except OSError:
        return None
    return peer


def is_its_own_peer(sock: socket.socket, port: int) -> bool:
    """Return whether the socket, connected to that port, is connected to itself.

    Everything sent would come back. TCP does that (a simultaneous open) where nobody listens and
    the system chose the very port that is connected to as the local one.
    """
    try:
        own = sock.getsockname()
        return bool(own[1] == port and sock.getpeername() == own)
    except OSError:  # the target has reset it already
        return False


class ReservedDescriptors:
    """Descriptors that are held open so that they are free when they are needed."""

    def __init__(self, count: int, more: int) -> None:
        """Hold ``count`` descriptors, provided that ``more`` are free besides.

        Raises:
            OSError: there are too few; the errno is one of SHORTAGES.
        """
        self._held: list[int] = []
        try:
            self._held.append(_open_something())
            # Numbers are given from the lowest on: where this one is low, most are free, unless
            # the many above it are in use, and those below it have just become free.
            if count == 1 and self._held[0] < plenty():
                return
            while len(self._held) < count + more:
                self._held.append(os.dup(self._held[0]))
        except OSError:
            self.keep(0)
            raise
        self.keep(count)

    def keep(self, count: int) -> None:
        """Close all but ``count`` of them."""
        while len(self._held) > count:
            os.close(self._held.pop())


def plenty() -> int:
    """The number below which a descriptor is one of few."""
    if sys.platform != "win32":
        return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20) // 2
    return 0


def _open_something() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
    # A chroot may have no devices, for good.
    reading, writing = os.pipe()
    os.close(writing)
    return reading


class Dialer:
    """Connects to names, for one event loop."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._resolver = Resolver()

    async def dial(
        self,
        address: Address,
        *,
        refusal: Refusal = lambda resolved: None,
        prepare: Prepare = lambda sock, resolved: None,
        before_socket: Callable[[], object] = lambda: None,
        client: str = "",
        look_up: LookUp | None = None,
    ) -> socket.socket:
        """Connect to the first address of the name that answers, within ``timeout`` in all.

        Args:
            address: the host and port.
            refusal: is asked about each address; those that it refuses are not tried.
            prepare: is given each socket before it connects, and the address.
            before_socket: is called when the first socket is about to be made.
            client: whose turn the look-up takes.
            look_up: looks the name up; None: the system does.

        Raises:
            RefusedTargetError: all addresses were refused.
            TargetError: no address could be connected to.
            OSError: something is short; the errno is one of SHORTAGES.
        """
        if isinstance(address, UnixAddress):
            return await _connect_to_path(address, self._timeout, refusal, prepare, before_socket)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        found = await self._candidates(address, client, look_up or self._resolver.look_up)
        if len(found) > 1:
            found = interleaved(found)
        candidates = _permitted(address, found[:MOST_ADDRESSES], refusal)
        before_socket()
        connect = partial(_connect, prepare=prepare)
        left = deadline - loop.time()
        made, failures = await first_connected(candidates, left, connect, SHORTAGES)
        if made is not None:
            return made
        numbers = [_number_of(failure.error) for failure in failures]
        # Prefer an errno that says something about the target.
        telling = [number for number in numbers if number not in NO_WAY_FROM_HERE]
        reasons = [f"{failure.candidate}: {_reason_for(failure.error)}" for failure in failures]
        raise TargetError(
            (telling or numbers)[-1], f"cannot connect to {address} ({_the_first(reasons)})"
        )

    async def _candidates(self, address: Address, client: str, look_up: LookUp) -> list[Resolved]:
        try:
            return await look_up(address, self._timeout, client)
        except asyncio.TimeoutError:
            number, reason = errno.ETIMEDOUT, TOO_LATE
        except socket.gaierror as error:
            if error.errno == socket.EAI_MEMORY:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
            # The numbers of gaierror aren't errnos, but on FreeBSD some of them look like one.
            number, reason = errno.EHOSTUNREACH, why(error)
        except UnicodeError:
            number, reason = errno.EINVAL, "not a valid host name"
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            number, reason = error.errno or errno.EIO, reason_of(error)
        raise TargetError(number, f"cannot look up {address.host}: {reason}")


def _permitted(address: Address, found: list[Resolved], refusal: Refusal) -> list[Resolved]:
    refused = {}
    for candidate in found:
        reason = refusal(candidate)
        if reason is not None:
            refused[candidate] = reason
    if len(refused) == len(found):
        raise RefusedTargetError(address, _the_first(list(dict.fromkeys(refused.values()))))
    return [candidate for candidate in found if candidate not in refused]


def _the_first(reasons: list[str]) -> str:
    more = len(reasons) - _MOST_NAMED
    return "; ".join(reasons[:_MOST_NAMED] + ([f"and {more} more"] if more > 0 else []))


async def _connect_to_path(
    address: UnixAddress,
    seconds: float,
    refusal: Refusal,
    prepare: Prepare,
    before_socket: Callable[[], object],
) -> socket.socket:
    """Connect to a Unix socket, as ``Dialer.dial`` does to names."""
    path: Any = address.host  # in the place of a pair
    resolved = Resolved(AF_UNIX, path)
    _permitted(address, [resolved], refusal)
    before_socket()
    sock = socket.socket(AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        prepare(sock, resolved)
        await connect_at(sock, path, seconds)
    except BaseException as error:
        sock.close()
        if isinstance(error, asyncio.TimeoutError):
            reason = f"cannot connect to {address} ({TOO_LATE})"
            raise TargetError(errno.ETIMEDOUT, reason) from None
        if not isinstance(error, OSError) or error.errno in SHORTAGES:
            raise
        reason = f"cannot connect to {address} ({reason_of(error)})"
        raise TargetError(error.errno or errno.EIO, reason) from error
    return sock


def _number_of(error: Exception) -> int:
    if isinstance(error, asyncio.TimeoutError):
        return errno.ETIMEDOUT
    return getattr(error, "errno", None) or errno.EIO


def _reason_for(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError) and not getattr(error, "errno", None):
        return TOO_LATE
    return reason_of(error) if isinstance(error, OSError) else str(error)


async def _connect(candidate: Resolved, seconds: float, prepare: Prepare) -> socket.socket:
    sock = socket.socket(candidate.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        prepare(sock, candidate)
        # Windows' usual loop tells of no readiness.
        if _PROACTOR and isinstance(asyncio.get_running_loop(), _PROACTOR):
            connecting = asyncio.get_running_loop().sock_connect(sock, candidate.address)
            await asyncio.wait_for(connecting, seconds)
        else:
            number = sock.connect_ex(candidate.address)
            if number in UNDER_WAY:
                # To this machine it is there already, for what takes less than a round of the loop.
                if peer_of(sock) is None:
                    await _until_writable(sock, seconds)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number))
        if is_its_own_peer(sock, candidate.address[1]):
            reset_on_close(sock)  # a FIN would keep the port from the server for a while
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock


async def _until_writable(sock: socket.socket, seconds: float) -> None:
    """Raises asyncio.TimeoutError."""
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(max(0.0, seconds), _fail, writable)
    # The number: asyncio looks up an object by its text, for which the system is asked twice.
    descriptor = sock.fileno()
    try:
        loop.add_writer(descriptor, _set, writable)
        await writable
    finally:
        timer.cancel()
        loop.remove_writer(descriptor)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(asyncio.TimeoutError())
