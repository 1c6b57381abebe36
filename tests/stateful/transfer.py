"""One splice or relay in a modelled world, and the checks that it must pass."""

from __future__ import annotations

import socket
from contextlib import suppress

from freebsd_splice import Outcome, Reason, Relay, Splice, _runtime
from freebsd_splice._relay import GivenRelay
from freebsd_splice._userspace import flow as userspace_flow
from freebsd_splice._userspace import movers, workers
from model.local_worker import LoopsWorker
from model.world import USERSPACE, ModelPeer, ModelSocket, World

#: Bytes in which no two short pieces are alike.
PATTERN = b"".join(number.to_bytes(3, "big") for number in range(100_000))

#: Kernel calls that a flow may make for each event; more would be a busy loop.
CALLS_AN_EVENT = 40
#: Model seconds within which each end is reported once the world is quiet: a flow looks for lost
#: events at least every second.
REPORTED_WITHIN = 2.5

#: A count that stands still shows it at a look, which comes at every fifth of the idle time; and a
#: time limit is late by at most this.
MAY_BE_LATE = 0.1, 0.25

#: What shows that a proxy's connection lasts.
USUAL = userspace_flow.MANY_MESSAGES, userspace_flow.MUCH_BYTES
#: What is much in a modelled world.
MUCH = 600
#: The bytes that a mover copies at once, at most and at least.
USUAL_COPIES = movers._SCRATCH_BYTES, movers._SMALL_BYTES

KERNEL_CALLS = (
    "set",
    "end",
    "count",
    "kevent",
    "poll",
    "tcp_state",
    "SO_ERROR",
    "peek",
    "push",
    "unread",
)
ENGINE_CALLS = ("recv", "send", "peek", "splice", "SO_ERROR", "is_connected", "watch")


class Direction:
    """One direction: the bytes sent, the bytes that arrived, and the actions that may end it."""

    def __init__(
        self,
        sender: ModelPeer,
        source: ModelSocket,
        drain: ModelSocket,
        receiver: ModelPeer,
        initial: bytes = b"",
        limit: int | None = None,
        is_given_up: bool = False,
        backend: str = "kernel",
    ) -> None:
        self.backend = backend
        self.is_given_up = is_given_up
        self.sender, self.receiver = sender, receiver
        self.source, self.drain = source, drain
        self.source_end, self.drain_end = source.endpoint, drain.endpoint
        self.initial, self.limit = initial, limit
        self.sent = 0
        self.got = bytearray()
        self.unspliced = False
        self.drain_shut = False
        self.source_shut = False

    @property
    def stream(self) -> bytes:
        return self.initial + PATTERN[: self.sent]

    def write(self, count: int) -> None:
        with suppress(OSError):
            self.sent += self.sender.write(PATTERN[self.sent : self.sent + count])

    def read(self, count: int | None = None) -> None:
        self.got += self.receiver.read(count)
        assert self.stream.startswith(self.got), "what arrives is not what was sent"

    def drain_is_dead(self) -> bool:
        return self.drain_shut or self.drain_end.was_reset

    def outcome_is_true(self, outcome: Outcome, asked: set[Reason]) -> None:
        """Check that the reason is one that has occurred, and that the count agrees with it."""
        possible = asked | (
            {Reason.EOF} if self.source_end.incoming.fin_delivered or self.source_shut else set()
        )
        if outcome.bytes == self.limit:
            possible.add(Reason.LIMIT)
        if self.source_end.was_reset:
            possible.add(Reason.SOURCE_ERROR)
        if self.drain_is_dead():
            possible.add(Reason.DRAIN_ERROR)
        if self.unspliced:
            possible.add(Reason.UNSPLICED)
        assert outcome.reason in possible, (outcome, possible)
        assert self.limit is None or outcome.bytes <= self.limit, "a limit is overrun"
        assert outcome.backend == self.backend or self.is_given_up, outcome
        if outcome.reason is Reason.EOF and not self.source_shut:
            assert outcome.bytes == len(self.stream), "EOF before the last byte"
        assert (outcome.error is None) == (
            outcome.reason not in (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR)
        )

    def bytes_are_true(self, outcome: Outcome) -> None:
        """Check, once all is quiet and read, that no byte is lost, doubled or out of order."""
        far = self.receiver.endpoint
        if self.drain_end.was_reset or far.closed or far.dead:
            assert len(self.got) <= outcome.bytes
            return
        assert len(self.got) == outcome.bytes, "the count is not what arrived"
        source = self.source_end
        if source.closed or source.dead or self.source_shut or self.sender.endpoint.dead:
            return
        left = bytes(source.received) + bytes(source.incoming.unsent)
        assert self.got + outcome.unsent + left == self.stream, "bytes are lost or doubled"


