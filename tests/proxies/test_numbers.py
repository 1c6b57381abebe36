"""Numbers about connections: what is counted, and that asking relays takes nobody's time."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from freebsd_splice import Outcome, Reason, RelayOutcome
from freebsd_splice._platform import descriptors
from freebsd_splice.proxies import Address, HandshakeError, RefusedTargetError, TargetError, _live
from freebsd_splice.proxies._connecting import StarvedError
from freebsd_splice.proxies._hangups import HangupError
from freebsd_splice.proxies._live import LiveConnections, Progress, Watched
from freebsd_splice.proxies._numbers import BUCKETS, Numbers, Snapshot, snapshot
from freebsd_splice.proxies._observing import REFUSALS, Observer, refusal_of

LISTEN = ":80"

COPIED, SPLICED = ("userspace", "copy"), ("kernel", "SO_SPLICE")


class FakeRelay:
    """Says how far it is when it is asked."""

    def __init__(self, *ways: Progress, asked: Callable[[], object] = lambda: None) -> None:
        self.ways = ways
        self.asked = asked

    def progress(self) -> tuple[Progress, ...]:
        self.asked()
        return self.ways


class FakeClient:
    def __init__(self, relay: FakeRelay | None = None) -> None:
        self.is_joined = relay is not None
        if relay is not None:
            self.progress = relay.progress


def joined(observer: Observer, relay: FakeRelay | None) -> Any:
    client: Any = FakeClient(relay)
    observer.accepted(client)
    observer.handshaken(client, "target:1")
    return client


def outcome(up: int, down: int, by: tuple[str, str]) -> RelayOutcome:
    up_way, down_way = (
        Outcome(count, b"", Reason.EOF, None, backend=by[0], mover=by[1], seconds=1.0)
        for count in (up, down)
    )
    return RelayOutcome(up_way, down_way, Reason.EOF, None, 1.0)


def watched() -> tuple[Watched[Numbers], Numbers]:
    """What watches one proxy."""
    all_of_them = Watched(Numbers)
    return all_of_them, all_of_them.at(LISTEN)


def snapshot_of(all_of_them: Watched[Numbers]) -> Snapshot:
    """The snapshot without the label of the proxy."""
    return Snapshot(
        *(
            {key[:1] + key[2:]: value for key, value in each.items()}
            for each in snapshot(all_of_them)
        )
    )


def bytes_of(numbers: Watched[Numbers]) -> dict[tuple[str, ...], float]:
    totals = snapshot_of(numbers).totals
    return {key[1:]: value for key, value in totals.items() if key[0] == "bytes" and value}


def test_bytes_stay_with_what_has_moved_them() -> None:
    """So that no total shrinks when the kernel takes a connection over."""
    process, numbers = watched()
    relay = FakeRelay(Progress(10, COPIED), Progress(20, None))
    client = joined(numbers, relay)
    assert bytes_of(process) == {("up", *COPIED): 10}
    relay.ways = (Progress(15, SPLICED), Progress(20, SPLICED))
    assert bytes_of(process) == {("up", *COPIED): 10, ("up", *SPLICED): 5, ("down", *SPLICED): 20}
    numbers.ended(client, outcome(16, 30, SPLICED))
    numbers.left(client)
    assert bytes_of(process) == {("up", *COPIED): 10, ("up", *SPLICED): 6, ("down", *SPLICED): 30}
    found = snapshot_of(process)
    assert found.totals["ended", "eof"] == found.totals["accepted",] == 1
    assert found.now["live",] == 0
    assert not [key for key, count in found.totals.items() if key[0] == "refused" and count]


def test_an_end_while_its_relay_is_asked_is_counted_once() -> None:
    process, numbers = watched()
    relay = FakeRelay(Progress(10, COPIED), Progress(10, COPIED))
    client = joined(numbers, relay)
    relay.asked = lambda: numbers.ended(client, outcome(10, 10, COPIED))
    assert bytes_of(process) == {("up", *COPIED): 10, ("down", *COPIED): 10}


def test_who_leaves_without_a_reason_was_stopped() -> None:
    process, numbers = watched()
    client = joined(numbers, None)
    numbers.left(client)
    numbers.left(client)
    numbers.refused(None, None)
    totals = snapshot_of(process).totals
    assert totals["accepted",] == 2
    assert totals["refused", "stopped"] == totals["refused", "per client"] == 1


def test_a_handshake_is_timed_without_its_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    process, numbers = watched()
    client: Any = FakeClient()
    numbers.accepted(client)
    now[0] += 7.0
    numbers.dialled(client, 4.0, OSError())
    numbers.dialled(client, 2.5, None)
    numbers.handshaken(client, "target:1")
    totals = snapshot_of(process).totals
    assert totals["handshake seconds",] == 0.5
    assert totals["handshake", "0.5"] == 1
    assert totals["dial", "failed", "5.0"] == totals["dial", "connected", "2.5"] == 1
    assert totals["dial seconds", "failed"] == 4.0


def test_a_look_up_of_srv_records_belongs_to_the_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    process, numbers = watched()
    client: Any = FakeClient()
    numbers.accepted(client)
    now[0] += 8.0
    numbers.looked_up(client, 2.0)
    numbers.dialled(client, 1.0, OSError())
    numbers.dialled(client, 4.5, None)
    numbers.handshaken(client, "target:1")
    totals = snapshot_of(process).totals
    assert totals["dial seconds", "failed"] == 3.0
    assert totals["dial seconds", "connected"] == 4.5
    assert totals["handshake seconds",] == 0.5


def test_what_takes_longest_has_a_bucket() -> None:
    process, numbers = watched()
    numbers.dialled(FakeClient(), 1e6, None)  # type: ignore[arg-type]
    assert snapshot_of(process).totals["dial", "connected", BUCKETS[-1]] == 1


def test_a_snapshot_can_be_sent_as_a_line() -> None:
    numbers = Snapshot(
        {("ended", ":80", "eof"): 1, ("dial seconds", ":80", "failed"): 0.25}, {("live", ":80"): 3}
    )
    line = numbers.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Snapshot.from_line(line) == numbers


def test_relays_that_answer_slowly_are_asked_in_turn() -> None:
    """A scrape's time is bounded, and all are asked sooner or later."""
    live = Watched(LiveConnections)
    asked: list[int] = []

    def ask(number: int) -> Callable[[], None]:
        return lambda: asked.append(number)

    way = Progress(1, COPIED)
    for number in range(5):
        joined(live.at(f":{number % 2}"), FakeRelay(way, way, asked=ask(number)))
    for _ in range(7):
        assert len(live.read(seconds=0)) == 5
    assert asked == [0, 2, 4, 1, 3, 0, 2]  # those of one proxy, those of the other, and again


