"""Pollers by epoll, kqueue, poll and select; the first of them that the system has is the best."""

from __future__ import annotations

import errno
import select
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from .._errors import SHORTAGES
from .backoff import Backoff
from .interface import Endpoint, Readiness
from .kqueue_filters import delete_filters
from .shortages import in_spite_of_shortages, nothing_while_short

_Call = Callable[[float | None], list[tuple[int, Readiness]]]
_select: Any = select  # its names differ between systems, and a type checker knows that
READ, WRITE, HANGUP, ERROR = Readiness.READ, Readiness.WRITE, Readiness.HANGUP, Readiness.ERROR


def make_poller(kind: str | None = None) -> BasePoller:
    """Make a poller of that kind; None: the best one that this system has."""
    kind = kind or kinds()[0]
    if kind not in kinds():
        raise ValueError(f"this system has no {kind!r}; it has {', '.join(kinds())}")
    return _KINDS[kind]()


def kinds() -> list[str]:
    """Return the kinds that this system has, best first."""
    return [kind for kind in _KINDS if hasattr(_select, kind)]


class BasePoller(ABC):
    """The common part of the four pollers: a socket pair by which ``wake`` ends a wait."""

    def __init__(self) -> None:
        self._woken, self._waker = socket.socketpair()
        try:
            self._woken.setblocking(False)
            self._waker.setblocking(False)
            self._wake_descriptor = self._woken.fileno()
            self._open(self._wake_descriptor)
        except BaseException:
            self._woken.close()
            self._waker.close()
            raise

    def wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        ready = self._wait(timeout)
        woken = (self._wake_descriptor, READ)
        if woken in ready:
            ready.remove(woken)
            with suppress(BlockingIOError):
                while len(in_spite_of_shortages(partial(self._woken.recv, 4096))) == 4096:
                    pass
        return ready

    def wake(self) -> None:
        with suppress(BlockingIOError):  # the pair is full of wake-ups, and one more adds nothing
            # A wake-up that is lost for want of memory would never be made up for.
            in_spite_of_shortages(partial(self._waker.send, b"\0"))

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._woken.close()
        self._waker.close()

    def abandon(self) -> None:
        """In a forked child, close the child's copies."""
        self.close()

    @abstractmethod
    def watch(self, endpoint: Endpoint, interest: Readiness) -> None: ...

    @abstractmethod
    def forget(self, endpoint: Endpoint) -> None: ...

    def quieten(self, endpoint: Endpoint) -> None:  # noqa: B027 - a kqueue has nothing to do
        """Report the endpoint less often: see ``interface.Poller``."""

    def listen(self, descriptor: int) -> None:
        """Report the descriptor when it can be read: see ``interface.Poller``."""
        raise NotImplementedError

    def unlisten(self, descriptor: int) -> None:
        """Undo ``listen``."""
        raise NotImplementedError

    @abstractmethod
    def _open(self, wake_descriptor: int) -> None: ...

    @abstractmethod
    def _wait(self, timeout: float | None) -> list[tuple[int, Readiness]]: ...


class EpollPoller(BasePoller):
    """epoll(7), on Linux."""

    def _open(self, wake_descriptor: int) -> None:
        self._masks: dict[int, int] = {}
        self._epoll = _select.epoll()
        try:
            self._epoll.register(wake_descriptor, _EPOLL_MASK[READ])
        except BaseException:
            self._epoll.close()
            raise

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        descriptor = endpoint.fileno()
        before = self._masks.get(descriptor)
        if before is None:
            self._epoll.register(descriptor, _EPOLL_MASK[interest])
            self._masks[descriptor] = _EPOLL_MASK[interest]
        else:
            self._modify(descriptor, _EPOLL_MASK[interest] | before & _select.EPOLLET)

    def forget(self, endpoint: Endpoint) -> None:
        # Closing the endpoint isn't enough: epoll goes on watching as long as the caller's own
        # descriptor keeps the socket open.
        descriptor = endpoint.fileno()
        if self._masks.pop(descriptor, None) is not None:
            in_spite_of_shortages(partial(self._epoll.unregister, descriptor))

    def quieten(self, endpoint: Endpoint) -> None:
        # From now on each change is reported, which serves as well: a flow that is told that it can
        # read or write does so until it can't. The mask is set only once, because epoll reports
        # each change of a mask too.
        mask = self._masks.get(endpoint.fileno())
        if mask is not None and not mask & _select.EPOLLET:
            self._modify(endpoint.fileno(), mask | _select.EPOLLET)

    def listen(self, descriptor: int) -> None:
        self._epoll.register(descriptor, _EPOLL_MASK[READ])

    def unlisten(self, descriptor: int) -> None:
        with suppress(OSError):  # it was closed, and is forgotten already
            in_spite_of_shortages(partial(self._epoll.unregister, descriptor))

    def _modify(self, descriptor: int, mask: int) -> None:
        self._epoll.modify(descriptor, mask)
        self._masks[descriptor] = mask

    def _wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        return [(fd, _EPOLL_READY[mask & 0x1D]) for fd, mask in self._epoll.poll(timeout)]

    def fileno(self) -> int:
        return int(self._epoll.fileno())

    def close(self) -> None:
        self._epoll.close()
        super().close()