class Transfer:
    """The world, the splice or relay in it, and the user's actions."""

    def __init__(self, version: str) -> None:
        self.is_userspace = version == USERSPACE
        self.world = World(version)
        self.world.automatic = False
        self.runtime = _runtime.Runtime(self.world.platform, choose=self.world.platform.choose)
        self._before = _runtime.install(self.runtime)
        self.over: Splice | Relay | None = None
        self.directions: list[Direction] = []
        self.asked: set[Reason] = set()
        self.possible: set[Reason] = set()  # an end for these may come, or may not
        self.events = 0
        self.drain_was_dead = False  # before the last step
        self.idle_timeout: float | None = None
        self.timeout: float | None = None
        self.began_at = 0.0
        if self.is_userspace:
            # What a modelled buffer holds is then much, and more than is copied at once.
            self._set_much(MUCH)
            movers._SCRATCH_BYTES, movers._SMALL_BYTES = 3_000, 700

    def set_up(
        self, relay: bool, limit: int | None, initial: bytes, buffers: int, *, given_up: bool
    ) -> None:
        left, client = self.world.pair(buffers, buffers)
        right, server = self.world.pair(buffers, buffers)
        backend = "userspace" if self.is_userspace else "kernel"
        no_limit = None if relay else limit
        self.directions = [
            Direction(client, left, right, server, initial, no_limit, given_up, backend)
        ]
        if relay:
            self.directions.append(
                Direction(server, right, left, client, is_given_up=given_up, backend=backend)
            )

    def begin(self, idle_timeout: float | None, timeout: float | None = None) -> None:
        direction = self.directions[0]
        self.began_at, self.idle_timeout = self.world.time, idle_timeout
        if direction.is_given_up:
            self._begin_given_up(direction, idle_timeout)
            return
        for end in (direction.source, direction.drain):
            end.setblocking(True)  # F24: the package must make them non-blocking
        self.timeout = timeout
        if len(self.directions) == 2:
            self.over = Relay(
                direction.source,
                direction.drain,
                idle_timeout=idle_timeout,
                timeout=timeout,
                initial=(direction.initial, b""),
            )
        else:
            self.over = Splice(
                direction.source,
                direction.drain,
                max_bytes=direction.limit,
                idle_timeout=idle_timeout,
                timeout=timeout,
                initial=direction.initial,
            )
        if idle_timeout is not None:
            self.asked.add(Reason.IDLE)
        if timeout is not None:
            self.asked.add(Reason.TIMEOUT)

    def _begin_given_up(self, direction: Direction, idle_timeout: float | None) -> None:
        """As a proxy does: userspace begins, and soon the kernel goes on."""
        for each in self.directions:  # a message, after which it is spliced
            each.write(100)
            self.world.deliver(each.sender.outgoing)
        worker = LoopsWorker(self.world.platform)
        self.world.start(worker.step, "the loop")
        if not self.is_userspace:  # there is no kernel to go on
            userspace_flow.MANY_MESSAGES = 1
        self._set_much(MUCH)
        with worker.its_thread():
            self.over = GivenRelay(
                direction.source,  # type: ignore[arg-type]
                direction.drain,  # type: ignore[arg-type]
                worker=worker,
                idle_timeout=idle_timeout,
                initial=(direction.initial, b""),
            )
        if idle_timeout is not None:
            self.asked.add(Reason.IDLE)

    @staticmethod
    def _set_much(count: int) -> None:
        userspace_flow.MUCH_BYTES = count
        setattr(workers, "MUCH_BYTES", count)  # noqa: B010 - the module doesn't export it

    @property
    def done(self) -> bool:
        return self.over is not None and self.over.done

    # Actions of the user and others

    def cancel(self) -> None:
        assert self.over is not None
        if not self.over.done:
            self.asked.add(Reason.CANCELLED)
        self.over.cancel()

    def close(self, left: bool) -> None:
        direction = self.directions[0]
        (direction.source if left else direction.drain).close()
        if not self.done:
            self.asked.add(Reason.CLOSED)

    def unsplice(self, number: int) -> None:
        direction = self.directions[number % len(self.directions)]
        if direction.source_end.splice is not None:
            direction.unspliced = True
            self.world.so_splice.end_splice(direction.source_end)

    def shut_drain(self) -> None:
        direction = self.directions[0]
        if direction.drain.fileno() >= 0 and direction.drain_end.connected:
            direction.drain.shutdown(socket.SHUT_WR)
            direction.drain_shut = True

    def shut_source(self) -> None:
        direction = self.directions[0]
        if direction.source.fileno() >= 0:
            direction.source.shutdown(socket.SHUT_RD)
            direction.source_shut = True

    # Checks

    def check(self) -> None:
        """Check the world after each step."""
        assert not self.world.blocking_while_spliced, "F24: a blocking socket is spliced"
        assert not self.world.would_block, "a blocking call would have waited"
        names = ENGINE_CALLS if self.is_userspace else KERNEL_CALLS
        calls = sum(self.world.counts[name] for name in names)
        assert calls <= CALLS_AN_EVENT * (self.events + 4), "too many calls for what has happened"
        if self.done and isinstance(self.over, Splice) and self.drain_was_dead:
            self.drain_was_dead = False  # once is enough
            outcome = self.over.wait()
            assert outcome.reason in (Reason.DRAIN_ERROR, Reason.LIMIT), "F16: a dead drain"
        self.drain_was_dead = not self.done and self.directions[0].drain_end.was_reset

    def finish(self) -> None:
        """Let everything happen, and check all outcomes."""
        if self.over is None:
            return
        self._settle()
        if not self.done:
            self._is_live()
            for direction in self.directions:
                direction.sender.fin()
            self._settle()
        assert self.done, "no end was reported"
        self._settle()
        outcomes = self._outcomes()
        asked = self.asked | self.possible
        if len(outcomes) == 2 and any(direction.reason is not Reason.EOF for direction in outcomes):
            asked |= {Reason.CANCELLED}
        for direction, outcome in zip(self.directions, outcomes, strict=True):
            direction.outcome_is_true(outcome, asked)
            direction.bytes_are_true(outcome)
            if self.is_userspace:
                self._is_in_time(outcome)
        self._modes_are_back()
        self.world.check_quiet()

    def _is_in_time(self, outcome: Outcome) -> None:
        """Check that no time limit has ended it early."""
        ended_at = self.began_at + outcome.seconds
        if outcome.reason is Reason.TIMEOUT:
            assert self.timeout is not None
            assert outcome.seconds >= self.timeout - 1e-6, "TIMEOUT is early"
        if outcome.reason is Reason.IDLE:
            assert self.idle_timeout is not None
            begun = max(self.began_at, ended_at - self.idle_timeout + 1e-6)
            moved = [at for at in self.world.moved_at if begun < at < ended_at]
            assert outcome.seconds >= self.idle_timeout - 1e-6, "IDLE is early"
            assert not moved, "IDLE in spite of traffic"

    def _modes_are_back(self) -> None:
        """Check that the sockets are blocking again: they were before."""
        for direction in self.directions:
            if not direction.is_given_up and direction.source.fileno() >= 0:
                assert not direction.source_end.non_blocking, "a socket is left non-blocking"

    def _settle(self) -> None:
        """Deliver and read everything, and wait as long as an end may take to be reported."""
        before = -1
        while before != sum(len(direction.got) for direction in self.directions):
            before = sum(len(direction.got) for direction in self.directions)
            self.world.quiet(REPORTED_WITHIN)
            for direction in self.directions:
                direction.read()

    def _is_live(self) -> None:
        """Check, for a transfer that has not ended, that it had no reason to."""
        limits = {Reason.IDLE, Reason.TIMEOUT}
        assert not self.asked - limits, f"{self.asked} and no end"
        if self.is_userspace:
            self._is_not_late()
        for direction in self.directions:
            if direction.drain_shut and len(self.directions) == 2:
                continue  # that direction has ended, and the other one can still be served
            if self.is_userspace and direction.drain_shut and not direction.drain_end.was_reset:
                # poll(2) doesn't show it, so it is noticed with the next byte.
                assert direction.got == direction.stream, "a drain that was shut is not reported"
                continue
            assert not direction.drain_is_dead(), "the drain's death is not reported"
            if direction.unspliced:  # an unsplice may look like an EOF by the time of the look
                assert direction.source_end.incoming.fin_delivered, "an unsplice is not reported"
            assert not direction.source_end.was_reset, "the source's reset is not reported"
            if direction.source_end.incoming.fin_delivered or direction.source_shut:
                assert len(self.directions) == 2, "an EOF is not reported"
                assert direction.receiver.incoming.fin_delivered, "an EOF is not passed on"
            assert direction.got == direction.stream[: direction.limit], "bytes stand still"
            assert direction.limit is None or len(direction.stream) < direction.limit, (
                "a limit is not reported"
            )

    def _is_not_late(self) -> None:
        """Check that no time limit has been missed, for a transfer that has not ended."""
        least, share = MAY_BE_LATE
        moved = max([self.began_at, *self.world.moved_at])
        for limit, since in ((self.timeout, self.began_at), (self.idle_timeout, moved)):
            if limit is not None:
                late = self.world.time - since - limit
                assert late <= max(least, share * limit) + 1e-6, "a time limit is missed"

    def _outcomes(self) -> list[Outcome]:
        assert self.over is not None
        if isinstance(self.over, Relay):
            both = self.over.wait()
            return [both.left_to_right, both.right_to_left]
        return [self.over.wait()]

    def tear_down(self) -> None:
        userspace_flow.MANY_MESSAGES, much = USUAL
        self._set_much(much)
        movers._SCRATCH_BYTES, movers._SMALL_BYTES = USUAL_COPIES
        _runtime.install(self._before)
        self.world.automatic = True
        self.runtime.close()