def test_asking_many_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []
    asked: list[int] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: pauses.append(len(asked)))
    live = Watched(LiveConnections)
    way = Progress(1, COPIED)
    for _ in range(120):
        joined(live.at(LISTEN), FakeRelay(way, way, asked=lambda: asked.append(0)))
    live.read()
    assert pauses == [_live._AT_ONCE, 2 * _live._AT_ONCE] == [50, 100]


def test_observers_can_be_told_on_any_thread() -> None:
    process, numbers = watched()

    def serve() -> None:
        for _ in range(200):
            client = joined(numbers, FakeRelay(Progress(1, COPIED), Progress(1, COPIED)))
            numbers.dialled(client, 0.1, None)
            numbers.ended(client, outcome(2, 2, COPIED))
            numbers.left(client)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        snapshot_of(process)
    for thread in threads:
        thread.join()
    found = snapshot_of(process)
    assert found.totals["accepted",] == found.totals["ended", "eof"] == 800
    moved_up = ("bytes", "up", *COPIED)
    assert found.totals[moved_up] == 1600
    assert found.totals["dial", "connected", "0.1"] == 800
    assert found.now["live",] == 0


TARGET = Address("target.example", 80)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "per client"),
        (RefusedTargetError(TARGET, "denied by a rule"), "rules"),
        (StarvedError(TARGET, "too many open files"), "shortage"),
        (TargetError(errno.ETIMEDOUT, "no answer"), "target timeout"),
        (TargetError(errno.ECONNREFUSED, "refused"), "target"),
        (HandshakeError(errno.ETIMEDOUT, "too slow"), "handshake timeout"),
        (HandshakeError(errno.EACCES, "wrong password"), "denied"),
        (HandshakeError(errno.EMSGSIZE, "too long"), "handshake"),
        (HandshakeError(errno.EPROTO, "not SOCKS"), "handshake"),
        (HandshakeError(errno.ECONNABORTED, "closed"), "client gone"),
        (HangupError("while connecting"), "client gone"),
        (OSError(errno.EIO, "of a program's own"), "other"),
    ],
)
def test_each_error_is_one_of_the_reasons(error: OSError | None, reason: str) -> None:
    assert refusal_of(error) == reason
    assert reason in REFUSALS


def test_a_wrong_password_of_http_is_one_as_well() -> None:
    connect = pytest.importorskip("freebsd_splice.proxies.connect", reason="it needs h11")
    assert refusal_of(connect.RequestError(407, "wrong password")) == "denied"
    assert refusal_of(connect.RequestError(405, "not CONNECT")) == "handshake"


def test_descriptors_are_counted_where_the_system_says() -> None:
    before = descriptors.open_descriptors()
    if before is None:
        pytest.skip("this system doesn't say")
    taken = [os.dup(2) for _ in range(10)]
    try:
        assert descriptors.open_descriptors() == before + 10
    finally:
        for each in taken:
            os.close(each)


def test_descriptors_can_be_listed() -> None:
    """As on Linux before 6.2; a listing that would take long is given up."""
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    assert descriptors._listed(directory) == len(os.listdir(directory)) - 1


def test_a_listing_that_takes_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_LISTING_SECONDS", -1.0)
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    assert descriptors._listed(directory) is None
