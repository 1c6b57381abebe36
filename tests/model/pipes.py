"""``os.splice`` between modelled sockets and pipes, as Linux has it (F30 to F32)."""

from __future__ import annotations

import errno

from .tcp import Endpoint, fail


class ModelPipe:
    """A pipe of the modelled system."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = bytearray()


class Pipes:
    """All pipes, and whether there are any to be had."""

    def __init__(self) -> None:
        self.size = 0  # of a usual pipe, in bytes; 0: this system has no os.splice
        self.largest = 0  # of a large one; 0: as the usual ones
        self.none_left = False  # EMFILE
        self.refuses = False  # os.splice can't serve these sockets: EINVAL
        self.open: list[ModelPipe] = []
        self.made = 0  # ever

    def make(self, is_large: bool) -> ModelPipe:
        if self.none_left:
            raise fail(errno.EMFILE)
        self.made += 1
        self.open.append(ModelPipe(max(self.size, self.largest) if is_large else self.size))
        return self.open[-1]

    def close(self, pipe: ModelPipe) -> None:
        assert not pipe.held, "F32: a pipe is closed with bytes in it"
        self.open.remove(pipe)

    def fill(self, source: Endpoint, pipe: ModelPipe, count: int) -> int:
        if self.refuses:
            raise fail(errno.EINVAL)
        data = source.receive(min(count, pipe.size - len(pipe.held)))
        pipe.held += data
        return len(data)

    def pour(self, pipe: ModelPipe, drain: Endpoint, count: int) -> int:
        if self.refuses:
            raise fail(errno.EINVAL)
        taken = drain.send(bytes(pipe.held[:count]))
        del pipe.held[:taken]
        return taken

    def read(self, pipe: ModelPipe, count: int) -> bytes:
        data = bytes(pipe.held[:count])
        del pipe.held[: len(data)]
        return data
