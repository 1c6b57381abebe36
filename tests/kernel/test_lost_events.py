"""When the second look looks, and at what; what the sockets show is scripted."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from freebsd_splice._core.timers import Timers
from freebsd_splice._kernel.lost_events import LostEvents
from freebsd_splice._platform.kernel_interface import PollBits, capabilities_of
from model.kqueue import ModelPollSet
from support.platforms import SteppedPlatform


class ScriptedSockets:
    """What poll(2) and FIONREAD would say; counts the looks."""

    def __init__(self, system: str) -> None:
        self.shown: dict[int, PollBits] = {}
        self.bytes: dict[int, int] = {}
        self.looks: list[list[int]] = []
        self.broken = False
        self.asked: list[int] = []  # by FIONREAD
        self.capabilities = capabilities_of(system, (15, 1))

    def poll_set(self) -> RecordedPollSet:
        return RecordedPollSet(self)

    def unread(self, descriptor: int) -> int:
        self.asked.append(descriptor)
        return self.bytes.get(descriptor, 0)


class RecordedPollSet(ModelPollSet):
    """The model's poll(2), which notes down what it is asked, or fails."""

    def __init__(self, sockets: ScriptedSockets) -> None:
        super().__init__(
            lambda descriptor: sockets.shown.get(descriptor, PollBits.NONE), lambda call: None
        )
        self._sockets = sockets

    def look(self) -> list[tuple[int, PollBits]]:
        if self._sockets.broken:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self._sockets.looks.append(sorted(self._asked))
        return super().look()


class Flow:
    """Counts what it is told."""

    def __init__(self, source: int, drain: int, counts: bool = False) -> None:
        self.pair = (source, drain)
        self.counts = counts
        self.woken = 0
        self.compared = 0
        self.waiting = 0

    def wake(self) -> None:
        self.woken += 1

    def compare_count(self) -> None:
        self.compared += 1

    def bytes_wait(self) -> None:
        self.waiting += 1


class Fixture:
    def __init__(self, system: str = "FreeBSD") -> None:
        self.platform = SteppedPlatform()
        self.timers = Timers(self.platform)
        self.sockets = ScriptedSockets(system)
        self.looks = LostEvents(self.sockets, self.timers)  # type: ignore[arg-type]

    def times(self, seconds: float, step: float = 0.005) -> list[float]:
        """When a look was taken, in milliseconds from now."""
        found = []
        for tick in range(round(seconds / step)):
            before = len(self.sockets.looks)
            self.platform.advance(step)
            if len(self.sockets.looks) > before:
                found.append((tick + 1) * step)
        return [round(1000 * moment) for moment in found]


@pytest.fixture
def made() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.timers.close()


@pytest.fixture
def on_openbsd() -> Iterator[Fixture]:
    fixture = Fixture("OpenBSD")
    yield fixture
    fixture.timers.close()


def test_it_starts_at_10_ms_and_doubles_to_a_second(made: Fixture) -> None:
    """F14: a short answer ends in a FIN all the time."""
    made.looks.begin(Flow(1, 2))
    times = made.times(5)
    steps = [after - before for before, after in zip([0, *times], times, strict=False)]
    assert steps[:7] == pytest.approx([10, 20, 40, 80, 160, 320, 640], abs=5)
    assert steps[7:] == pytest.approx([1000] * len(steps[7:]), abs=5)
    assert len(steps) > 9


def test_at_a_second_one_look_serves_all(made: Fixture) -> None:
    for number in range(10):
        made.looks.begin(Flow(2 * number, 2 * number + 1))
    made.times(3, 0.05)
    made.sockets.looks.clear()
    made.times(1, 0.05)
    assert made.sockets.looks == [list(range(20))]


def test_a_flow_that_begins_anew_is_looked_at_soon_again(made: Fixture) -> None:
    flow = Flow(1, 2)
    made.looks.begin(flow)
    made.times(3, 0.05)
    made.looks.again(flow)
    assert made.times(0.1)[:2] == pytest.approx([10, 30], abs=5)


def test_again_is_nothing_to_one_that_is_over(made: Fixture) -> None:
    flow = Flow(1, 2)
    made.looks.begin(flow)
    made.looks.end(flow)
    made.looks.again(flow)
    assert made.times(3, 0.05) == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("descriptor", "shown", "unread", "woken"),
    [
        (1, PollBits.READ_HANGUP, 0, True),
        (1, PollBits.HANGUP, 0, True),
        (1, PollBits.READ_HANGUP, 5, False),  # the kernel has still to come to the end
        (1, PollBits.HANGUP, 5, False),
        (1, PollBits.WRITE, 0, False),  # any source that isn't a drain as well
        (2, PollBits.WRITE, 0, True),
        (2, PollBits.HANGUP, 0, True),
        (2, PollBits.READ_HANGUP, 0, False),
    ],
)
def test_what_shows_an_end(
    made: Fixture, late: bool, descriptor: int, shown: PollBits, unread: int, woken: bool
) -> None:
    """F14, F20, F29"""
    flow = Flow(1, 2)
    made.looks.begin(flow)
    if late:
        made.times(3, 0.05)
    made.sockets.shown[descriptor] = shown
    made.sockets.bytes[descriptor] = unread
    made.times(1.1 if late else 0.01)
    assert flow.woken == woken


