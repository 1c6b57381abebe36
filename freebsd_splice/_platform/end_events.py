"""Learning of a splice's end, on this machine: kqueue's events, and poll(2) for what they miss."""

from __future__ import annotations

import select
import sys
from contextlib import suppress
from typing import Any

from .interface import Readiness
from .kernel_interface import PollBits

_select: Any = select  # each system's has other names, and a type checker knows that

#: Events taken by one kevent(2).
_BATCH = 256


class KqueueEndEvents:
    """``EndEvents`` by kqueue(2)."""

    #: The module that ``kqueue`` and its constants come from; on Linux a test puts its own here.
    module: Any = _select

    def __init__(self) -> None:
        self._kqueue = self.module.kqueue()

    def fileno(self) -> int:
        return int(self._kqueue.fileno())

    def arm(self, source: int, drain: int) -> list[tuple[int, Readiness]]:
        # In two calls: an error in a change is raised only where no events are asked for.
        read, write = self._changes(source, drain, self.module.KQ_EV_ADD | self.module.KQ_EV_CLEAR)
        try:
            self._kqueue.control([read, write], 0, 0)
        except BaseException:
            for added in self._changes(source, drain, self.module.KQ_EV_DELETE):
                with suppress(OSError):  # the first of the two has failed to be added
                    self._kqueue.control([added], 0, 0)
            raise
        return self.collect()

    def disarm(self, source: int, drain: int) -> None:
        self._kqueue.control(self._changes(source, drain, self.module.KQ_EV_DELETE), 0, 0)

    def collect(self) -> list[tuple[int, Readiness]]:
        fired: list[tuple[int, Readiness]] = []
        while True:
            events = self._kqueue.control(None, _BATCH, 0)
            for event in events:
                read = event.filter == self.module.KQ_FILTER_READ
                fired.append((event.ident, Readiness.READ if read else Readiness.WRITE))
            if len(events) < _BATCH:
                return fired

    def close(self) -> None:
        self._kqueue.close()

    def abandon(self) -> None:
        # A kqueue isn't inherited (kqueue(2)): its number may be a stranger's in the child, and
        # older Pythons would close that with the object.
        _not_ours.append(self._kqueue)

    def _changes(self, source: int, drain: int, flags: int) -> list[Any]:
        kq = self.module
        return [
            kq.kevent(source, kq.KQ_FILTER_READ, flags),
            kq.kevent(drain, kq.KQ_FILTER_WRITE, flags),
        ]


class SystemPollSet:
    """``PollSet`` by poll(2)."""

    def __init__(self) -> None:
        self._poll = _select.poll()

    def put(self, descriptor: int, asked: PollBits) -> None:
        self._poll.register(
            descriptor,
            (_READ_HANGUP if asked & PollBits.READ_HANGUP else 0)
            | (_select.POLLOUT if asked & PollBits.WRITE else 0),
        )

    def drop(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)

    def look(self) -> list[tuple[int, PollBits]]:
        return [
            (
                descriptor,
                (PollBits.READ_HANGUP if shown & _READ_HANGUP else PollBits.NONE)
                | (PollBits.HANGUP if shown & _select.POLLHUP else PollBits.NONE)
                | (PollBits.WRITE if shown & _select.POLLOUT else PollBits.NONE),
            )
            for descriptor, shown in self._poll.poll(0)
        ]


#: POLLRDHUP (F14).  OpenBSD has none, and loses no EOF either.
_READ_HANGUP: int = getattr(
    _select, "POLLRDHUP", 0x4000 if sys.platform.startswith("freebsd") else 0
)

#: kqueue objects of the parent process, kept so that they are never closed here.
_not_ours: list[Any] = []
