"""The proxies that a process serves, and their sockets: which stay when other proxies follow."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..proxies import ProxyServer
from ..proxies._addresses import show
from ..proxies._connecting import reason_of, set_buffers
from ..proxies._listening import close_listener
from ..proxies._unix_sockets import duplicate, has_file
from .matching import at_address, is_any_port
from .options import UsageError
from .plan import Listeners, Made, Plan, Planned

#: Returns listening sockets for a proxy that are there already, a set for each worker or one for
#: all; an empty list: it has to open its own.
Find = Callable[[Planned], list[list[socket.socket]]]


class Served(NamedTuple):
    """One proxy that is served.

    Attributes:
        planned: its options.
        made: what they have made.
        server: the server of the proxy.
        listeners: its listening sockets, a set for each worker or one for all.
    """

    planned: Planned
    made: Made
    server: ProxyServer
    listeners: list[list[socket.socket]]

    def for_worker(self, number: int) -> Served:
        """Return it with the listening sockets of a worker, and close the other workers' here.

        A port is listened on until all its sockets are closed. A worker keeps its own alone; the
        parent keeps all, for workers to come, and closes them when it is told to stop.
        """
        own = self.listeners[number % len(self.listeners)]
        close(others for others in self.listeners if others is not own)
        return self._replace(listeners=[own])


def close_all(served: Iterable[Served]) -> None:
    """Close the listening sockets of proxies."""
    for each in served:
        close(each.listeners)


def close(listeners: Iterable[Listeners]) -> None:
    for listener in (listener for several in listeners for listener in several):
        close_listener(listener)


def sets_of(served: Iterable[Served]) -> list[list[socket.socket]]:
    """Return the listening sockets of all proxies, set by set."""
    return [several for each in served for several in each.listeners]


class Kept:
    """Finds the sockets of the proxies that were served before, for those that follow.

    A proxy that listens where one did before gets duplicates of that one's sockets, whatever else
    has changed: the clients in their queues are its clients then.
    """

    def __init__(self, before: Sequence[Served]) -> None:
        #: Those whose place nobody has taken.
        self._free = list(before)
        #: The former proxy, the new one in its place, and the sockets of that.
        self._taken: list[tuple[Planned, Planned, list[list[socket.socket]]]] = []

    def find(self, planned: Planned) -> list[list[socket.socket]]:
        """Return duplicates of the sockets that are there for a proxy.

        Raises:
            OSError: descriptors are short.
            UsageError: the sockets can't be changed as the proxy's options demand.
        """
        for former in self._free:
            if former.planned.options.listen == planned.options.listen:
                _check_buffers(former, planned)
                _check_mode(former, planned)
                made = _duplicates(former.listeners)
                self._free.remove(former)
                self._taken.append((former.planned, planned, made))
                return made
        return []

    def settle(self) -> None:
        """Give the sockets the backlog and the buffers of their new proxies."""
        for former, planned, listeners in self._taken:
            before, now = former.options, planned.options
            for listener in (listener for several in listeners for listener in several):
                if now.backlog != before.backlog:
                    listener.listen(now.backlog)
                if now.buffer_size != before.buffer_size:
                    set_buffers(listener, now.buffer_size)
                if now.socket_mode != before.socket_mode and has_file(listener):
                    os.chmod(listener.getsockname(), now.socket_mode)

    def opened_among(self, served: Iterable[Served]) -> list[Served]:
        """Return the proxies that listen where none did before."""
        kept = [planned for _, planned, _ in self._taken]
        return [each for each in served if not any(each.planned is one for one in kept)]


def _check_buffers(former: Served, planned: Planned) -> None:
    """See to it that the sockets can have other buffers, if they have to."""
    before, now = former.planned.options.buffer_size, planned.options.buffer_size
    if before == now:
        return
    place = f"{planned.place}: " if planned.place else ""
    if now is None:
        raise UsageError(
            f"{place}buffer-size: the listening sockets have {before}, and the system's choice can "
            "only be had by a restart"
        )
    for family in {listener.family for several in former.listeners for listener in several}:
        with socket.socket(family, socket.SOCK_STREAM) as like_them:
            try:
                set_buffers(like_them, now)
            except OSError as error:
                raise UsageError(f"{place}buffer-size: {reason_of(error)}") from error


def _check_mode(former: Served, planned: Planned) -> None:
    """See to it that the file of a Unix socket can have other permissions, if it has to."""
    if former.planned.options.socket_mode == planned.options.socket_mode or sys.platform == "win32":
        return
    for listener in (listener for several in former.listeners for listener in several):
        if has_file(listener):
            path = listener.getsockname()
            if os.geteuid() not in (0, os.lstat(path).st_uid):
                place = f"{planned.place}: " if planned.place else ""
                raise UsageError(
                    f"{place}socket-mode: {path} is another user's: that takes a restart"
                )


def _duplicates(listeners: Iterable[Listeners]) -> list[list[socket.socket]]:
    made: list[list[socket.socket]] = []
    try:
        for several in listeners:
            made.append([])
            for listener in several:
                made[-1].append(duplicate(listener))
    except OSError:
        close(made)
        raise
    return made


def deal_out(inherited: list[socket.socket], plan: Plan, take: Find) -> Find:
    """Return who gets which of the sockets that are there when the program starts.

    The proxy of a command line gets all inherited ones, wherever it should listen. Of a file's
    proxies each gets those with the addresses that its LISTEN stands for. Who gets none of them may
    take others over. Port 0 stands for any port that is left.

    Args:
        inherited: the sockets that the program was started with.
        plan: the proxies.
        take: takes sockets over from the running process for a proxy.

    Raises:
        UsageError: a socket is for none of them.
        OSError, UnicodeError: a name can't be looked up.
    """
    found: list[tuple[Planned, list[list[socket.socket]]]] = []
    left = list(inherited)
    for planned in sorted(plan.proxies, key=lambda each: is_any_port(each.options.listen)):
        own = left if not planned.place else at_address(left, planned.options.listen)
        left = [listener for listener in left if listener not in own]
        for listener in own:
            set_buffers(listener, planned.options.buffer_size)
        found.append((planned, [own] if own else take(planned)))
    for listener in left:
        where = show(listener.getsockname())
        raise UsageError(f"LISTEN_FDS has a socket of {where}, where no proxy is to listen")
    return lambda planned: next(sets for each, sets in found if each is planned)
