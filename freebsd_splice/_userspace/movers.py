"""How bytes get from a source to a drain in userspace: os.splice through a pipe, or a copy.

A mover takes bytes from the source (``fill``), holds them, and pushes them into the drain
(``pour``).  It belongs to one flow; what is costly to make belongs to the worker (``Supplies``).
All calls are non-blocking: BlockingIOError says that the socket has nothing, or no room, now.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

from .._backend import COPY, OS_SPLICE
from .._platform.interface import Endpoint, Pipe, Platform

#: Bytes copied at once at most, and at least: what a slow drain leaves over is kept for each flow.
_SCRATCH_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16
#: Empty pipes that a worker keeps for its next flows.
_SPARE_PIPES = 16

#: What os.splice answers where it cannot serve these sockets, and a copy can.
_REFUSALS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
#: No pipe to be had now.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class MoverRefusedError(Exception):
    """This mover cannot serve this flow.  What it holds can still be taken back."""


class Mover(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def held(self) -> int:
        """Bytes taken from the source that the drain has not taken yet."""
        ...

    def fill(self, source: Endpoint, count: int, *, told: bool = True) -> int:
        """Take up to ``count`` bytes; 0 at EOF.  Only called while nothing is held.

        ``told``: a poller has said that it can.
        """
        ...

    def pour(self, drain: Endpoint) -> int:
        """Push what is held; how many bytes the drain took."""
        ...

    def rest(self) -> None:
        """The flow is going to wait: keep nothing that another flow could use."""
        ...

    def take_back(self) -> bytes:
        """All that is held, which is then held no more."""
        ...


class Supplies:
    """What the movers of one worker share: a buffer, and pipes.  For that worker's thread, except
    ``give``, which a flow that is stopped from elsewhere calls too."""

    def __init__(self, platform: Platform, mover: str | None = None) -> None:
        self.platform = platform
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._kind = mover or (OS_SPLICE if platform.can_splice() else COPY)
        self._pipes: list[Pipe] = []
        self._closed = False

    def mover(self, *, copy: bool = False) -> Mover:
        return CopyMover(self) if copy or self._kind == COPY else SpliceMover(self)

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


class SpliceMover:
    """os.splice: the bytes go from socket to pipe to socket inside the system (F30-F32)."""

    name = OS_SPLICE

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
                if error.errno in _SHORTAGES:
                    raise MoverRefusedError("no pipe") from error
                raise
        if self._platform.peek(source, told=told) == 0:
            return 0
        # Something is there, so that this doesn't block whatever the socket's flags are, and that
        # "nothing" and "EOF" mean: os.splice doesn't get past TCP's urgent mark.
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

    def rest(self) -> None:
        if self._pipe is not None and not self.held:
            self._supplies.give(self._pipe)
            self._pipe = None

    def take_back(self) -> bytes:
        parts = []
        while self.held:
            assert self._pipe is not None
            parts.append(self._platform.read_pipe(self._pipe, self.held))
            self.held -= len(parts[-1])
        self.rest()
        return b"".join(parts)


class CopyMover:
    """recv_into and send, through the worker's buffer."""

    name = COPY

    def __init__(self, supplies: Supplies) -> None:
        self._platform = supplies.platform
        self._scratch = supplies.scratch
        self._view = supplies.scratch[:0]
        self._size = _SCRATCH_BYTES

    @property
    def held(self) -> int:
        return len(self._view)

    def fill(self, source: Endpoint, count: int, *, told: bool = True) -> int:
        taken = self._platform.receive_into(source, self._scratch[: min(count, self._size)])
        self._view = self._scratch[:taken]
        return taken

    def pour(self, drain: Endpoint) -> int:
        taken = self._platform.send(drain, self._view)
        self._view = self._view[taken:]
        if taken == self._size:  # all of it at once: the drain keeps up
            self._size = min(2 * self._size, _SCRATCH_BYTES)
        return taken

    def rest(self) -> None:
        # The buffer is the worker's: other flows fill it while this one waits for its drain.
        if self._view and self._view.obj is self._scratch.obj:
            self._view = memoryview(bytes(self._view))
            self._size = max(self._size // 4, _SMALL_BYTES)

    def take_back(self) -> bytes:
        data, self._view = bytes(self._view), self._scratch[:0]
        return data


def _refusal(error: OSError) -> Exception:
    if error.errno in _REFUSALS:
        return MoverRefusedError(os.strerror(error.errno or 0))
    return error