def test_two_flows_of_a_pair_are_told_apart(made: Fixture) -> None:
    there, back = Flow(1, 2), Flow(2, 1)
    made.looks.begin(there)
    made.looks.begin(back)
    made.times(3, 0.05)
    made.sockets.shown[2] = PollBits.READ_HANGUP
    made.times(1, 0.05)
    assert (there.woken, back.woken) == (0, 1)
    made.looks.end(back)
    made.sockets.shown[2] = PollBits.WRITE
    made.times(1, 0.05)
    assert (there.woken, back.woken) == (1, 1)


def test_a_limit_is_compared_at_each_look(made: Fixture) -> None:
    """F19: met exactly behind a full drain, it gives no event."""
    limited, unlimited = Flow(1, 2, counts=True), Flow(3, 4)
    made.looks.begin(limited)
    made.looks.begin(unlimited)
    looks = len(made.times(4, 0.05))
    assert limited.compared >= looks - 1
    assert unlimited.compared == 0


def test_a_writable_drain_is_no_end_where_drains_are_not_hidden(on_openbsd: Fixture) -> None:
    """F25: OpenBSD's poll(2) calls a live drain writable."""
    flow = Flow(1, 2)
    on_openbsd.looks.begin(flow)
    on_openbsd.sockets.shown[2] = PollBits.WRITE
    on_openbsd.times(3, 0.05)
    assert (flow.woken, flow.waiting) == (0, 0)
    on_openbsd.sockets.shown[2] = PollBits.WRITE | PollBits.HANGUP
    on_openbsd.times(1, 0.05)
    assert flow.woken == 1


@pytest.mark.parametrize(
    ("shown", "unread", "waiting"),
    [(PollBits.WRITE, 5, True), (PollBits.WRITE, 0, False), (PollBits.NONE, 5, False)],
    ids=["bytes and room", "no bytes", "no room"],
)
def test_bytes_wait_where_the_drain_has_room(
    on_openbsd: Fixture, shown: PollBits, unread: int, waiting: bool
) -> None:
    """F38: and one that is full is asked nothing more."""
    flow = Flow(1, 2, counts=True)
    on_openbsd.looks.begin(flow)
    on_openbsd.sockets.shown[2] = shown
    on_openbsd.sockets.bytes[1] = unread
    on_openbsd.times(0.01)
    assert (flow.waiting, flow.compared, flow.woken) == (waiting, not waiting, 0)
    assert on_openbsd.sockets.asked == ([1] if shown else [])


def test_freebsd_is_not_asked_what_waits(made: Fixture) -> None:
    flow = Flow(1, 2)
    made.looks.begin(flow)
    made.sockets.shown[2] = PollBits.WRITE
    made.sockets.bytes[1] = 5
    made.times(3, 0.05)
    assert flow.woken
    assert not flow.waiting
    assert not made.sockets.asked


def test_a_kernel_that_does_not_stall_is_not_asked_what_waits(on_openbsd: Fixture) -> None:
    flow = Flow(1, 2)
    sockets = on_openbsd.sockets
    sockets.capabilities = replace(sockets.capabilities, stalls=False)
    on_openbsd.looks.begin(flow)
    sockets.shown[2] = PollBits.WRITE
    sockets.bytes[1] = 5
    on_openbsd.times(3, 0.05)
    assert (flow.waiting, sockets.asked) == (0, [])


def test_the_next_look_at_waiting_bytes_comes_soon(on_openbsd: Fixture) -> None:
    """F38: two looks tell a stall from traffic, and two seconds would be long."""
    flow = Flow(1, 2)
    on_openbsd.looks.begin(flow)
    on_openbsd.times(3, 0.05)
    on_openbsd.sockets.shown[2] = PollBits.WRITE
    on_openbsd.sockets.bytes[1] = 5
    times = on_openbsd.times(4)
    assert times[0] <= 1000
    steps = [after - before for before, after in pairwise(times)]
    assert steps[:3] == pytest.approx([125, 250, 500], abs=10)
    assert max(steps) <= 1010


def test_an_echo_can_be_looked_at_and_ended(made: Fixture) -> None:
    """F9: a socket that is its own drain."""
    flow = Flow(1, 1)
    made.looks.begin(flow)
    made.times(3, 0.05)
    made.looks.end(flow)
    assert made.times(2, 0.05) == []


def test_without_flows_there_is_no_look(made: Fixture) -> None:
    flow = Flow(1, 2)
    made.looks.begin(flow)
    made.times(3, 0.05)
    made.looks.end(flow)
    made.times(1, 0.05)
    assert not made.timers._heap


@pytest.mark.parametrize("after", [0.0, 5.0], ids=["early", "late"])
def test_a_look_that_fails_is_not_the_last(
    made: Fixture, after: float, caplog: pytest.LogCaptureFixture
) -> None:
    flow = Flow(1, 2)
    made.looks.begin(flow)
    made.times(after)
    made.sockets.broken = True
    made.times(1.1)
    assert "Cannot allocate memory" in caplog.text
    made.sockets.broken = False
    made.sockets.shown[1] = PollBits.READ_HANGUP
    made.times(1.1)
    assert flow.woken
