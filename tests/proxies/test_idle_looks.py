"""Looks at relays for their idle time, with a loop and a clock of the test's."""

from __future__ import annotations

from collections.abc import Callable

from freebsd_splice.proxies._idle_looks import IdleLooks


class Loop:
    """An event loop's clock, which is the platform's as well, and the look that is planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self.planned: tuple[float, Callable[[], object]]

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], object]) -> object:
        self.planned = when, call
        return self.planned

    def call_later(self, seconds: float, call: Callable[[], object]) -> object:
        return self.call_at(self.now + seconds, call)

    def look(self) -> None:
        """Let time pass until the look that is planned, and take it."""
        self.now, call = self.planned
        call()


class Relay:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.moved = 0
        self.look_takes = 0.0
        self.looked_at: list[float] = []
        self.ended: float | None = None

    def traffic(self) -> int:
        self.looked_at.append(self._loop.now)
        self._loop.now += self.look_takes
        return self.moved

    def end_idle(self) -> None:
        self.ended = self._loop.now


def made(loop: Loop) -> IdleLooks:
    return IdleLooks(loop, loop.time, 1_000.0)  # type: ignore[arg-type]


def test_each_is_looked_at_when_it_is_due() -> None:
    loop = Loop()
    looks, first, second = made(loop), Relay(loop), Relay(loop)
    looks.begin(first)
    loop.now = 50.0
    looks.begin(second)
    for _ in range(4):
        loop.look()
    assert (first.looked_at, second.looked_at) == ([100.0, 200.0], [150.0, 250.0])
    looks.forget(first)
    for _ in range(3):
        loop.look()
    assert second.looked_at[2:] == [350.0, 450.0]


def test_an_end_is_late_by_a_fifth_at_most() -> None:
    loop = Loop()
    looks, relay = made(loop), Relay(loop)
    looks.begin(relay)
    loop.look()
    relay.moved = 1  # just after a look
    while relay.ended is None:
        loop.look()
    assert 1_100.0 <= relay.ended <= 1_300.0


def test_traffic_counts_from_when_it_is_seen() -> None:
    """Many may be looked at in one round, which takes its time; no end is early."""
    loop = Loop()
    looks, relay = made(loop), Relay(loop)
    looks.begin(relay)
    relay.moved, relay.look_takes = 1, 150.0
    loop.look()
    relay.look_takes = 0.0
    while relay.ended is None:
        loop.look()
    assert relay.ended >= 1_250.0


def test_a_relay_without_any_traffic_ends_in_time() -> None:
    loop = Loop()
    looks, relay = made(loop), Relay(loop)
    looks.begin(relay)
    while relay.ended is None:
        loop.look()
    assert relay.ended == 1_100.0  # its first look is one at traffic


def test_a_look_that_comes_late_ends_nothing_yet() -> None:
    """A process that was stopped: bytes may wait that nobody could move."""
    loop = Loop()
    looks, relay = made(loop), Relay(loop)
    looks.begin(relay)
    loop.planned = 5_000.0, loop.planned[1]
    loop.look()
    assert relay.ended is None
    relay.moved = 1
    loop.look()
    assert relay.ended is None
    while relay.ended is None:
        loop.look()
    assert relay.ended >= 6_100.0
