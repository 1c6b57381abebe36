"""How this machine reports the end of a splice: kqueue's events, and poll(2) for those it loses."""

from __future__ import annotations

import select
import sys
from typing import Any

from .interface import Readiness
from .kernel_interface import PollBits
from .kqueue_filters import delete_filters

_select: Any = select  # its names differ between systems, and a type checker knows that

#: Events taken by one kevent(2).
_BATCH = 256


class KqueueEndEvents:
    """``EndEvents`` by kqueue(2)."""

    #: The module with ``kqueue`` and its constants; on Linux a test puts its own here.
    module: Any = _select

    def __init__(self) -> None:
        self._kqueue = self.module.kqueue()

    def fileno(self) -> int:
        return int(self._kqueue.fileno())

    def arm(self, source: int, drain: int) -> list[tuple[int, Readiness]]:
        # Two calls, because an error in a change is raised only if no events are asked for.
        kq = self.module
        flags = kq.KQ_EV_ADD | kq.KQ_EV_CLEAR
        added = [kq.kevent(number, which, flags) for number, which in self._filters(source, drain)]
        try:
            self._kqueue.control(added, 0, 0)
        except BaseException:
            self.disarm(source, drain)
            raise
        return self.collect()

    def disarm(self, source: int, drain: int) -> None:
        delete_filters(self._kqueue, self.module, self._filters(source, drain))

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
        # A child doesn't inherit a kqueue (kqueue(2)): the number may belong to another file there,
        # and older Pythons would close it together with the object.
        _not_ours.append(self._kqueue)

    def _filters(self, source: int, drain: int) -> list[tuple[int, int]]:
        return [(source, self.module.KQ_FILTER_READ), (drain, self.module.KQ_FILTER_WRITE)]


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


#: POLLRDHUP, which shows an EOF whose event was lost (F14). OpenBSD lacks it and loses no EOF.
_READ_HANGUP: int = getattr(
    _select, "POLLRDHUP", 0x4000 if sys.platform.startswith("freebsd") else 0
)

#: kqueue objects of the parent process, kept so that they are never closed here.
_not_ours: list[Any] = []
