"""Waiting for sockets that belong to the caller, without keeping them open meanwhile.

Each registration yields one report and is made on the caller's own descriptor: with epoll and
kqueue the socket is really closed when the caller closes it, and a registration that outlives its
descriptor reports at most once. Only the emulation's thread uses these objects.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections.abc import Hashable
from functools import partial
from typing import Any, ClassVar, Protocol

from ..._platform.backoff import Backoff
from ..._platform.shortages import in_spite_of_shortages, nothing_while_short

__all__ = ["Readiness", "best"]

# poll and select keep a socket open while they wait for it, so they return at least that often.
LONGEST_HOLD = 0.5  # seconds


class Readiness(Protocol):
    """Reports each armed descriptor once."""

    def arm(
        self,
        descriptor: int,
        readable: bool,
        writable: bool,
        noticed: Hashable = None,
        moved: bool = False,
    ) -> None:
        """Report the descriptor once, as soon as it is readable or writable, or its socket broken.

        One report may still come from an earlier registration.

        Args:
            descriptor: the caller's descriptor.
            readable: report it when it is readable.
            writable: report it when it is writable.
            noticed: the socket's identity, if the socket has something in its error queue and
                is neither readable nor writable as asked. It is then reported again when that
                changes, or else at intervals that double.
            moved: the last report led to a move, so the intervals begin anew.

        Raises:
            OSError: the descriptor can't be watched.
        """

    def disarm(self, descriptor: int) -> None:
        """Stop reporting the descriptor, if it still exists."""

    def wait(self, timeout: float | None = None) -> list[int]:
        """Wait, and return the reported descriptors: perhaps none, and perhaps stale ones.

        Args:
            timeout: the longest time to wait, in seconds; None: without limit.
        """

    def close(self, in_child: bool = False) -> None:
        """Release everything; in a forked child, the child's copies."""


if sys.platform.startswith("linux"):

    class EpollReadiness:
        """epoll with EPOLLONESHOT."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._by_edges: dict[int, Hashable] = {}
            self._unclaimed: set[int] = set()  # of those, the ones reported and not armed again

        def arm(
            self,
            descriptor: int,
            readable: bool,
            writable: bool,
            noticed: Hashable = None,
            moved: bool = False,
        ) -> None:
            """Report once; or at each change, if an error queue is reported all the time.

            The second kind of registration is made only once, as making it again would cause
            another report. If it outlives its descriptor, it reports a number that nobody waits
            for.
            """
            self._unclaimed.discard(descriptor)
            if noticed is not None and self._by_edges.get(descriptor) == noticed:
                return
            events = select.EPOLLONESHOT
            if readable:
                events |= select.EPOLLIN
            if writable:
                events |= select.EPOLLOUT
            if noticed is not None:
                events = select.EPOLLET | select.EPOLLIN | select.EPOLLOUT
            self._by_edges.pop(descriptor, None)
            self._set(descriptor, events)
            if noticed is not None:
                self._by_edges[descriptor] = noticed

        def _set(self, descriptor: int, events: int) -> None:
            try:
                self._epoll.modify(descriptor, events)
            except FileNotFoundError:
                self._epoll.register(descriptor, events)

        def disarm(self, descriptor: int) -> None:
            """Don't report."""
            self._by_edges.pop(descriptor, None)
            self._unclaimed.discard(descriptor)
            with contextlib.suppress(OSError):  # it was closed, or now belongs to somebody else
                self._epoll.unregister(descriptor)

        def wait(self, timeout: float | None = None) -> list[int]:
            """Wait for reports."""
            for descriptor in list(self._unclaimed):
                self.disarm(descriptor)
            ready = [descriptor for descriptor, _ in self._epoll.poll(timeout)]
            self._unclaimed.update(self._by_edges.keys() & ready)
            return ready

        def close(self, in_child: bool = False) -> None:
            """Release everything."""
            self._epoll.close()


class KqueueReadiness:
    """kqueue with EV_ONESHOT. Its systems have no error queues."""

    _never_closed: ClassVar[list[object]] = []

    def __init__(self) -> None:
        self._select: Any = select  # its names exist for mypy on some platforms only
        self._kqueue = self._select.kqueue()

    def arm(
        self,
        descriptor: int,
        readable: bool,
        writable: bool,
        noticed: Hashable = None,
        moved: bool = False,
    ) -> None:
        """Report once."""
        flags = self._select.KQ_EV_ADD | self._select.KQ_EV_ONESHOT
        if readable:
            self._change(descriptor, self._select.KQ_FILTER_READ, flags)
        if writable:
            self._change(descriptor, self._select.KQ_FILTER_WRITE, flags)

    def disarm(self, descriptor: int) -> None:
        """Don't report."""
        for filter_ in (self._select.KQ_FILTER_READ, self._select.KQ_FILTER_WRITE):
            with contextlib.suppress(OSError):  # no such filter is registered
                self._change(descriptor, filter_, self._select.KQ_EV_DELETE)

    def wait(self, timeout: float | None = None) -> list[int]:
        """Wait for reports."""
        return [int(event.ident) for event in self._kqueue.control(None, 256, timeout)]

    def close(self, in_child: bool = False) -> None:
        """Release everything.

        A child doesn't inherit the kqueue: its number may belong to another file there, so it is
        never closed.
        """
        if in_child:
            self._never_closed.append(self._kqueue)
        else:
            self._kqueue.close()

    def _change(self, descriptor: int, filter_: int, flags: int) -> None:
        self._kqueue.control([self._select.kevent(descriptor, filter_, flags)], 0, 0)


