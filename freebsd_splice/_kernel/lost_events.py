"""The second look at spliced sockets, for ends without an event and splices that stand still.

A FIN or reset that comes while the kernel moves bytes may give no event (F14), and a limit that is
met exactly while the drain is full gives none (F19). On OpenBSD a bulk splice can stand still
(F38).

The first look at a flow comes soon after its splice is set: short answers end in a FIN, and the
look is their latency. The looks then become ever rarer. At the rarest, one poll(2) looks at the
sockets of all flows.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Protocol

from .._core.timers import Timer, Timers
from .._platform.kernel_interface import KernelCalls, PollBits, PollSet

FIRST_SECONDS = 0.01
RAREST_SECONDS = 1.0

#: Seconds between looks at a flow that may stand still, until it is certain whether it does.
DOUBT_SECONDS = RAREST_SECONDS / 8

#: Poll bits that show an end: no more bytes will come (F14), or the drain is writable, and so not
#: the drain of a live splice (F20).
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
        """Whether the flow has a limit.

        A limit that is met exactly while the drain is full gives no event, and shows in the count
        alone (F19).
        """
        ...

    def wake(self) -> None:
        """Settle the splice: it may be over."""
        ...

    def compare_count(self) -> None:
        """Compare the splice's count with the limit, which may have been met."""
        ...

    def bytes_wait(self) -> None:
        """Find out whether the splice stands still: bytes wait although the drain has room."""
        ...


class LostEvents:
    """All flows that the kernel serves, and when to look at each.

    The looks run on the watcher's thread, so they make no call that can wait, and they change
    nothing.
    """

    def __init__(self, calls: KernelCalls, timers: Timers) -> None:
        self._calls = calls
        self._timers = timers
        self._lock = threading.Lock()
        self._early: dict[Looked, tuple[object, Timer]] = {}
        self._late: set[Looked] = set()
        self._counting: set[Looked] = set()  # the late ones that have a limit
        self._batch: _Batch | None = None
        self._timer: Timer | None = None

    def begin(self, flow: Looked) -> None:
        """Look at the flow from now on: its splice has just been set."""
        with self._lock:
            self._remove(flow)
            self._set(flow, FIRST_SECONDS)

    def again(self, flow: Looked) -> None:
        """Look at the flow soon again: its other direction has ended, so it may end as well."""
        with self._lock:
            if self._remove(flow):
                self._set(flow, FIRST_SECONDS)

    def end(self, flow: Looked) -> None:
        """Look at the flow no more: its splice is over."""
        with self._lock:
            self._remove(flow)

    def _set(self, flow: Looked, seconds: float) -> None:
        mark = object()  # identifies this timer: a cancelled one may be running its call already
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
            # Plan the next look first: a look that fails must not be the last.
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
            if self._late:  # planned before the look: a look that fails must not be the last
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
            if flow not in seen.waiting:  # ``bytes_wait`` compares the count as well
                flow.compare_count()


class _Seen:
    """The flows that a look has found."""

    def __init__(self) -> None:
        #: Those whose splice may be over.
        self.over: set[Looked] = set()
        #: Those with bytes waiting at the source although the drain has room.
        self.waiting: set[Looked] = set()


class _Batch:
    """Flows whose sockets one poll(2) looks at."""

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
        """Make one poll(2) call, and one FIONREAD call for each source that may show an end."""
        seen = _Seen()
        for descriptor, glance in self._poll_set.look():
            drained = self._drains.get(descriptor)
            if drained is not None and glance & self._drain_shows:
                seen.over.add(drained)
            elif drained is not None and glance & PollBits.WRITE and self._bytes_wait(drained):
                seen.waiting.add(drained)
            spliced = self._sources.get(descriptor)
            # While bytes are unread, the kernel has not come to the end yet (F29).
            if (
                spliced is not None
                and glance & _SOURCE_SHOWS
                and self._calls.unread(descriptor) == 0
            ):
                seen.over.add(spliced)
        return seen

    def _bytes_wait(self, flow: Looked) -> bool:
        """Return whether bytes wait at the source (F38); poll(2) doesn't show those of a splice."""
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