def _decode(mask: int) -> Readiness:
    """Convert poll(2)'s bits, which epoll shares: IN 1, OUT 4, ERR 8, HUP 16."""
    return Readiness(
        (READ if mask & 1 else 0)
        | (WRITE if mask & 4 else 0)
        | (ERROR if mask & 8 else 0)
        | (HANGUP if mask & 16 else 0)
    )


_EPOLL_READY = [_decode(mask) for mask in range(32)]
_EPOLL_MASK = {
    Readiness(interest): (1 if interest & READ else 0) | (4 if interest & WRITE else 0)
    for interest in range(4)
}


class KqueuePoller(BasePoller):
    """kqueue(2), on FreeBSD, OpenBSD and macOS.

    These systems have no error queues: an error that was read is gone, so ``quieten`` has nothing
    to do. HANGUP without WRITE is watched for by EVFILT_WRITE with a low-water mark that no send
    buffer reaches: it then fires only at the end of the connection (kqueue(2), NOTE_LOWAT).
    """

    #: The module with ``kqueue`` and its constants; on Linux a test puts its own here.
    module: Any = _select
    _OUT_OF_REACH = 0x7FFFFFFF

    def _open(self, wake_descriptor: int) -> None:
        self._interest: dict[int, Readiness] = {}
        kq = self.module
        self._kqueue = kq.kqueue()
        try:
            woken = kq.kevent(wake_descriptor, kq.KQ_FILTER_READ, kq.KQ_EV_ADD)
            self._kqueue.control([woken], 0, 0)
        except BaseException:
            self._kqueue.close()
            raise

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        kq, descriptor = self.module, endpoint.fileno()
        before, changes = self._interest.get(descriptor), []
        if (before or 0) & READ and not interest & READ:
            changes.append(kq.kevent(descriptor, kq.KQ_FILTER_READ, kq.KQ_EV_DELETE))
        if interest & READ and not (before or 0) & READ:
            changes.append(kq.kevent(descriptor, kq.KQ_FILTER_READ, kq.KQ_EV_ADD))
        if before is None or (before ^ interest) & WRITE:
            if before is not None:  # NOTE_LOWAT outlives a second EV_ADD on some systems
                changes.append(kq.kevent(descriptor, kq.KQ_FILTER_WRITE, kq.KQ_EV_DELETE))
            if interest & WRITE:
                changes.append(kq.kevent(descriptor, kq.KQ_FILTER_WRITE, kq.KQ_EV_ADD))
            else:
                flags, mark = kq.KQ_EV_ADD | kq.KQ_EV_CLEAR, self._OUT_OF_REACH
                changes.append(
                    kq.kevent(descriptor, kq.KQ_FILTER_WRITE, flags, kq.KQ_NOTE_LOWAT, mark)
                )
        if changes:
            try:
                self._kqueue.control(changes, 0, 0)  # in this order, until one fails
            except BaseException:
                # Nobody knows how many were made. Once nothing is watched, it can be asked again.
                self._interest.pop(descriptor, None)
                self._delete(descriptor, kq.KQ_FILTER_READ, kq.KQ_FILTER_WRITE)
                raise
        self._interest[descriptor] = interest

    def forget(self, endpoint: Endpoint) -> None:
        kq, descriptor = self.module, endpoint.fileno()
        interest = self._interest.pop(descriptor, None)
        if interest is not None:
            filters = [kq.KQ_FILTER_READ] if interest & READ else []
            self._delete(descriptor, *filters, kq.KQ_FILTER_WRITE)

    def listen(self, descriptor: int) -> None:
        # No EVFILT_WRITE, which another kqueue refuses.
        kq = self.module
        self._kqueue.control([kq.kevent(descriptor, kq.KQ_FILTER_READ, kq.KQ_EV_ADD)], 0, 0)

    def unlisten(self, descriptor: int) -> None:
        self._delete(descriptor, self.module.KQ_FILTER_READ)

    def _delete(self, descriptor: int, *filters: int) -> None:
        delete_filters(self._kqueue, self.module, [(descriptor, which) for which in filters])

    def _wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        kq = self.module
        ready = []
        for event in self._kqueue.control(None, 256, timeout):
            if event.filter == kq.KQ_FILTER_READ:
                found = READ
            elif event.flags & kq.KQ_EV_EOF:
                found = WRITE | HANGUP
            elif self._interest.get(event.ident, WRITE) & WRITE:
                found = WRITE
            else:  # a pending error is reported, whatever the mark
                found = ERROR
            ready.append((event.ident, found))
        return ready

    def fileno(self) -> int:
        return int(self._kqueue.fileno())

    def close(self) -> None:
        self._kqueue.close()
        super().close()

    def abandon(self) -> None:
        # A child doesn't inherit a kqueue (kqueue(2)): the number may belong to another file there,
        # and older Pythons would close it together with the object.
        _not_ours.append(self._kqueue)
        super().close()