if sys.platform != "win32":

    class PollReadiness:
        """poll(2)."""

        def __init__(self) -> None:
            self._armed: dict[int, int] = {}
            self._backoff = Backoff()

        def arm(
            self,
            descriptor: int,
            readable: bool,
            writable: bool,
            noticed: Hashable = None,
            moved: bool = False,
        ) -> None:
            """Report once."""
            events = (select.POLLIN if readable else 0) | (select.POLLOUT if writable else 0)
            self._armed[descriptor] = events
            if noticed is not None:
                self._backoff.was_useless(descriptor, anew=moved)

        def disarm(self, descriptor: int) -> None:
            """Don't report."""
            self._armed.pop(descriptor, None)
            self._backoff.forget(descriptor)

        def wait(self, timeout: float | None = None) -> list[int]:
            """Wait for reports. A closed descriptor is reported too (POLLNVAL)."""
            left_out = self._backoff.left_out()
            poll = select.poll()
            for descriptor, events in self._armed.items():
                if descriptor not in left_out:
                    poll.register(descriptor, events)
            seconds = self._backoff.bounded(_bounded(timeout, len(self._armed)))
            milliseconds = None if seconds is None else -int(-seconds * 1000 // 1)
            ready = nothing_while_short(partial(poll.poll, milliseconds))
            for descriptor, _ in ready:
                del self._armed[descriptor]
            return [descriptor for descriptor, _ in ready]

        def close(self, in_child: bool = False) -> None:
            """Do nothing: there is nothing to release."""


class SelectReadiness:
    """select(2)."""

    MOST = 500  # Windows takes up to 512 sockets, whatever their numbers
    HIGHEST = 1023  # other systems take descriptors up to this number

    def __init__(self) -> None:
        self._read: set[int] = set()
        self._write: set[int] = set()
        #: Those of the last reports that have not been armed since. Their places stay theirs: who
        #: was reported can always wait again.
        self._reported: set[int] = set()
        self._backoff = Backoff()

    def arm(
        self,
        descriptor: int,
        readable: bool,
        writable: bool,
        noticed: Hashable = None,
        moved: bool = False,
    ) -> None:
        """Report once."""
        self._remove(descriptor)
        used = len(self._read | self._write | self._reported)
        if used >= self.MOST if sys.platform == "win32" else descriptor > self.HIGHEST:
            raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}: select(2) takes no more")
        if readable:
            self._read.add(descriptor)
        if writable:
            self._write.add(descriptor)
        if noticed is not None:
            self._backoff.was_useless(descriptor, anew=moved)

    def disarm(self, descriptor: int) -> None:
        """Don't report."""
        self._remove(descriptor)
        self._backoff.forget(descriptor)

    def _remove(self, descriptor: int) -> None:
        for each in (self._read, self._write, self._reported):
            each.discard(descriptor)

    def wait(self, timeout: float | None = None) -> list[int]:
        """Wait for reports. A closed descriptor is reported too."""
        left_out = self._backoff.left_out()
        seconds = self._backoff.bounded(_bounded(timeout, len(self._read | self._write)))
        ask = partial(self._ask, self._read - left_out, self._write - left_out, seconds)
        try:
            ready = nothing_while_short(ask)
        except (OSError, ValueError):
            ready = [number for number in self._read | self._write if self._is_closed(number)]
        for descriptor in ready:
            self._remove(descriptor)
        self._reported = set(ready)
        return ready

    def close(self, in_child: bool = False) -> None:
        """Do nothing: there is nothing to release."""

    def _ask(self, read: set[int], write: set[int], timeout: float | None) -> list[int]:
        # Windows reports a connection that failed in the third set only.
        return list(set().union(*select.select(read, write, write, timeout)))

    def _is_closed(self, descriptor: int) -> bool:
        try:
            in_spite_of_shortages(partial(self._ask, {descriptor}, set(), 0))
        except (OSError, ValueError):
            return True
        return False


def _bounded(timeout: float | None, armed: int) -> float | None:
    if armed == 1:  # the thread's own, by which it is woken
        return timeout
    return LONGEST_HOLD if timeout is None else min(timeout, LONGEST_HOLD)


def best() -> Readiness:
    """Return the best kind that the system has."""
    if sys.platform.startswith("linux"):
        return EpollReadiness()
    if hasattr(select, "kqueue"):
        return KqueueReadiness()
    if sys.platform != "win32":
        return PollReadiness()
    return SelectReadiness()
