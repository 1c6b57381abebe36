"""The state machine for the userspace engine, over sockets of a kernel without SO_SPLICE."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from freebsd_splice import Reason
from model.world import USERSPACE

from .rules import TransferRules, numbers


class EngineRules(TransferRules):
    version = USERSPACE

    @initialize(
        kind=st.sampled_from(["splice", "relay", "relay of sockets given up"]),
        limit=st.none() | st.sampled_from([0, 1, 100, 6_000, 10_000]),
        initial=st.sampled_from([b"", b"", b"ahead", b"a" * 7_000]),
        buffers=st.sampled_from([4_096, 20_000]),
        pipe_size=st.sampled_from([0, 500, 8_192]),
        resets_unread=st.booleans(),
        idle_timeout=st.sampled_from([None, None, 0.5]),
        begins=st.booleans(),
    )
    def set_up_the_engine(
        self,
        kind: str,
        limit: int | None,
        initial: bytes,
        buffers: int,
        pipe_size: int,
        resets_unread: bool,
        idle_timeout: float | None,
        begins: bool,
    ) -> None:
        self.transfer.world.pipes.size = pipe_size
        self.transfer.world.pipes.largest = 4 * pipe_size
        self.transfer.world.resets_unread = resets_unread
        self._set_up(kind, limit, initial, buffers, idle_timeout)
        if begins and self.transfer.over is None:
            self.begin(idle_timeout)

    # The user

    @precondition(lambda self: self.transfer.over is None)
    @rule(timeout=st.sampled_from([0.1, 1.0]))
    def begin_with_a_time_limit(self, timeout: float) -> None:
        self._step()
        self.transfer.begin(None, timeout)

    @rule(seconds=st.sampled_from([0.2, 0.4, 1.0]))
    def a_pause(self, seconds: float) -> None:
        """While nobody sends, what is under way arrives."""
        self.transfer.events += 20
        self.transfer.world.quiet(seconds)

    # The system

    @rule(number=numbers)
    def a_notice_comes(self, number: int) -> None:
        """Into the error queue: only the socket's owner may read it."""
        self._step()
        endpoint = self._direction(number).source_end
        endpoint.has_notice = True
        endpoint.changes += 1

    @rule(number=numbers)
    def a_notice_is_read(self, number: int) -> None:
        self._direction(number).source_end.has_notice = False

    @rule(is_so=st.booleans())
    def there_are_no_pipes(self, is_so: bool) -> None:
        self.transfer.world.pipes.none_left = is_so

    @rule(is_so=st.booleans())
    def pipes_are_refused(self, is_so: bool) -> None:
        """As os.splice refuses bytes with an urgent mark."""
        self.transfer.world.pipes.refuses = is_so

    @rule(is_so=st.booleans())
    def pollers_are_full(self, is_so: bool) -> None:
        self.transfer.world.pollers_are_full = is_so
        if is_so:
            self.transfer.possible.add(Reason.SOURCE_ERROR)

    @rule(numbers=st.lists(st.integers(0, 15), min_size=1, max_size=4))
    def the_next_call_is_interrupted(self, numbers: list[int]) -> None:
        """Between two calls of one turn the network goes on."""
        self._step()
        self.transfer.world.interruption = lambda: self._happen(numbers)
