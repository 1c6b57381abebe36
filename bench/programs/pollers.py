"""The system's own poller at its barest, for the programs of the benchmark that make the load."""

from __future__ import annotations

import select
import sys


class Poller:
    """Waits until descriptors are readable; a closed descriptor is forgotten by itself."""

    if sys.platform == "linux":

        def __init__(self) -> None:
            self._epoll = select.epoll()

        def add(self, descriptor: int) -> None:
            self._epoll.register(descriptor, select.EPOLLIN)

        def remove(self, descriptor: int) -> None:
            self._epoll.unregister(descriptor)

        def wait(self, seconds: float) -> list[int]:
            return [descriptor for descriptor, _ in self._epoll.poll(seconds)]

    else:

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def add(self, descriptor: int) -> None:
            self._change(descriptor, select.KQ_EV_ADD)

        def remove(self, descriptor: int) -> None:
            self._change(descriptor, select.KQ_EV_DELETE)

        def wait(self, seconds: float) -> list[int]:
            return [event.ident for event in self._kqueue.control(None, 256, seconds)]

        def _change(self, descriptor: int, flags: int) -> None:
            self._kqueue.control([select.kevent(descriptor, select.KQ_FILTER_READ, flags)], 0)