class _RepeatingPoller(BasePoller):
    """A poller whose call takes all descriptors each time, and reports each while it is ready."""

    def _open(self, wake_descriptor: int) -> None:
        self._lock = threading.Lock()
        self._backoff = Backoff()
        self._interest: dict[int, Readiness] = {}
        self._check_room(wake_descriptor)
        self._interest[wake_descriptor] = READ

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        with self._lock:
            self._check_room(endpoint.fileno())
            self._interest[endpoint.fileno()] = interest
            self._changed(endpoint.fileno())
        self.wake()

    def forget(self, endpoint: Endpoint) -> None:
        with self._lock:
            self._interest.pop(endpoint.fileno(), None)
            self._changed(endpoint.fileno())
        self.wake()

    def quieten(self, endpoint: Endpoint) -> None:
        with self._lock:
            self._backoff.was_useless(endpoint.fileno())

    def _changed(self, descriptor: int) -> None:
        self._backoff.forget(descriptor)

    def _check_room(self, descriptor: int) -> None:
        """Raise OSError if the poller can't take that descriptor as well."""

    def _wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        with self._lock:
            left_out = self._backoff.left_out()
            timeout = self._backoff.bounded(timeout)
            call = self._call(left_out)
        return nothing_while_short(partial(call, timeout))

    @abstractmethod
    def _call(self, left_out: set[int]) -> _Call: ...


class PollPoller(_RepeatingPoller):
    """poll(2), on any POSIX system."""

    def _open(self, wake_descriptor: int) -> None:
        super()._open(wake_descriptor)
        self._poll: Any = None
        self._left_out: set[int] = set()

    def _changed(self, descriptor: int) -> None:
        super()._changed(descriptor)
        self._poll = None

    def _call(self, left_out: set[int]) -> _Call:
        if self._poll is None or left_out != self._left_out:
            self._left_out = left_out
            self._poll = _select.poll()
            for descriptor, interest in self._interest.items():
                if descriptor not in left_out:
                    self._poll.register(descriptor, _EPOLL_MASK[interest])
        return partial(self._ask, self._poll)

    @staticmethod
    def _ask(poll: Any, timeout: float | None) -> list[tuple[int, Readiness]]:
        milliseconds = None if timeout is None else -int(-timeout * 1000 // 1)
        return [(fd, _EPOLL_READY[mask & 0x1D]) for fd, mask in poll.poll(milliseconds)]


class SelectPoller(_RepeatingPoller):
    """select(2), on Windows. It can't see HANGUP: a dead drain is noticed at the next send."""

    _LIMIT = 1024

    def _check_room(self, descriptor: int) -> None:
        # Past its limit select() would raise at each wait, for all sockets.
        if sys.platform == "win32":  # the number of sockets counts; CPython's FD_SETSIZE is 512
            full = len(self._interest) >= self._LIMIT // 2 and descriptor not in self._interest
        else:
            full = descriptor >= self._LIMIT
        if full:
            raise OSError(errno.EMFILE, "select() can watch no further socket")

    def _call(self, left_out: set[int]) -> _Call:
        looked_at = [(fd, which) for fd, which in self._interest.items() if fd not in left_out]
        readers = [fd for fd, interest in looked_at if interest & READ]
        writers = [fd for fd, interest in looked_at if interest & WRITE]
        return partial(self._ask, readers, writers)

    @staticmethod
    def _ask(
        readers: list[int], writers: list[int], timeout: float | None
    ) -> list[tuple[int, Readiness]]:
        try:
            # Windows reports a connection that failed in the third set alone.
            readable, writable, failed = select.select(readers, writers, writers, timeout)
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            return []  # one of them was forgotten and closed meanwhile: the next call leaves it out
        ready = dict.fromkeys(readable, READ)
        for descriptor in writable + failed:
            ready[descriptor] = ready.get(descriptor, Readiness.NONE) | WRITE
        return list(ready.items())


#: kqueue objects of the parent process, kept so that they are never closed here.
_not_ours: list[Any] = []

_KINDS: dict[str, type[BasePoller]] = {
    "epoll": EpollPoller,
    "kqueue": KqueuePoller,
    "poll": PollPoller,
    "select": SelectPoller,
}
