"""The second look at spliced sockets: some ends come without an event (F14, F19), and some splices
stand still (F38).

Soon after the start at first, since a short answer ends in a FIN all the time and the look is its
latency, then ever rarer.  At the rarest, one poll(2) looks at all the sockets there are.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Protocol

from .._core.timers import Timer, Timers
from .._platform.kernel_interface import KernelCalls, PollBits, PollSet

FIRST_SECONDS = 0.01
RAREST_SECONDS = 1.0

#: Seconds until the next look at a flow that may stand still: until it is known whether it does.
DOUBT_SECONDS = RAREST_SECONDS / 8

#: What shows of an end: no more will come, or the drain is none any more (F14, F20).
_SOURCE_SHOWS = PollBits.READ_HANGUP | PollBits.HANGUP
_DRAIN_SHOWS = PollBits.WRITE | PollBits.HANGUP


class Looked(Protocol):
    """A flow that the kernel serves now."""

    @property
    def pair(self) -> tuple[int, int]:
        """The descriptors of its source and its drain."""
        ...

    @property
    def counts(self) -> bool:
        """Whether it has a limit: one that is met exactly behind a full drain gives no event and
        shows in the count alone (F19)."""
        ...

    def wake(self) -> None:
        """Its splice may be over."""
        ...

    def compare_count(self) -> None:
        """Its limit may have been met."""
        ...

    def bytes_wait(self) -> None:
        """Bytes wait at its source although its drain has room."""
        ...


class LostEvents:
    """All flows of the kernel's, and when to look at each.  It runs on the watcher's thread: a
    look asks for nothing that can wait, and touches nothing."""

    def __init__(self, calls: KernelCalls, timers: Timers) -> None:
        self._calls = calls
        self._timers = timers
        self._lock = threading.Lock()
        self._early: dict[Looked, tuple[object, Timer]] = {}
        self._late: set[Looked] = set()
        self._counting: set[Looked] = set()  # those of the late ones that have a limit
        self._batch: _Batch | None = None
        self._timer: Timer | None = None

    def begin(self, flow: Looked) -> None:
        """Its splice has just been set: look at it from now on."""
        with self._lock:
            self._remove(flow)
            self._set(flow, FIRST_SECONDS)

    def again(self, flow: Looked) -> None:
        """The other direction has ended, so this one will soon: start anew with short steps."""
        with self._lock:
            if self._remove(flow):
                self._set(flow, FIRST_SECONDS)

    def end(self, flow: Looked) -> None:
        """Its splice is over."""
        with self._lock:
            self._remove(flow)

    def _set(self, flow: Looked, seconds: float) -> None:
        mark = object()  # of this very timer: one that was cancelled can be on its way already
        call = partial(self._look_early, flow, seconds, mark)
        self._early[flow] = mark, self._timers.after(seconds, call)

    def _remove(self, flow: Looked) -> bool:
        early = self._early.pop(flow, None)
        if early is not None:
            early[1].cancel()
        elif flow in self._late:
            self._late.remove(flow)
            self._counting.discard(flow)
            assert self._batch is not None
            self._batch.remove(flow)
        else:
            return False
        return True

    def _look_early(self, flow: Looked, seconds: float, mark: object) -> None:
        with self._lock:
            if flow not in self._early or self._early[flow][0] is not mark:
                return
            # The next look first: one that fails must not be the last.
            if seconds * 2 < RAREST_SECONDS:
                self._set(flow, seconds * 2)
            else:
                del self._early[flow]
                self._join_the_late(flow)
            batch = _Batch(self._calls)
            batch.add(flow)
            seen = batch.look()
        self._tell([flow] if flow.counts else [], seen)

    def _join_the_late(self, flow: Looked) -> None:
        if self._batch is None:
            self._batch = _Batch(self._calls)
        self._batch.add(flow)
        self._late.add(flow)
        if flow.counts:
            self._counting.add(flow)
        if self._timer is None:
            self._timer = self._timers.after(RAREST_SECONDS, self._look_late)

    def _look_late(self) -> None:
        with self._lock:
            counting = list(self._counting)
            self._timer = None
            if self._late:  # before the look: one that fails must not be the last
                self._timer = self._timers.after(RAREST_SECONDS, self._look_late)
            seen = self._batch.look() if self._batch is not None and self._late else _Seen()
            for flow in seen.waiting:
                self._remove(flow)
                self._set(flow, DOUBT_SECONDS)
        self._tell(counting, seen)

    def _tell(self, counting: list[Looked], seen: _Seen) -> None:
        for flow in seen.over:
            flow.wake()
        for flow in seen.waiting:
            flow.bytes_wait()
        for flow in counting:
            if flow not in seen.waiting:  # which compares the count as well
                flow.compare_count()


class _Seen:
    """What a look has shown."""

    def __init__(self) -> None:
        self.over: set[Looked] = set()
        self.waiting: set[Looked] = set()


class _Batch:
    """Flows that are looked at by one poll(2)."""

    def __init__(self, calls: KernelCalls) -> None:
        self._calls = calls
        self._poll_set: PollSet = calls.poll_set()
        hides_drains = calls.capabilities.hides_drains
        self._drain_shows = _DRAIN_SHOWS if hides_drains else _DRAIN_SHOWS & ~PollBits.WRITE
        self._stalls = calls.capabilities.stalls
        self._sources: dict[int, Looked] = {}
        self._drains: dict[int, Looked] = {}

    def add(self, flow: Looked) -> None:
        source, drain = flow.pair
        self._sources[source] = self._drains[drain] = flow
        self._ask(source)
        self._ask(drain)

    def remove(self, flow: Looked) -> None:
        source, drain = flow.pair
        del self._sources[source], self._drains[drain]
        self._ask(source)
        if drain != source:
            self._ask(drain)

    def look(self) -> _Seen:
        """One poll(2), and one FIONREAD of each source that may have something to tell."""
        seen = _Seen()
        for descriptor, glance in self._poll_set.look():
            drained = self._drains.get(descriptor)
            if drained is not None and glance & self._drain_shows:
                seen.over.add(drained)
            elif drained is not None and glance & PollBits.WRITE and self._bytes_wait(drained):
                seen.waiting.add(drained)
            spliced = self._sources.get(descriptor)
            # With bytes unread, the kernel has still to come to the end (F29).
            if (
                spliced is not None
                and glance & _SOURCE_SHOWS
                and self._calls.unread(descriptor) == 0
            ):
                seen.over.add(spliced)
        return seen

    def _bytes_wait(self, flow: Looked) -> bool:
        """F38: poll(2) says nothing of the bytes at a spliced source."""
        return self._stalls and self._calls.unread(flow.pair[0]) > 0

    def _ask(self, descriptor: int) -> None:
        spliced, drained = descriptor in self._sources, descriptor in self._drains
        if spliced or drained:
            self._poll_set.put(
                descriptor,
                (PollBits.READ_HANGUP if spliced else PollBits.NONE)
                | (PollBits.WRITE if drained else PollBits.NONE),
            )
        else:
            self._poll_set.drop(descriptor)
