"""The world: connections, one kernel, the package's loops and a clock, each moved by a rule."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from freebsd_splice._platform.interface import Readiness

from .kqueue import Kqueue
from .network import Network
from .pipes import Pipes
from .platform import ModelLoop, ModelMailbox, ModelPlatform
from .poller import ModelPoller
from .so_splice import IDLE, QUEUED, RUNNING, ModelledSplice, SoSplice
from .sockets import ModelPeer, ModelSocket
from .tcp import CLOSED, Endpoint, Half

__all__ = ["USERSPACE", "ModelPeer", "ModelSocket", "Rule", "World"]

#: The version of a world whose kernel has no SO_SPLICE, as Linux: userspace serves.
USERSPACE = "userspace"

T = TypeVar("T")

#: The most rounds while the clock stands: far more than any case has bytes for. A package that is
#: never done fails the test, instead of letting it run for ever.
ROUNDS = 20_000


class Rule(NamedTuple):
    """Something that can happen now."""

    name: str
    happen: Callable[[], object]


class World(Network):
    def __init__(self, version: str = "15.1") -> None:
        super().__init__()
        self.version = version
        self.splices_exist = version != USERSPACE
        self.kernel = version if self.splices_exist else "15.1"  # what the rest of it is like
        self.time = 1000.0
        self.automatic = True
        self.counts: Counter[str] = Counter()
        self.waits = 0  # how often the package's loops have looked for reports
        self.blocking_while_spliced: list[tuple[int, int]] = []
        self.reset_on_close: set[Endpoint] = set()
        #: F24: the endpoints whose lock somebody holds, each with the call that waits for it; and
        #: what that call waits for.
        self.locked: set[tuple[Endpoint, str]] = set()
        self.until_unlocked: Callable[[], object] = lambda: None
        #: Calls on a blocking socket that would have waited: a thread of the package would hang.
        self.would_block: list[Endpoint] = []
        #: What others do before the package's next call to the system.
        self.interruption: Callable[[], object] | None = None
        self.pollers_are_full = False  # ENOSPC
        #: Whether a close with bytes unread sends a reset, as Linux does.
        self.resets_unread = False
        self.pipes = Pipes()
        self.sleepers: list[ModelPoller] = []
        self.mailboxes: list[ModelMailbox] = []
        self.loops: list[ModelLoop] = []
        self.halves: list[Half] = []
        self.files: set[int] = set()  # descriptors that aren't sockets
        self._descriptors: dict[int, Endpoint] = {}
        self._numbers = itertools.count(10)
        self._kqueues: list[Kqueue] = []
        self.so_splice = SoSplice(self.kernel, self._kqueues, lambda: self.time)
        #: The case's threads; the clock waits for all of them.
        self.actors: set[threading.Thread] = {threading.current_thread()}
        self._waiting: set[threading.Thread] = set()
        self._turn = threading.Lock()
        self._given: set[int] = set()
        self._rounds = 0  # since the clock last moved
        self._running: ModelLoop | None = None
        self.platform = ModelPlatform(self)
        self.calls = self.platform.calls

    # Making things

    def pair(
        self, send_buffer: int = 64_000, receive_buffer: int = 64_000
    ) -> tuple[ModelSocket, ModelPeer]:
        there, back = Half(send_buffer), Half(send_buffer)
        near = Endpoint(back, there, receive_buffer)
        far = Endpoint(there, back, receive_buffer)
        near.non_blocking = back.is_the_programs = True
        self.halves += [there, back]
        return ModelSocket(self, self.open(near)), ModelPeer(self, far)

    def lone(self, state: int = CLOSED) -> ModelSocket:
        """Make a socket without a peer, not connected or listening."""
        endpoint = Endpoint(Half(1), Half(1), 1)
        endpoint.outgoing.receiver = endpoint
        endpoint.state = state
        return ModelSocket(self, self.open(endpoint))

    def open(self, endpoint: Endpoint) -> int:
        descriptor = next(self._numbers)
        self._descriptors[descriptor] = endpoint
        return descriptor

    def open_file(self) -> int:
        """Make a descriptor that isn't a socket."""
        descriptor = next(self._numbers)
        self.files.add(descriptor)
        return descriptor

    def endpoint(self, descriptor: int) -> Endpoint | None:
        return self._descriptors.get(descriptor)

    def new_kqueue(self) -> Kqueue:
        kqueue = Kqueue(next(self._numbers), self.endpoint, self.count)
        self._kqueues.append(kqueue)
        return kqueue

    def give(self, descriptor: int) -> None:
        """Make a notice readable."""
        self._given.add(descriptor)

    def is_given(self, descriptor: int) -> bool:
        return descriptor in self._given

    def new_number(self) -> int:
        return next(self._numbers)

    def start(self, step: Callable[[], bool], name: str) -> ModelLoop:
        loop = ModelLoop(self, step, name)
        self.loops.append(loop)
        return loop

    def count(self, name: str) -> None:
        self.counts[name] += 1

    def begins(self, name: str) -> None:
        """Count a call of the package to the system, and let others act before it is made."""
        self.counts[name] += 1
        interruption, self.interruption = self.interruption, None
        if interruption is not None:
            interruption()

    def never_blocks(self, endpoint: Endpoint, call: Callable[[], T]) -> T:
        """Make a call of the package, which never waits."""
        try:
            return call()
        except BlockingIOError:
            if not endpoint.non_blocking:
                self.would_block.append(endpoint)
            raise

    def changes(self, descriptor: int) -> int:
        """Return how often the socket has become readable or writable."""
        endpoint = self._descriptors.get(descriptor)
        return endpoint.changes if endpoint is not None else 0

    def sleeps(self, poller: ModelPoller) -> None:
        """Note that the loop that is running now sleeps in that poller."""
        if self._running is not None:
            self._running.sleeps_in = poller

    def may_hang(self, endpoint: Endpoint, call: str) -> None:
        if (endpoint, call) in self.locked:
            self.until_unlocked()

    def readiness(self, descriptor: int) -> Readiness:
        for kqueue in self._kqueues:
            if kqueue.fileno() == descriptor:
                return Readiness.READ if kqueue.pending else Readiness.NONE
        endpoint = self._descriptors[descriptor]
        return (
            (Readiness.READ if endpoint.readable else Readiness.NONE)
            | (Readiness.WRITE if endpoint.writable else Readiness.NONE)
            | (Readiness.HANGUP if endpoint.dead or self._both_over(endpoint) else Readiness.NONE)
            | (Readiness.ERROR if endpoint.has_notice else Readiness.NONE)
        )

    def _both_over(self, endpoint: Endpoint) -> bool:
        return endpoint.cannot_send and endpoint.cannot_receive

    # Actions of a program or a peer

    def shutdown_write(self, endpoint: Endpoint) -> None:
        if endpoint.dead or endpoint.state is not None:
            raise OSError(errno.ENOTCONN, "Socket is not connected")
        endpoint.cannot_send = endpoint.outgoing.fin = True
        self.so_splice.drain_woken(endpoint)

    def shutdown_read(self, endpoint: Endpoint) -> None:
        endpoint.cannot_receive = True
        endpoint.received.clear()
        self.so_splice.source_woken(endpoint)

    def close(self, descriptor: int) -> None:
        endpoint = self._descriptors.pop(descriptor)
        for kqueue in self._kqueues:
            kqueue.forget(descriptor)
        if endpoint not in self._descriptors.values():
            self.so_splice.close(endpoint)
            self.close_endpoint(endpoint, reset=endpoint in self.reset_on_close)

    def close_endpoint(self, endpoint: Endpoint, *, reset: bool = False) -> None:
        """Send a reset, or an ordinary FIN even if bytes are unread (F27)."""
        if endpoint.closed:
            return
        endpoint.closed = True
        if not endpoint.dead:
            if reset or (self.resets_unread and endpoint.received):
                endpoint.outgoing.reset = True
                endpoint.die(0)
            else:
                endpoint.cannot_send = endpoint.outgoing.fin = True

    def resize_send_buffer(self, endpoint: Endpoint, size: int) -> None:
        """Set SO_SNDBUF. Lowering a drain's while bytes are moved into it ends the splice and
        destroys a batch (F26).
        """
        splice = endpoint.drained
        smaller = size < endpoint.outgoing.size
        if splice is not None and smaller and splice.state != IDLE:
            self.so_splice.turn(splice)
            del endpoint.outgoing.unsent[-4096:]
            if splice in self.so_splice.live:
                self.so_splice.end_splice(splice.source)
        endpoint.outgoing.size = size
        endpoint.low_water = min(endpoint.low_water, size)

    def unspliced_by_somebody(self, near: ModelSocket) -> None:
        if near.endpoint.splice is not None:
            self.so_splice.end_splice(near.endpoint)

    # The kernel's worker

    @property
    def splices(self) -> list[ModelledSplice]:
        return self.so_splice.live

    def worker(self, splice: ModelledSplice) -> None:
        self.so_splice.turn(splice)

    def worker_move(self, splice: ModelledSplice) -> None:
        self.so_splice.move(splice)

    def worker_idle(self, splice: ModelledSplice) -> None:
        self.so_splice.idle(splice)

    # Time and the package

    def tick(self, seconds: float) -> None:
        self.time += seconds
        self._rounds = 0
        self.so_splice.expire()

    def turn(self, loop: ModelLoop) -> None:
        before, self._running = self._running, loop
        try:
            if not loop.step():
                self.loops.remove(loop)
        finally:
            self._running = before

    def enabled(self) -> list[Rule]:
        """Return the rules that could happen now, besides the package's loops and the clock."""
        rules = []
        for number, half in enumerate(self.halves):
            if half.is_cut:
                continue
            receiver = half.receiver
            gone = receiver.closed or receiver.dead
            if half.reset:
                rules.append(Rule(f"reset {number}", partial(self.deliver_reset, half)))
            elif half.unsent and (gone or len(receiver.received) < receiver.receive_buffer):
                rules.append(Rule(f"deliver {number}", partial(self.deliver, half)))
            elif half.fin and not half.fin_delivered and not half.unsent:
                rules.append(Rule(f"FIN {number}", partial(self.deliver_fin, half)))
            if half.unacked:
                rules.append(Rule(f"ACK {number}", partial(self.ack, half)))
        for number, splice in enumerate(self.so_splice.live):
            if splice.state == QUEUED:
                rules.append(Rule(f"move {number}", partial(self.worker_move, splice)))
            elif splice.state == RUNNING:
                rules.append(Rule(f"rest {number}", partial(self.worker_idle, splice)))
        if self.so_splice.late:
            rules.append(Rule("late batch", self.so_splice.finish_late))
        return rules

    def package_is_awake(self) -> bool:
        """Return whether one of the package's loops has something to do."""
        return any(box.awake() for box in self.mailboxes) or any(
            sleeper.awake() for sleeper in self.sleepers
        )

    def settle(self) -> bool:
        """Run one round of everything that can happen without the clock; return whether any did."""
        rules = self.enabled()
        for rule in rules:
            if any(rule.name == other.name for other in self.enabled()):
                rule.happen()
        awake = self.package_is_awake()
        if awake:
            for loop in list(self.loops):
                if loop in self.loops and loop.is_awake():
                    self.turn(loop)
        return bool(rules) or awake

    def run_until(self, condition: Callable[[], object], seconds: float = 30.0) -> bool:
        """Let everything happen until the condition holds; False: it doesn't within that time."""
        until = self.time + seconds
        while not condition():
            if self._settled_by_me():
                self._waiting.clear()
            elif not self._all_wait():
                time.sleep(0.0002)  # another of the case's threads has something to do
            elif not self._tick_to_the_next(until):
                return bool(condition())
        return True

    def _settled_by_me(self) -> bool:
        """Run one round, unless another thread is running one: loops run one at a time."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            self._rounds += 1
            assert self._rounds < ROUNDS, "the package is busy for ever with nothing new"
            return self.settle()
        finally:
            self._turn.release()

    def _all_wait(self) -> bool:
        self._waiting.add(threading.current_thread())
        return self._waiting >= self.actors

    def _tick_to_the_next(self, until: float) -> bool:
        """Move the clock to the next deadline; False if there is none before ``until``."""
        self._waiting.clear()
        times = [
            sleeper.sleeps_until for sleeper in self.sleepers if sleeper.sleeps_until is not None
        ]
        times += [made.deadline for made in self.splices if made.deadline is not None]
        if not times or min(times) > until:
            if until < 1e8:
                self.tick(max(0.0, until - self.time))
            while self._settled_by_me():
                pass
            return False
        self.tick(max(0.0, min(times) - self.time))
        return True

    def quiet(self, seconds: float = 0.0) -> None:
        """Let everything happen that can, for that many seconds of the model."""
        self.run_until(lambda: False, seconds)

    def blocking(self, call: Callable[[], T]) -> T:
        """Make a program's blocking call: it returns when it can."""
        result: list[T] = []

        def possible() -> bool:
            try:
                result.append(call())
            except BlockingIOError:
                return False
            return True

        if not self.run_until(possible):
            raise TimeoutError("a call of the modelled program would block for ever")
        return result[0]

    def check_quiet(self) -> None:
        """Check, after all flows have ended, that the package has left nothing."""
        assert not self.so_splice.live, "a splice is still alive"
        assert all(not kqueue.filters for kqueue in self._kqueues), "a filter is left armed"
        if not self.splices_exist:
            assert not any(poller.watched for poller in self.sleepers), "a socket is left watched"
            assert not any(pipe.held for pipe in self.pipes.open), "bytes are left in a pipe"
