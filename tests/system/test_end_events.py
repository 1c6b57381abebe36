"""How this machine tells of a splice's end: kqueue over a small stand-in, poll(2) as it is."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.harness import Harness
from freebsd_splice._platform.end_events import KqueueEndEvents, SystemPollSet
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._platform.kernel_interface import PollBits
from system.test_pollers import PollingKqueue, ShortOnce

READ, WRITE = Readiness.READ, Readiness.WRITE

pytestmark = pytest.mark.skipif(not hasattr(select, "poll"), reason="no poll(2) here")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[KqueueEndEvents]:
    if not hasattr(select, "kqueue"):
        monkeypatch.setattr(KqueueEndEvents, "module", PollingKqueue)
    made = KqueueEndEvents()
    yield made
    made.close()


def test_arming_reads_the_first_events_away(harness: Harness, events: KqueueEndEvents) -> None:
    """F19"""
    source, sender = harness.pair()
    drain, _ = harness.pair()
    sender.write(b"waiting")
    harness.until(lambda: harness.readable(source), "data at the source")
    fired = events.arm(source.fileno(), drain.fileno())
    assert set(fired) == {(source.fileno(), READ), (drain.fileno(), WRITE)}
    assert events.collect() == []


def test_what_happens_later_is_collected_once(harness: Harness, events: KqueueEndEvents) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    events.arm(source.fileno(), drain.fileno())
    sender.write(b"x")
    assert harness.until(events.collect, "an event") == [(source.fileno(), READ)]
    assert events.collect() == []


def test_after_disarming_nothing_is_reported(harness: Harness, events: KqueueEndEvents) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    events.arm(source.fileno(), drain.fileno())
    events.disarm(source.fileno(), drain.fileno())
    sender.write(b"x")
    harness.until(lambda: harness.readable(source), "data at the source")
    assert events.collect() == []
    events.arm(source.fileno(), drain.fileno())  # both are as free as before


@pytest.mark.parametrize("after", [0, 1])
def test_disarming_outlasts_a_shortage(
    harness: Harness, events: KqueueEndEvents, after: int
) -> None:
    """A filter that is left would report the next splice of that socket over."""
    source, sender = harness.pair()
    drain, _ = harness.pair()
    events.arm(source.fileno(), drain.fileno())
    events._kqueue = short = ShortOnce(events._kqueue, after)
    events.disarm(source.fileno(), drain.fileno())
    assert short.failed
    sender.write(b"x")
    harness.until(lambda: harness.readable(source), "data at the source")
    assert events.collect() == []


def test_more_events_than_one_call_takes_are_all_collected(
    harness: Harness, events: KqueueEndEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freebsd_splice._platform.end_events._BATCH", 2)
    drains = [harness.pair()[0].fileno() for _ in range(5)]
    source, _ = harness.pair()
    for drain in drains[:-1]:
        pair = events._filters(source.fileno(), drain)
        added = [events.module.kevent(number, which, 0x21) for number, which in pair]
        events._kqueue.control(added, 0, 0)
    fired = events.arm(source.fileno(), drains[-1])
    assert {descriptor for descriptor, which in fired if which is WRITE} == set(drains)


class RefusingKqueue(PollingKqueue):
    """Stands for a kernel that has no memory left for a second filter."""

    class kqueue(PollingKqueue.kqueue):
        def control(self, changes: Any, most: int, timeout: float | None) -> Any:
            for change in changes or []:
                if change.filter == PollingKqueue.KQ_FILTER_WRITE:
                    if change.flags & PollingKqueue.KQ_EV_ADD:
                        raise OSError(12, os.strerror(12))
                    raise FileNotFoundError
                super().control([change], 0, 0)
            return super().control(None, most, timeout)


def test_arming_fails_as_a_whole(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KqueueEndEvents, "module", RefusingKqueue)
    events = KqueueEndEvents()
    source, _ = harness.pair()
    drain, _ = harness.pair()
    with pytest.raises(OSError, match="memory"):
        events.arm(source.fileno(), drain.fileno())
    assert not events._kqueue.filters
    events.close()


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="no POLLRDHUP here")
def test_a_glance_shows_what_is_asked_and_a_hangup(harness: Harness) -> None:
    """F14"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    poll_set = SystemPollSet()
    poll_set.put(source.fileno(), PollBits.READ_HANGUP)
    poll_set.put(drain.fileno(), PollBits.NONE)
    assert poll_set.look() == []
    sender.write(b"unread")
    sender.fin()
    assert harness.until(poll_set.look, "RDHUP") == [(source.fileno(), PollBits.READ_HANGUP)]
    poll_set.drop(source.fileno())
    receiver.reset()
    assert harness.until(poll_set.look, "HUP") == [(drain.fileno(), PollBits.HANGUP)]
    poll_set.put(drain.fileno(), PollBits.WRITE)
    assert poll_set.look() == [(drain.fileno(), PollBits.HANGUP | PollBits.WRITE)]
