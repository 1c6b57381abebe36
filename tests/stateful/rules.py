"""The state machine, which runs the world's rules and the user's actions in any order.

``TransferRules`` has what happens to every transfer. ``KernelRules`` adds what a kernel that
splices does, and ``EngineRules`` (``engine_rules.py``) what the userspace engine meets.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.so_splice import PUSHING, SETTING_AGAIN
from model.world import USERSPACE

from .transfer import Direction, Transfer

numbers = st.integers(0, 7)
sizes = st.sampled_from([1, 2, 100, 2_500, 6_000, 30_000])


class TransferRules(RuleBasedStateMachine):
    version = "15.1"

    def __init__(self) -> None:
        super().__init__()
        self.transfer = Transfer(self.version)

    # The user

    @precondition(lambda self: self.transfer.over is None)
    @rule(idle_timeout=st.sampled_from([None, None, 0.5, 5.0]))
    def begin(self, idle_timeout: float | None) -> None:
        self._step()
        self.transfer.begin(idle_timeout)

    @precondition(
        lambda self: self.transfer.over is None and not self.transfer.directions[0].is_given_up
    )
    @rule()
    def the_drain_is_shut_down_before(self) -> None:
        """F21: nothing may be spliced into it."""
        self._step()
        self.transfer.shut_drain()

    @precondition(lambda self: self.transfer.over is not None)
    @rule()
    def count(self) -> None:
        self._step()
        assert self.transfer.over is not None
        assert self.transfer.over.bytes is not None

    @precondition(lambda self: self.transfer.over is not None)
    @rule(what=st.sampled_from(["cancel", "close left", "close right", "shut down"]))
    def something_drastic(self, what: str) -> None:
        self._step()
        if what == "cancel":
            self.transfer.cancel()
        elif self._direction(0).is_given_up:
            return  # nobody else has them
        elif what == "shut down":
            self.transfer.shut_drain()
        else:
            self.transfer.close(what == "close left")

    # The peers

    @rule(number=numbers, size=sizes)
    def write(self, number: int, size: int) -> None:
        self._step()
        self._direction(number).write(size)

    @rule(number=numbers, size=sizes)
    def read(self, number: int, size: int) -> None:
        self._step()
        self._direction(number).read(size)

    @rule(number=numbers)
    def half_close(self, number: int) -> None:
        self._step()
        direction = self._direction(number)
        if not direction.sender.endpoint.dead:
            direction.sender.fin()

    @rule(left=st.booleans(), gently=st.booleans())
    def peer_goes(self, left: bool, gently: bool) -> None:
        self._step()
        direction = self._direction(0)
        peer = direction.sender if left else direction.receiver
        if gently:
            peer.close()
        else:
            peer.reset()

    # The network, and the kernel where it splices

    @rule(number=st.integers(0, 15))
    def something_happens(self, number: int) -> None:
        self._step()
        rules = self.transfer.world.enabled()
        if rules:
            rules[number % len(rules)].happen()

    @rule(number=numbers, size=sizes)
    def a_segment_arrives(self, number: int, size: int) -> None:
        self._step()
        halves = self.transfer.world.halves
        self.transfer.world.deliver(halves[number % len(halves)], size)

    # The package's threads, and time

    @rule(number=numbers)
    def a_thread_runs(self, number: int) -> None:
        self._step()
        loops = [
            loop
            for loop in self.transfer.world.loops
            if self.version != USERSPACE or loop.is_awake()
        ]
        if loops:
            self.transfer.world.turn(loops[number % len(loops)])

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self._step()
        self.transfer.world.tick(seconds)

    @rule()
    def everything_happens(self) -> None:
        self.transfer.events += 20
        self.transfer.world.quiet(0.05)

    # The invariant

    @invariant()
    def holds(self) -> None:
        if self.transfer.directions:
            self.transfer.check()

    def teardown(self) -> None:
        try:
            if self.transfer.directions:
                self.transfer.finish()
        finally:
            self.transfer.tear_down()

    def _set_up(
        self,
        kind: str,
        limit: int | None,
        initial: bytes,
        buffers: int,
        idle_timeout: float | None = None,
    ) -> None:
        given_up = kind == "relay of sockets given up"
        self.transfer.set_up(kind != "splice", limit, initial, buffers, given_up=given_up)
        if given_up:  # a connection has to last before anything is special about it
            self.begin(idle_timeout)

    def _happen(self, numbers: list[int]) -> None:
        for number in numbers:
            rules = self.transfer.world.enabled()
            network = [rule for rule in rules if not rule.name.startswith(("move", "rest"))]
            if network:
                network[number % len(network)].happen()

    def _step(self) -> None:
        self.transfer.events += 1

    def _direction(self, number: int) -> Direction:
        return self.transfer.directions[number % len(self.transfer.directions)]


class KernelRules(TransferRules):
    """With a kernel that splices."""

    @initialize(
        kind=st.sampled_from(["splice", "relay", "relay of sockets given up"]),
        limit=st.none() | st.sampled_from([0, 1, 100, 6_000, 10_000]),
        initial=st.sampled_from([b"", b"", b"ahead", b"a" * 7_000]),
        buffers=st.sampled_from([4_096, 20_000]),
    )
    def set_up(self, kind: str, limit: int | None, initial: bytes, buffers: int) -> None:
        self._set_up(kind, limit, initial, buffers)

    @precondition(lambda self: self.transfer.over is not None)
    @rule()
    def unsplice(self) -> None:
        self._step()
        if not self._direction(0).is_given_up:
            self.transfer.unsplice(0)

    @rule(numbers=st.lists(st.integers(0, 15), min_size=1, max_size=6))
    def the_worker_is_interrupted(self, numbers: list[int]) -> None:
        """F14: between its last bytes and its becoming idle."""
        self._step()
        for splice in self.transfer.world.splices:
            if splice.state == "queued":
                self.transfer.world.worker_move(splice)
                break
        self._happen(numbers)

    @rule(numbers=st.lists(st.integers(0, 15), min_size=1, max_size=4))
    def the_next_call_is_interrupted(self, numbers: list[int]) -> None:
        """F19: an event between the registration and the splice is stale."""
        self._step()
        self.transfer.world.so_splice.during_set = lambda: self._happen(numbers)

    @rule()
    def a_dying_drain_takes_a_batch_with_it(self) -> None:
        self.transfer.world.so_splice.vanish = True

    @precondition(lambda self: self.version == "openbsd")
    @rule()
    def limits_are_met_in_two_parts(self) -> None:
        self.transfer.world.so_splice.short_splices = True

    @precondition(lambda self: self.version == "openbsd")
    @rule(what_helps=st.sampled_from([PUSHING, SETTING_AGAIN]))
    def a_splice_stands_still(self, what_helps: str) -> None:
        """F38: until it is pushed, or set again."""
        self.transfer.world.so_splice.stall = what_helps
