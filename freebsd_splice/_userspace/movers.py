"""How bytes get from a source to a drain in userspace: os.splice through a pipe, or a copy.

A mover takes bytes from the source (``fill``), holds them, and pushes them into the drain
(``pour``). It belongs to one flow; what is costly to make belongs to the worker (``Supplies``).
All calls are non-blocking: BlockingIOError means that the socket has no data, or no room, now.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

from .._backend import COPY, OS_SPLICE
from .._errors import SHORTAGES
from .._platform.interface import Endpoint, Pipe, Platform

#: The largest and the smallest number of bytes copied at once. It shrinks for a slow drain, as the
#: bytes that such a drain leaves over are kept for each flow.
_SCRATCH_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
#: How many empty pipes a worker keeps for its next flows.
_SPARE_PIPES = 16

#: Errors of os.splice which mean that it cannot serve these sockets, although a copy can.
_REFUSALS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENOMEM})


class MoverRefusedError(Exception):
    """This mover cannot serve this flow. The bytes that it holds can still be taken back."""


class Mover(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def held(self) -> int:
        """The number of bytes taken from the source that the drain has not taken yet."""
        ...

    @property
    def drained(self) -> bool:
        """Whether the last ``fill`` is known to have taken everything that was there."""
        ...

    def fill(self, source: Endpoint, count: int, *, told: bool = True) -> int:
        """Take up to ``count`` bytes from the source; called only while nothing is held.

        Args:
            source: the socket to read.
            count: the most bytes to take.
            told: a poller has reported the source readable.

        Returns:
            The number of bytes taken; 0 at EOF.

        Raises:
            BlockingIOError: the source has no data now.
            MoverRefusedError: this mover cannot serve the flow.
            OSError: the source failed.
        """
        ...

    def pour(self, drain: Endpoint) -> int:
        """Push the held bytes into the drain; return how many it took."""
        ...

    def release_buffers(self) -> None:
        """Give up whatever another flow could use, because this flow is going to wait."""
        ...

    def take_back(self) -> bytes:
        """Return all held bytes, and hold nothing afterwards."""
        ...


class Supplies:
    """The buffer and the pipes that the movers of one worker share.

    Only that worker's thread uses them, except that a flow that is stopped from another thread
    calls ``give`` too.
    """

    def __init__(self, platform: Platform, mover: str | None = None) -> None:
        self.platform = platform
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._is_forced = mover is not None
        self._kind = mover or (OS_SPLICE if platform.can_splice() else COPY)
        self._pipes: list[Pipe] = []
        self._closed = False

    def mover(self, *, copy: bool = False, busy: bool = False) -> Mover:
        if copy or self._kind == COPY:
            return CopyMover(self)
        return SpliceMover(self) if busy or self._is_forced else SmallMover(self)

    def take(self) -> Pipe:
        try:
            return self._pipes.pop()
        except IndexError:
            return self.platform.open_pipe()

    def give(self, pipe: Pipe) -> None:
        if self._closed or len(self._pipes) >= _SPARE_PIPES:
            self.platform.close_pipe(pipe)
        else:
            self._pipes.append(pipe)

    def close(self) -> None:
        self._closed = True
        while self._pipes:
            self.platform.close_pipe(self._pipes.pop())
        # Whoever had the worker can be in a cycle, and then lasts until the collector comes.
        self.scratch = memoryview(b"")


class SpliceMover:
    """os.splice: the bytes go from socket to pipe to socket inside the system.

    F30 has its speed. Pipes are limited, so a flow borrows one only while it has bytes to move
    (F31). Bytes in a pipe are nowhere else, so whoever ends the flow must take them back (F32).
    """

    name = OS_SPLICE
    drained = False  # unknown: a full pipe makes it take less, too

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self._platform = supplies.platform
        self._pipe: Pipe | None = None
        self.held = 0

    def fill(self, source: Endpoint, count: int, *, told: bool = True) -> int:
        if self._pipe is None:
            try:
                self._pipe = self._supplies.take()
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise MoverRefusedError("no pipe") from error
                raise
        if self._platform.peek(source, told=told) == 0:
            return 0
        # The peek has found a byte. So this call doesn't block, whatever the socket's flags are,
        # and an answer of "nothing" or "EOF" means that os.splice can't pass TCP's urgent mark.
        try:
            self.held = self._platform.splice_in(source, self._pipe, min(count, self._pipe.size))
        except BlockingIOError as error:
            raise MoverRefusedError("an urgent mark") from error
        except OSError as error:
            raise _refusal(error) from error
        if not self.held:
            raise MoverRefusedError("an urgent mark")
        return self.held

    def pour(self, drain: Endpoint) -> int:
        assert self._pipe is not None
        try:
            taken = self._platform.splice_out(self._pipe, drain, self.held)
        except OSError as error:
            raise _refusal(error) from error
        self.held -= taken
        return taken

    def release_buffers(self) -> None:
        if self._pipe is not None and not self.held:
            self._supplies.give(self._pipe)
            self._pipe = None

    def take_back(self) -> bytes:
        parts = []
        while self.held:
            assert self._pipe is not None
            parts.append(self._platform.read_pipe(self._pipe, self.held))
            self.held -= len(parts[-1])
        self.release_buffers()
        return b"".join(parts)


class CopyMover:
    """A copy by recv_into and send, through the worker's buffer."""

    name = COPY

    def __init__(self, supplies: Supplies) -> None:
        self._platform = supplies.platform
        self._scratch = supplies.scratch
        self._view = supplies.scratch[:0]
        self._size = _SCRATCH_BYTES
        self.drained = False

    @property
    def held(self) -> int:
        return len(self._view)

    def fill(self, source: Endpoint, count: int, *, told: bool = True) -> int:
        asked = min(count, self._size)
        taken = self._platform.receive_into(source, self._scratch[:asked])
        self.drained = taken < asked
        self._view = self._scratch[:taken]
        return taken

    def pour(self, drain: Endpoint) -> int:
        taken = self._platform.send(drain, self._view)
        self._view = self._view[taken:]
        if taken == self._size:  # a full buffer at once: the drain keeps up
            self._size = min(2 * self._size, _SCRATCH_BYTES)
        return taken

    def release_buffers(self) -> None:
        # The buffer belongs to the worker: other flows fill it while this one waits for its drain.
        if self._view and self._view.obj is self._scratch.obj:
            self._view = memoryview(bytes(self._view))
            self._size = max(self._size // 4, _SMALL_BYTES)

    def take_back(self) -> bytes:
        data, self._view = bytes(self._view), self._scratch[:0]
        return data


class SmallMover(CopyMover):
    """The copy that a flow begins with where os.splice could serve it.

    A message then takes two system calls and no pipe. os.splice has to ask first whether there is
    anything to read, and it moves pages, which pays only from several pages on.
    """

    def __init__(self, supplies: Supplies) -> None:
        super().__init__(supplies)
        self._size = _SMALL_BYTES


def _refusal(error: OSError) -> Exception:
    if error.errno in _REFUSALS:
        return MoverRefusedError(os.strerror(error.errno or 0))
    return error
