"""Accepting the clients of one listening socket, as they come."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

from .._userspace.workers import LocalWorker
from ._addresses import SocketAddress
from ._connecting import ReservedDescriptors
from ._unix_sockets import UnixPeer, peer_user

#: Clients that are accepted before others have their turn.
_AT_ONCE = 2

#: Messages that take about as long as a client: among so many, one more is accepted at once. Else
#: each of the clients that come together would wait for a message of everybody who is there.
_MESSAGES = 8

#: The errnos of accept that are about one client's connection: another client may be waiting. Linux
#: passes errors of the network on that are pending on the new socket (accept(2)).
OF_ONE_CLIENT = {errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO}
OF_ONE_CLIENT |= {errno.ETIMEDOUT, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENETDOWN}
OF_ONE_CLIENT |= {errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
OF_ONE_CLIENT |= {getattr(errno, "ENONET", errno.ENETDOWN)}  # Linux alone has it


class Accepting:
    """Gives clients to ``accepted``, each with what ``room`` has for it, while there is some.

    The loop calls it when clients wait: no task is woken for them, which takes longer than to
    accept one.

    Args:
        listener: the listening socket, non-blocking.
        reserved: what the first client needs.
        room: gives what a further client needs; None: nobody is to be accepted now.
        accepted: is given each client. It doesn't raise.
        nobody_waits: is called when nobody waits any more.
        must_know: whether ``nobody_waits`` has to be called; only another ``accept`` finds that.
        worker: has the listening socket in its poller; None: the loop has.
    """

    def __init__(
        self,
        listener: socket.socket,
        reserved: ReservedDescriptors,
        *,
        room: Callable[[], ReservedDescriptors | None],
        wanted: Callable[[], bool],
        accepted: Callable[[socket.socket, SocketAddress, ReservedDescriptors], object],
        nobody_waits: Callable[[], object],
        must_know: Callable[[], bool],
        worker: LocalWorker | None,
    ) -> None:
        self._listener = listener
        self._must_know = must_know
        self._worker = worker
        self._reserved: ReservedDescriptors | None = reserved  # for the next client
        self._room = room
        self._wanted = wanted  # whether clients are wanted still
        self._accepted = accepted  # doesn't raise
        self._nobody_waits = nobody_waits
        self._goes_on = False  # it is called soon, whether or not clients wait
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[OSError | None] = self._loop.create_future()

    async def run(self) -> OSError | None:
        """Until ``room`` gives None, or until accepting fails: with what is given back then."""
        try:
            self._accept()
            if not self._over.done():
                await self._wait()
            return self._over.result()
        finally:
            self._over.cancel()  # a call that is still to come accepts nobody
            if self._reserved is not None:
                self._reserved.keep(0)

    async def _wait(self) -> None:
        descriptor = self._listener.fileno()
        try:
            if self._worker is not None:
                self._worker.listen(descriptor, self._accept)
            else:
                self._loop.add_reader(descriptor, self._accept)
        except NotImplementedError:  # Windows' usual loop tells of no readiness
            await self._one_by_one()
            return
        except OSError as error:  # no memory to watch it with
            self._over.set_result(error)
            return
        try:
            await asyncio.wait([self._over])
        finally:
            if self._worker is not None:
                self._worker.unlisten(descriptor)
            else:
                self._loop.remove_reader(descriptor)

    def _accept(self) -> None:
        if self._over.done() or self._goes_on or not self._wanted():
            return
        try:
            share = 0 if self._worker is None else self._worker.reported // _MESSAGES
            for number in range(1, max(_AT_ONCE, share) + 1):
                if not self._has_room():
                    return
                self._give(*self._listener.accept())
                if number >= share and not self._must_know():
                    return  # the poller reports who else waits
            # Behind others. Only accept itself tells that nobody waits any more.
            self._goes_on = True
            self._loop.call_soon(self._go_on)
        except BlockingIOError:
            self._nobody_waits()
        except OSError as error:
            self._over.set_result(error)
        except Exception as error:
            self._over.set_exception(error)

    def _go_on(self) -> None:
        self._goes_on = False
        self._accept()

    async def _one_by_one(self) -> None:
        while not self._over.done() and self._wanted():
            try:
                if self._has_room():
                    self._give(*await self._loop.sock_accept(self._listener))
            except OSError as error:
                self._over.set_result(error)
            await asyncio.sleep(0)  # where clients are waiting, sock_accept doesn't
        await asyncio.wait([self._over])  # where no clients are wanted, it is cancelled soon

    def _has_room(self) -> bool:
        if self._reserved is None:
            self._reserved = self._room()
        if self._reserved is None:
            self._over.set_result(None)
        return self._reserved is not None

    def _give(self, sock: socket.socket, address: Any) -> None:
        reserved, self._reserved = self._reserved, None
        assert reserved is not None
        if isinstance(address, (str, bytes)):  # a Unix socket, whose clients have no name mostly
            address = UnixPeer(peer_user(sock))
        self._accepted(sock, address, reserved)
