"""kqueue's read and write filters with EV_CLEAR, and poll(2), over modelled endpoints."""

from __future__ import annotations

import enum
from collections.abc import Callable

from freebsd_splice._platform.interface import Readiness
from freebsd_splice._platform.kernel_interface import PollBits

from .tcp import Endpoint


class ModelPollBits(enum.Flag):
    """The bits that poll(2) shows, by their POLL… names."""

    NONE = 0
    IN = enum.auto()
    OUT = enum.auto()
    HUP = enum.auto()
    RDHUP = enum.auto()


def poll_bits(endpoint: Endpoint, openbsd: bool) -> ModelPollBits:
    """Return everything that poll(2) would show of that socket if asked for all bits."""
    bits = ModelPollBits.NONE
    if endpoint.readable or endpoint.dead:
        bits |= ModelPollBits.IN
    if endpoint.cannot_receive and not openbsd:
        bits |= ModelPollBits.IN | ModelPollBits.RDHUP  # F15: spliced or not; F39: not on OpenBSD
    if endpoint.dead:
        bits |= ModelPollBits.HUP
    elif endpoint.writable:
        bits |= ModelPollBits.OUT
    return bits


def as_poll_bits(bits: ModelPollBits) -> PollBits:
    return (
        (PollBits.READ_HANGUP if ModelPollBits.RDHUP in bits else PollBits.NONE)
        | (PollBits.HANGUP if ModelPollBits.HUP in bits else PollBits.NONE)
        | (PollBits.WRITE if ModelPollBits.OUT in bits else PollBits.NONE)
    )


Lookup = Callable[[int], "Endpoint | None"]


class Kqueue:
    """``EndEvents``: a set of filters; each is pending or not, as events merge."""

    def __init__(self, descriptor: int, lookup: Lookup, count: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._lookup = lookup
        self._count = count
        self.filters: dict[tuple[int, Readiness], Endpoint] = {}
        self.pending: dict[tuple[int, Readiness], None] = {}  # in order

    def fileno(self) -> int:
        return self._descriptor

    def arm(self, source: int, drain: int) -> list[tuple[int, Readiness]]:
        self._count("kevent")
        for descriptor, which in ((source, Readiness.READ), (drain, Readiness.WRITE)):
            endpoint = self._lookup(descriptor)
            if endpoint is None:
                raise OSError(9, "Bad file descriptor")
            self.filters[descriptor, which] = endpoint
            self._check(descriptor, which, endpoint)
        return self.collect()

    def disarm(self, source: int, drain: int) -> None:
        self._count("kevent")
        for event in ((source, Readiness.READ), (drain, Readiness.WRITE)):
            del self.filters[event]
            self.pending.pop(event, None)

    def collect(self) -> list[tuple[int, Readiness]]:
        self._count("kevent")
        events = list(self.pending)
        self.pending.clear()
        return events

    def shows_eof(self, descriptor: int, which: Readiness) -> bool:
        """Return whether an event of that filter has EV_EOF."""
        watched = self.filters[descriptor, which]
        return watched.cannot_receive if which is Readiness.READ else watched.cannot_send

    def activate(self, endpoint: Endpoint, woken: Readiness) -> None:
        """Wake the endpoint's readers or writers: make filters pending whose condition holds."""
        for (descriptor, which), watched in self.filters.items():
            if watched is endpoint and which is woken:
                self._check(descriptor, which, endpoint)

    def _check(self, descriptor: int, which: Readiness, endpoint: Endpoint) -> None:
        if endpoint.readable if which is Readiness.READ else endpoint.writable:
            self.pending[descriptor, which] = None

    def forget(self, descriptor: int) -> None:
        """Drop the filters of a descriptor that is closed."""
        for which in (Readiness.READ, Readiness.WRITE):
            self.filters.pop((descriptor, which), None)
            self.pending.pop((descriptor, which), None)

    def close(self) -> None:
        self.filters.clear()
        self.pending.clear()

    def abandon(self) -> None: ...


class ModelPollSet:
    """``PollSet``: poll(2), level-triggered."""

    def __init__(self, shown: Callable[[int], PollBits], count: Callable[[str], None]) -> None:
        self._shown = shown
        self._count = count
        self._asked: dict[int, PollBits] = {}

    def put(self, descriptor: int, asked: PollBits) -> None:
        self._asked[descriptor] = asked

    def drop(self, descriptor: int) -> None:
        del self._asked[descriptor]

    def look(self) -> list[tuple[int, PollBits]]:
        self._count("poll")
        return [
            (descriptor, shown)
            for descriptor, asked in self._asked.items()
            if (shown := self._shown(descriptor) & (asked | PollBits.HANGUP))
        ]
