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
#: The bytes that a pipe of each size holds. A large one needs fewer calls for the same bytes. But
#: all pipes of a user share one limit, of 64 MiB as a rule (F31), so a flow has a large one only
#: while its drain keeps up, and all workers together have at most half of that limit in them.
USUAL_PIPE, LARGE_PIPE = 1 << 18, 1 << 20
_LARGE_PIPES = 32
#: A flow gets a large pipe once its drain has taken that many full pipes in a row at once each.
_KEEPS_UP = 4
#: And a usual one once its drain has taken more than so many calls to empty a pipe.
_POURS = 4
#: How many empty pipes of each size a worker keeps for its next flows.
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
        self._most_large = max(1, _LARGE_PIPES // platform.cpus())
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._is_forced = mover is not None
        self._kind = mover or (OS_SPLICE if platform.can_splice() else COPY)
        self._spare: list[Pipe] = []
        self._spare_large: list[Pipe] = []
        self._large: set[Pipe] = set()  # those lent to a flow, too
        self._usual_size = USUAL_PIPE
        self._closed = False

    def mover(self, *, copy: bool = False, busy: bool = False) -> Mover:
        if copy or self._kind == COPY:
            return CopyMover(self)
        return SpliceMover(self) if busy or self._is_forced else SmallMover(self)

    def take(self) -> Pipe:
        try:
            return self._spare.pop()
        except IndexError:
            pipe = self.platform.open_pipe(USUAL_PIPE)
            self._usual_size = pipe.size
            return pipe

    def take_large(self) -> Pipe | None:
        """Return a large pipe, or None where there is none to be had."""
        if self._spare_large:
            return self._spare_large.pop()
        if len(self._large) >= self._most_large:
            return None
        try:
            pipe = self.platform.open_pipe(LARGE_PIPE)
        except OSError:  # no descriptor
            return None
        if pipe.size <= self._usual_size:  # the user's share is used up
            self.platform.close_pipe(pipe)
            return None
        self._large.add(pipe)
        return pipe

    def give(self, pipe: Pipe) -> None:
        spare = self._spare_large if pipe in self._large else self._spare
        if self._closed or len(spare) >= _SPARE_PIPES:
            self._large.discard(pipe)
            self.platform.close_pipe(pipe)
        else:
            spare.append(pipe)

    def close(self) -> None:
        self._closed = True
        for spare in (self._spare, self._spare_large):
            while spare:
                self.platform.close_pipe(spare.pop())
        # Whoever had the worker can be in a cycle, and then lasts until the collector comes.
        self.scratch = memoryview(b"")


class SpliceMover:
    """os.splice: the bytes go from socket to pipe to socket inside the system.

    F30 has its speed. Pipes are limited, so a flow borrows one only while it has bytes to move
    (F31). Bytes in a pipe are nowhere else, so whoever ends the flow must take them back (F32).
    """

    name = OS_SPLICE

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self._platform = supplies.platform
        self._pipe: Pipe | None = None
        self.held = 0
        self.drained = False
        #: Its drain keeps up.
        self._wants_large = False
        #: How often in a row the drain has taken a full pipe at once.
        self._at_once = 0
        #: Calls to pour out what was taken last.
        self._pours = 0

    def fill(self, source: Endpoint, count: int, *, told: bool = True) -> int:
        pipe = self._pipe or self._take_pipe()
        if self._platform.peek(source, told=told) == 0:
            return 0
        # The peek has found a byte. So this call doesn't block, whatever the socket's flags are,
        # and an answer of "nothing" or "EOF" means that os.splice can't pass TCP's urgent mark.
        try:
            taken = self._platform.splice_in(source, pipe, min(count, pipe.size))
        except BlockingIOError as error:
            raise MoverRefusedError("an urgent mark") from error
        except OSError as error:
            raise _refusal(error) from error
        if not taken:
            raise MoverRefusedError("an urgent mark")
        self.held = taken
        self._pours = 0
        # A pipe takes only so many packets. Where these are small, as few bytes as a quarter of its
        # size can fill it.
        if taken < pipe.size // 4:
            self._at_once = 0
            self.drained = taken < count
        else:
            self.drained = False
        return taken

    def pour(self, drain: Endpoint) -> int:
        assert self._pipe is not None
        self._pours += 1
        try:
            taken = self._platform.splice_out(self._pipe, drain, self.held)
        except BlockingIOError:
            self._at_once = 0
            raise
        except OSError as error:
            raise _refusal(error) from error
        self.held -= taken
        if not self.held:
            self._choose_size()
        return taken

    def release_buffers(self) -> None:
        if self._pipe is not None and not self.held:
            self._supplies.give(self._pipe)
            self._pipe = None

    def _take_pipe(self) -> Pipe:
        pipe = self._supplies.take_large() if self._wants_large else None
        if pipe is None:
            self._wants_large = False
            self._at_once = 0
            try:
                pipe = self._supplies.take()
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise MoverRefusedError("no pipe") from error
                raise
        self._pipe = pipe
        return pipe

    def _choose_size(self) -> None:
        """Note how fast the drain has emptied the pipe; have another pipe where that changes it."""
        self._at_once = self._at_once + 1 if self._pours == 1 else 0
        wants_large = self._pours <= _POURS if self._wants_large else self._at_once >= _KEEPS_UP
        if wants_large is not self._wants_large:
            self._wants_large = wants_large
            self.release_buffers()

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
