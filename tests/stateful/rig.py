"""Two connections to splice in a modelled world where nothing is left to chance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from freebsd_splice import Outcome, Reason, Splice, _runtime
from freebsd_splice._kernel.lost_events import FIRST_SECONDS
from model.so_splice import ModelledSplice
from model.world import World

#: Model seconds until one look for lost events has been made: soon after the start, and later, when
#: the looks are rarest.
SOON, LATE = 3 * FIRST_SECONDS, 2.2
#: The same for an end that takes more than one look.
TWO_SOON, TWO_LATE = 10 * FIRST_SECONDS, 1.2


class Rig:
    """Two connections in a world whose clock and worker move only when a scenario says so."""

    def __init__(self, version: str) -> None:
        self.world = World(version)
        self.world.automatic = False
        self.kernel = self.world.so_splice
        self.backend = "kernel" if self.world.splices_exist else "userspace"
        self.source, self.sender = self.world.pair(20_000, 40_000)
        self.drain, self.receiver = self.world.pair(20_000, 8_192)

    def splice(self, limit: int | None = None, **options: float) -> Splice:
        made = Splice(self.source, self.drain, max_bytes=limit, **options)  # type: ignore[arg-type]
        self.now()
        return made

    def now(self) -> None:
        """Let everything happen that can without time passing."""
        self.world.quiet(0.0)

    def arrive(self, data: bytes) -> None:
        """Deliver bytes to the source, without running the worker."""
        assert self.sender.write(data) == len(data)
        self.world.deliver(self.sender.outgoing)

    def fill_the_drain(self, count: int = 20_000) -> bytes:
        """Move ``count`` bytes that nobody reads, and return them.

        28,192 bytes fit into the drain's and its reader's buffers.
        """
        data = b"".join(number.to_bytes(2, "big") for number in range(count // 2))
        for at in range(0, len(data), 5_000):
            self.arrive(data[at : at + 5_000])
            self.now()
        return data

    def interrupted(self) -> ModelledSplice:
        """Let the worker move what has arrived, and interrupt it before it becomes idle."""
        [splice] = self.world.splices
        self.world.worker_move(splice)
        return splice

    def read(self) -> bytes:
        got = b""
        while piece := self.receiver.read():
            got += piece
            self.now()
        return got

    def ended(self, splice: Splice, reason: Reason, count: int) -> Outcome:
        """Check that the splice has ended with that reason and count; return its outcome."""
        assert splice.done, "no end was reported"
        outcome = splice.wait()
        assert (outcome.reason, outcome.bytes) == (reason, count), outcome
        assert outcome.backend == self.backend
        return outcome


@contextmanager
def rig(version: str) -> Iterator[Rig]:
    made = Rig(version)
    runtime = _runtime.Runtime(made.world.platform, choose=made.world.platform.choose)
    before = _runtime.install(runtime)
    try:
        yield made
    finally:
        _runtime.install(before)
        made.world.automatic = True
        runtime.close()
        made.world.check_quiet()
