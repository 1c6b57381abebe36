"""Closing behind what was sent: the looks, the waiting, and its end."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import freebsd_splice
from conformance.harness import DEADLINE, Harness, Peer
from freebsd_splice import Reason, Relay, Splice
from freebsd_splice._core.closing import Closer
from freebsd_splice._core.pair_policy import Closing, Delivery, Ended, PairPolicy
from freebsd_splice._platform.send_queue import size_without_room, unacknowledged
from freebsd_splice._platform.system import SystemPlatform
from freebsd_splice._relay import GivenRelay
from support.platforms import SteppedPlatform, UserspacePlatform, runtime

#: More than the receive buffer of a small pair holds, and less than both of its buffers do.
SENT = random.Random(1).randbytes(16_000)


@pytest.fixture(autouse=True)
def _in_userspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")


# What a send queue says


def test_what_a_reader_has_not_taken_is_unacknowledged(harness: Harness) -> None:
    ours, peer = harness.pair(small_buffers=True)
    if unacknowledged(ours) is None:
        pytest.skip("this system doesn't tell")
    assert unacknowledged(ours) == 0
    ours.sendall(SENT)
    before = harness.until(lambda: unacknowledged(ours), "bytes that are not acknowledged")
    assert before is not None
    assert before <= len(SENT)
    peer.read(len(SENT))
    harness.until(lambda: unacknowledged(ours) == 0, "all is acknowledged")


def test_a_fin_is_no_byte(harness: Harness) -> None:
    ours, peer = harness.pair(small_buffers=True)
    ours.sendall(SENT)
    before = unacknowledged(ours)
    if not before:
        pytest.skip("this system doesn't tell, or its buffers are larger than asked for")
    ours.shutdown(socket.SHUT_WR)
    assert unacknowledged(ours) == before
    assert peer.read(len(SENT) + 1) == SENT
    harness.until(lambda: unacknowledged(ours) == 0, "all is acknowledged")


def test_a_unix_socket_has_nothing_unacknowledged(harness: Harness) -> None:
    ours, _theirs = map(harness.keep, socket.socketpair())
    ours.send(b"x")
    if ours.family not in (socket.AF_INET, socket.AF_INET6):  # Windows has pairs of TCP
        assert unacknowledged(ours) == 0


def test_a_closed_socket_tells_nothing() -> None:
    with socket.socket() as made:
        pass
    assert unacknowledged(made) is None


@pytest.mark.parametrize(
    ("room", "expected"), [([5000], 1000), ([6000], 0), ([6100], 0), ([], 6000)]
)
def test_openbsd_tells_the_room(harness: Harness, room: list[int], expected: int) -> None:
    """By a kqueue of its own, which is closed, with nothing waited for."""
    ours, _ = harness.pair()
    asked: list[object] = []

    def control(changes: list[object], most: int, timeout: float) -> list[SimpleNamespace]:
        asked.append((*changes, most, timeout))
        return [SimpleNamespace(data=number) for number in room]

    module = SimpleNamespace(
        KQ_EV_ADD=1, KQ_EV_ONESHOT=0x10, KQ_FILTER_WRITE=-2, kevent=lambda *args: args
    )
    module.kqueue = lambda: SimpleNamespace(control=control, close=lambda: asked.append("closed"))
    stand_in: Any = SimpleNamespace(fileno=ours.fileno, getsockopt=lambda level, option: 6000)
    assert size_without_room(stand_in, module) == expected
    assert asked == [((ours.fileno(), -2, 0x11), 1, 0), "closed"]


# Waiting


def test_looks_go_on_while_the_peer_takes_something() -> None:
    delivery, now, left = Delivery(0.0, 1.0), 0.0, 100
    while left:
        pause = delivery.look(now, left)
        assert pause is not None
        assert 0 < pause <= 0.25
        now += 0.9
        left -= 1
    assert delivery.look(now, 0) is None


@pytest.mark.parametrize("told", [7, None])
def test_a_peer_that_takes_nothing_is_waited_for_only_so_long(told: int | None) -> None:
    delivery, now = Delivery(5.0, 1.0), 5.0
    while (pause := delivery.look(now, told)) is not None:
        now += pause
    assert now == pytest.approx(6.0)
    assert delivery.unacknowledged == told


def test_what_a_dead_connection_had_left_may_never_arrive() -> None:
    delivery = Delivery(0.0, 1.0)
    delivery.look(0.0, 30)
    delivery.died(0)  # as the BSDs say of a dead connection
    assert delivery.unacknowledged == 30


def test_without_patience_one_look_is_all() -> None:
    assert Delivery(0.0, 0.0).look(0.0, 1) is None


@pytest.mark.parametrize(
    ("held", "looks", "seen"), [([], 1, 1), ([5, 4], 1, 3), ([5, 0, 0, 5], 3, 7)]
)
def test_how_often_a_writer_is_looked_at(held: list[int], looks: int, seen: int) -> None:
    """Where a transport doesn't tell exactly what it holds, being empty once isn't enough."""
    due: list[Callable[[], object]] = []
    platform: Any = SimpleNamespace(
        unacknowledged=lambda endpoint: 0,
        is_connected=lambda endpoint: True,
        now=lambda: 0.0,
        event=threading.Event,
    )
    timers: Any = SimpleNamespace(after=lambda seconds, call: due.append(call))
    count = 0

    def next_one() -> int:
        nonlocal count
        count += 1
        return held.pop(0) if held else 0

    released: list[int | None] = []
    endpoint: Any = None
    Closer(platform, timers, lambda call: call()).close(
        endpoint, Closing(False, True), 10.0, released.append, held=next_one, looks=looks
    )
    while not released:
        due.pop(0)()
    assert (count, released) == (seen, [0])


# How a side is closed

EOF_ = Ended(Reason.EOF, None, False, True)
RESET = Ended(Reason.SOURCE_ERROR, ConnectionResetError(errno.ECONNRESET, ""), False, False)
DEAD = Ended(Reason.DRAIN_ERROR, ConnectionResetError(errno.ECONNRESET, ""), False, False)
UNSENT = Ended(Reason.CANCELLED, None, True, False)
CANCELLED = Ended(Reason.CANCELLED, None, False, False)
BUSY = Ended(Reason.DRAIN_ERROR, OSError(errno.EBUSY, ""), False, False)
BROKEN = Ended(Reason.SOURCE_ERROR, OSError(errno.EIO, ""), False, False)
UNSPLICED = Ended(Reason.UNSPLICED, None, False, False)


@pytest.mark.parametrize(
    ("towards", "back", "rest", "cut", "expected"),
    [
        (EOF_, EOF_, False, False, Closing(False, False)),
        (EOF_, EOF_, False, True, Closing(False, False)),
        (EOF_, DEAD, True, True, Closing(False, True)),
        (RESET, EOF_, True, False, Closing(True, True)),
        (RESET, EOF_, False, False, Closing(True, True)),
        (UNSENT, EOF_, False, False, Closing(True, True)),
        (CANCELLED, CANCELLED, False, False, Closing(False, True)),
        (CANCELLED, CANCELLED, True, False, Closing(True, True)),
        (CANCELLED, CANCELLED, False, True, Closing(True, True)),
        (CANCELLED, DEAD, False, False, Closing(True, True)),
        (CANCELLED, BUSY, False, False, Closing(True, True)),
        (BUSY, CANCELLED, False, False, Closing(True, True)),
        (EOF_, BUSY, False, False, Closing(False, True)),
        (UNSPLICED, CANCELLED, False, False, Closing(True, True)),
        (CANCELLED, UNSPLICED, False, False, Closing(True, True)),
        (CANCELLED, BROKEN, False, False, Closing(True, True)),
    ],
)
def test_a_fin_only_says_that_all_is_well_where_it_is(
    towards: Ended, back: Ended, rest: bool, cut: bool, expected: Closing
) -> None:
    policy = PairPolicy()
    ends = [(1, towards), (0, back)]  # by the side that each comes from
    for direction, end in sorted(ends, key=lambda one: one[1] is CANCELLED):  # by the other
        policy.ended(direction, end)
    assert policy.closing(0, rest_at_other=rest, cut=cut) == expected


# On real sockets


def test_a_slow_reader_is_traffic() -> None:
    """What leaves the send buffer counts for the idle time, long after it has entered."""
    platform = SteppedPlatform()
    harness = Harness()
    with runtime(platform):
        left, client = harness.pair(small_buffers=True)
        right, server = harness.pair()
        relay = Relay(left, right, idle_timeout=1)
        server.write(SENT)
        platform.until(lambda: relay.bytes[1] == len(SENT), "all is in the send buffer")
        if not unacknowledged(left):
            pytest.skip("this system doesn't tell, or its buffers are larger than asked for")
        for _ in range(4):
            platform.advance(0.2)
        _read_until_some_is_acknowledged(harness, left, client)
        for _ in range(4):
            platform.advance(0.2)
        assert not relay.done
        for _ in range(4):  # and then nothing
            platform.advance(0.2)
        assert relay.wait(DEADLINE).reason is Reason.IDLE
    harness.close()


def _read_until_some_is_acknowledged(harness: Harness, ours: socket.socket, peer: Peer) -> None:
    before = unacknowledged(ours)

    def some() -> bool:
        if not peer.has_nothing_to_read():
            peer.read(1)
        return unacknowledged(ours) != before

    harness.until(some, "the peer acknowledges some")


def test_a_cancel_in_the_middle_of_closing_is_not_kept_waiting(harness: Harness) -> None:
    relays: list[Relay] = []
    cancelling: list[threading.Thread] = []

    class CancelsWhenClosed:
        def __init__(self, made: socket.socket) -> None:
            self.fileno = made.fileno
            self._made = made

        def close(self) -> None:
            self._made.close()
            cancelling.append(threading.Thread(target=relays[0].cancel))
            cancelling[0].start()
            harness.until(lambda: relays[0]._hurried, "the other thread has cancelled")

    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    relays.append(Relay(CancelsWhenClosed(left), right, close=True, linger=10 * DEADLINE))
    server.write(SENT)
    harness.until(lambda: relays[0].bytes[1] == len(SENT), "all of it taken")
    server.reset()
    assert relays[0].wait(DEADLINE).reason is not Reason.EOF
    cancelling[0].join(DEADLINE)
    assert client.read(len(SENT)) == SENT


def test_shutdown_waits_a_moment_and_resets_what_is_left(harness: Harness) -> None:
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    relay = Relay(left, right, close=True, linger=10 * DEADLINE)
    server.write(SENT)
    harness.until(lambda: relay.bytes[1] == len(SENT), "all of it taken")
    server.reset()
    freebsd_splice.shutdown()
    assert relay.done
    with pytest.raises(ConnectionResetError):
        client.read(len(SENT) + 1)


def test_a_shutdown_delivers_to_whoever_reads(harness: Harness) -> None:
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    relay = Relay(left, right, close=True, linger=10 * DEADLINE)
    server.write(SENT)
    harness.until(lambda: relay.bytes[1] == len(SENT), "all of it taken")
    server.reset()
    ending = harness.in_background(freebsd_splice.shutdown)
    assert client.read(len(SENT)) == SENT
    ending.join()


def test_a_peer_that_resets_meanwhile_is_not_waited_for(harness: Harness) -> None:
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    relay = Relay(left, right, close=True, linger=10 * DEADLINE)
    server.write(SENT)
    harness.until(lambda: relay.bytes[1] == len(SENT), "all of it taken")
    server.reset()
    harness.until(lambda: relay._closing_has_begun, "the end of both directions")
    client.reset()
    assert relay.wait(DEADLINE).right_to_left.undelivered != 0


def test_without_timers_it_is_closed_at_once(harness: Harness) -> None:
    """Never closing it would be worse."""

    class NoTimers:
        def after(self, seconds: float, call: object) -> None:
            raise OSError(errno.EMFILE, "no descriptor for a poller")

    ours, peer = harness.pair(small_buffers=True)
    ours.sendall(SENT)
    if not unacknowledged(ours):
        pytest.skip("this system doesn't tell, or its buffers are larger than asked for")
    released: list[int | None] = []
    timers: Any = NoTimers()
    closer = Closer(SystemPlatform(), timers, lambda call: call())
    assert closer.close(ours, Closing(True, True), 10.0, released.append) is None
    assert released == [unacknowledged(ours)]
    closer.finish()
    assert len(released) == 1
    peer.close()


def test_a_shutdown_waits_for_nobody_without_end(harness: Harness) -> None:
    """A reader that takes a little, again and again, would keep it for ever."""

    class TakesALittle(SystemPlatform):
        left = 1_000_000

        def unacknowledged(self, endpoint: Any) -> int:
            self.left -= 1
            return self.left

    with runtime(TakesALittle()):
        left, _client = harness.pair()
        right, _server = harness.pair()
        relay = Relay(left, right, close=True, linger=10 * DEADLINE)
        relay.cancel()
        harness.in_background(freebsd_splice.shutdown).join()
        assert relay.done


def test_what_is_closed_after_the_shutdown_is_not_waited_for(harness: Harness) -> None:
    ours, _peer = harness.pair(small_buffers=True)
    ours.sendall(SENT)
    with runtime(SystemPlatform()) as made:
        made.closer.finish()
        released: list[int | None] = []
        assert made.closer.close(ours, Closing(True, True), 10.0, released.append) is None
        assert len(released) == 1


def test_a_question_that_fails_does_not_keep_a_socket_open(harness: Harness) -> None:
    asked = []

    def held() -> int:
        asked.append(True)
        if len(asked) == 1:
            return 1
        raise ValueError("closed meanwhile")

    ours, _peer = harness.pair()
    released = threading.Event()
    with runtime(SystemPlatform()) as made:
        made.closer.close(ours, Closing(True, True), 10.0, lambda _: released.set(), held=held)
        assert released.wait(DEADLINE)


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit])
def test_a_close_that_raises_anything_ends_the_relay_too(
    harness: Harness, error: type[BaseException]
) -> None:
    class RaisesWhenClosed:
        def __init__(self, made: socket.socket) -> None:
            self.fileno = made.fileno
            self._made = made

        def close(self) -> None:
            self._made.close()
            raise error

    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(RaisesWhenClosed(left), right, close=True)
    client.close()
    server.close()
    relay.wait(DEADLINE)
    assert right.fileno() == -1


def test_where_nothing_is_told_the_time_decides(harness: Harness) -> None:
    class TellsNothing(SystemPlatform):
        def unacknowledged(self, endpoint: Any) -> int | None:
            return None

    with runtime(TellsNothing()):
        left, client = harness.pair()
        right, server = harness.pair()
        relay = Relay(left, right, close=True, linger=0.1)
        server.write(b"half of it")
        assert client.read(10) == b"half of it"
        server.reset()
        outcome = relay.wait(DEADLINE)
        assert outcome.right_to_left.undelivered is None
        with pytest.raises(ConnectionResetError):
            client.read(1)


@pytest.mark.parametrize("ended_by", ["EOF", "linger", "EOF, sockets given up"])
def test_a_close_that_waits_holds_up_nobody(harness: Harness, ended_by: str) -> None:
    """SO_LINGER with a time: Linux waits in the last close, O_NONBLOCK or not."""
    entered, go_on = threading.Event(), threading.Event()

    class ClosesSlowly(UserspacePlatform):
        def cpus(self) -> int:
            return 1  # and so one worker, for all

        def close(self, endpoint: Any) -> None:
            if self.last_close_waits(endpoint):
                entered.set()
                assert go_on.wait(DEADLINE)
            super().close(endpoint)

    with runtime(ClosesSlowly()):
        left, client = harness.pair()
        right, server = harness.pair(small_buffers=True)
        time_set = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 1)
        right.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, time_set)
        if ended_by == "EOF, sockets given up":
            relay: Relay = GivenRelay(left, right, worker=None)
        else:
            relay = Relay(left, right, close=True, linger=0.05)
        if ended_by != "linger":  # on the worker
            client.fin()
            server.fin()
        else:  # on the watcher: the server gets an EOF behind more than it takes
            client.finish(SENT)
            harness.until(lambda: relay._policy.has_ended(0), "the end of one direction")
            relay.cancel()
        assert entered.wait(DEADLINE)
        (source, writer), (drain, reader) = harness.pair(), harness.pair()
        other = Splice(source, drain, timeout=0.05)
        writer.write(b"goes on")
        assert reader.read(7) == b"goes on"
        assert other.wait(DEADLINE / 2).reason is Reason.TIMEOUT
        go_on.set()
        relay.wait(DEADLINE)
        freebsd_splice.shutdown()


@pytest.mark.parametrize("limits", [{"timeout": 0.3}, {"idle_timeout": 0.2}])
def test_a_time_limit_ends_the_waiting_for_a_slow_reader(
    harness: Harness, limits: dict[str, Any]
) -> None:
    """Whatever the reader does: the times are the caller's."""
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    relay = Relay(left, right, close=True, linger=10 * DEADLINE, **limits)
    server.write(SENT)
    harness.until(lambda: relay.bytes[1] == len(SENT), "all of it taken")
    server.reset()
    way = relay.wait(DEADLINE).right_to_left
    assert way.reason in (Reason.SOURCE_ERROR, Reason.IDLE, Reason.TIMEOUT)
    assert way.undelivered
    assert client.read(len(SENT)) == SENT
