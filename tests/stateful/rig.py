"""Two connections to splice in a modelled world, in which nothing is left to chance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from freebsd_splice import Outcome, Reason, Splice, _runtime
from freebsd_splice._kernel.lost_events import FIRST_SECONDS
from model.so_splice import ModelledSplice
from model.world import World

#: Model seconds for what the second look finds out soon after the start, and at the rarest.
SOON, LATE = 3 * FIRST_SECONDS, 2.2
#: The same for what takes more than one look.
TWO_SOON, TWO_LATE = 10 * FIRST_SECONDS, 1.2


class Rig:
    """Two connections in a world whose clock and worker stand still until they are told to go."""

    def __init__(self, version: str) -> None:
        self.world = World(version)
        self.world.automatic = False
        self.kernel = self.world.so_splice
        self.source, self.sender = self.world.pair(20_000, 40_000)
        self.drain, self.receiver = self.world.pair(20_000, 8_192)

    def splice(self, limit: int | None = None, **options: float) -> Splice:
        made = Splice(self.source, self.drain, max_bytes=limit, **options)  # type: ignore[arg-type]
        self.now()
        return made

    def now(self) -> None:
        """Everything that happens without time passing."""
        self.world.quiet(0.0)

    def arrive(self, data: bytes) -> None:
        """Bytes at the source; the worker has not run yet."""
        assert self.sender.write(data) == len(data)
        self.world.deliver(self.sender.outgoing)

    def fill_the_drain(self, count: int = 20_000) -> bytes:
        """Bytes that nobody reads: 28,192 fit into the drain's and its reader's buffers."""
        data = b"".join(number.to_bytes(2, "big") for number in range(count // 2))
        for at in range(0, len(data), 5_000):
            self.arrive(data[at : at + 5_000])
            self.now()
        return data

    def interrupted(self) -> ModelledSplice:
        """The worker has moved what there was, and has not come to rest."""
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
        """It is over by now, so."""
        assert splice.done, "no end was reported"
        outcome = splice.wait()
        assert (outcome.reason, outcome.bytes) == (reason, count), outcome
        assert outcome.backend == "kernel"
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
