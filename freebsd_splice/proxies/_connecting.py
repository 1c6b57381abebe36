"""Sockets for a proxy: listening on all addresses of a name, connecting to one of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable

from ._addresses import Address, Resolved, look_up

#: What says that the process or the system has run out of something that others may give back.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: How often a free port of one address is looked for that is free on the others as well.
_PORT_ATTEMPTS = 20


class _PlainError(OSError):
    """An OSError whose text is a sentence for the log."""

    def __str__(self) -> str:
        return str(self.strerror)


class ListenError(_PlainError):
    """No listening socket could be made; ``errno`` and the text say why."""


class TargetError(_PlainError):
    """No connection to the target could be made; ``errno`` and the text say why."""


def listen_on(address: Address, backlog: int) -> list[socket.socket]:
    """A listening socket for each address of the name, with port 0 on one free port of them all.

    Raises ListenError.
    """
    for attempt in range(_PORT_ATTEMPTS):
        try:
            return _listen_on(address, backlog)
        except ListenError as error:
            another_may_do = address.port == 0 and error.errno == errno.EADDRINUSE
            if not another_may_do or attempt == _PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def tune(sock: socket.socket, keepalive: bool) -> None:
    """Send at once what there is, and let the system find out about peers that have vanished."""
    # Some systems take no option for a client that has reset already; its relay will report it.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalive)


def reset_on_close(sock: socket.socket) -> None:
    """Let the last close of this connection send a reset in place of a FIN."""
    linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    with contextlib.suppress(OSError):  # it is gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class Spare:
    """Descriptors that are held in order to be there when they are needed."""

    def __init__(self, count: int, more: int) -> None:
        """Hold ``count``, where there are ``more`` besides; else raise OSError (EMFILE, ENFILE)."""
        self._held: list[int] = []
        try:
            self._held.append(os.open(os.devnull, os.O_RDONLY))
            while len(self._held) < count + more:
                self._held.append(os.dup(self._held[0]))
        except OSError:
            self.keep(0)
            raise
        self.keep(count)

    def keep(self, count: int) -> None:
        """Hold no more than ``count`` any more."""
        while len(self._held) > count:
            os.close(self._held.pop())


class Dialer:
    """Connects to names, for one event loop."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._pending: dict[Address, asyncio.Future[list[Resolved]]] = {}

    async def dial(
        self, address: Address, before_socket: Callable[[], object] = lambda: None
    ) -> socket.socket:
        """Connect to the first address of the name that answers, within ``timeout`` for it all.

        ``before_socket`` is called when the first socket is about to be made.  Raises TargetError,
        and OSError with one of SHORTAGES.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        candidates = await self._candidates(address)
        failures = []
        number = errno.ETIMEDOUT
        before_socket()
        for position, candidate in enumerate(candidates):
            # An address that doesn't answer leaves their share of the time to those after it.
            share = (deadline - loop.time()) / (len(candidates) - position)
            try:
                return await _connect(candidate, share)
            except asyncio.TimeoutError:
                failures.append(f"{candidate}: no answer in time")
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise
                number = error.errno or 0
                failures.append(f"{candidate}: {os.strerror(number)}")
        raise TargetError(number, f"cannot connect to {address} ({'; '.join(failures)})")

    async def _candidates(self, address: Address) -> list[Resolved]:
        with contextlib.suppress(socket.gaierror, UnicodeError):
            return look_up(address, socket.AI_NUMERICHOST)
        if address not in self._pending:
            self._pending[address] = self._start_look_up(address)
        try:
            return await asyncio.wait_for(asyncio.shield(self._pending[address]), self._timeout)
        except asyncio.TimeoutError:
            number, reason = errno.ETIMEDOUT, "no answer in time"
        except socket.gaierror as error:
            number, reason = error.errno or 0, str(error.strerror)
        except UnicodeError:
            number, reason = errno.EINVAL, "this can be no name"
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            number, reason = error.errno or 0, os.strerror(error.errno or 0)
        raise TargetError(number, f"cannot look up {address.host}: {reason}")

    def _start_look_up(self, address: Address) -> asyncio.Future[list[Resolved]]:
        """Look a name up in a thread: one for all the connections that want the same name.

        The loop's own ``getaddrinfo`` runs in threads that the end of the program waits for,
        however long a name server that has gone away keeps them.  Nobody waits for this one.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Resolved]] = loop.create_future()
        # Whoever asked may have given up by then: an error that nobody hears of is no news.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

        def finish(found: list[Resolved] | Exception) -> None:
            del self._pending[address]
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

        def run() -> None:
            found: list[Resolved] | Exception
            try:
                found = look_up(address)
            except Exception as error:
                found = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the program has ended
                loop.call_soon_threadsafe(finish, found)

        threading.Thread(target=run, name=f"look up {address.host}", daemon=True).start()
        return future


async def _connect(candidate: Resolved, seconds: float) -> socket.socket:
    sock = socket.socket(candidate.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.sock_connect(sock, candidate.address), seconds)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_on(address: Address, backlog: int) -> list[socket.socket]:
    try:
        candidates = look_up(address, socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ListenError(error.errno, f"cannot look up {address}: {error.strerror}") from error
    except UnicodeError as error:
        raise ListenError(errno.EINVAL, f"{address} can be no name") from error
    listeners: list[socket.socket] = []
    absent = None
    port = address.port
    try:
        for candidate in candidates:
            where = (candidate.address[0], port, *candidate.address[2:])
            try:
                listeners.append(_listener(Resolved(candidate.family, where), backlog))
            except OSError as error:
                # The names of a machine can have addresses that it doesn't have (IPv6 disabled,
                # above all): the others will do, if there are any.
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
        reason = os.strerror(error.errno or 0)
        raise ListenError(error.errno, f"cannot listen on {address}: {reason}") from error
    return listeners


def _listener(resolved: Resolved, backlog: int) -> socket.socket:
    listener = socket.socket(resolved.family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if resolved.family == socket.AF_INET6:
            # IPv4 has a socket of its own, on every system.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(resolved.address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
