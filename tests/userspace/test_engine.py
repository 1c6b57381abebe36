"""The userspace engine: readiness, movers, fairness, and what idle and ended flows cost."""

from __future__ import annotations

import errno
import logging
import os
import random
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from conformance.backends import MOVERS
from conformance.harness import DEADLINE, Harness
from freebsd_splice import Reason, Relay, Splice
from freebsd_splice._backend import COPY, OS_SPLICE
from freebsd_splice._core.flow import End
from freebsd_splice._platform.interface import Endpoint, Notice, Readiness, Runner, SocketLike
from freebsd_splice._platform.pollers import kinds
from freebsd_splice._userspace.movers import USUAL_PIPE, Supplies
from support.descriptors import enough_descriptors
from support.leaks import open_descriptors
from support.platforms import (
    NoPipesPlatform,
    RecordingPlatform,
    RefusingPlatform,
    SteppedPlatform,
    runtime,
)
from support.slowness import SLOWNESS

pytestmark = pytest.mark.usefixtures("userspace")

linux = pytest.mark.skipif(sys.platform != "linux", reason="os.splice and /proc are Linux's")


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("mover", MOVERS)
def test_every_kind_of_readiness_serves(harness: Harness, kind: str, mover: str) -> None:
    data = random.Random(5).randbytes(3_000_000)
    with runtime(RecordingPlatform(kind), mover):
        left, client = harness.pair()
        right, server = harness.pair(small_buffers=True)
        relay = Relay(left, right)
        writer = threading.Thread(target=client.finish, args=(data,))
        writer.start()
        assert server.read_to_end() == data
        server.write(b"answer")
        server.fin()
        assert client.read_to_end() == b"answer"
        outcome = relay.wait(DEADLINE)
        writer.join()
        assert outcome.reason is Reason.EOF
        assert outcome.left_to_right.mover == mover


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "select"])
def test_every_kind_but_select_sees_an_idle_drain_die(harness: Harness, kind: str) -> None:
    """F16"""
    with runtime(RecordingPlatform(kind)):
        source, _ = harness.pair()
        drain, receiver = harness.pair()
        splice = Splice(source, drain)
        receiver.reset()
        assert splice.wait(DEADLINE).reason is Reason.DRAIN_ERROR


def test_an_unknown_kind_of_readiness_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no 'carrier pigeon'; it has .*poll"):
        RecordingPlatform("carrier pigeon").poller()


def test_select_refuses_a_descriptor_that_it_cannot_watch(harness: Harness) -> None:
    """It raises ValueError at every wait, once it has one such: that would be a busy loop."""
    with enough_descriptors(1_300), runtime(_OneWorker("select")):
        source, _ = harness.pair()
        high, _ = harness.pair()
        Splice(source, high).cancel()  # the worker and the watcher are below the bound
        fillers = [os.dup(source.fileno()) for _ in range(1024)]
        try:
            outcome = Splice(source, high).wait(DEADLINE)
        finally:
            for filler in fillers:
                os.close(filler)
    assert outcome.reason is Reason.SOURCE_ERROR
    assert "select() can watch no further socket" in str(outcome.error)


class _OneWorker(RecordingPlatform):
    def cpus(self) -> int:
        return 1


@linux
@pytest.mark.parametrize("way", ["in", "out"])
def test_where_os_splice_refuses_a_copy_serves(harness: Harness, way: str) -> None:
    data = random.Random(6).randbytes(500_000)
    with runtime(RefusingPlatform(way)):
        source, sender = harness.pair()
        drain, receiver = harness.pair(small_buffers=True)
        splice = Splice(source, drain, initial=b"first ")
        writer = threading.Thread(target=sender.finish, args=(data,))
        writer.start()
        assert receiver.read(len(data) + 6) == b"first " + data
        outcome = splice.wait(DEADLINE)
        writer.join()
    assert (outcome.reason, outcome.bytes) == (Reason.EOF, len(data) + 6)
    assert outcome.mover == COPY


@linux
def test_a_refusal_behind_a_sources_last_bytes_is_no_end(harness: Harness) -> None:
    """So few bytes are pushed in the same step, as no more can be there."""
    with runtime(RefusingPlatform("out"), OS_SPLICE):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        with Splice(source, drain) as splice:
            sender.write(b"a few")
            assert receiver.read(5) == b"a few"
    assert splice.wait(DEADLINE).mover == COPY


@linux
def test_without_a_descriptor_for_a_pipe_a_copy_serves(harness: Harness) -> None:
    with runtime(NoPipesPlatform()):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        with Splice(source, drain) as splice:
            sender.write(b"all the same")
            assert receiver.read(12) == b"all the same"
        assert splice.wait().mover == COPY


@linux
def test_small_pipes_serve_when_the_users_share_is_used_up(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F31"""
    for size in ("USUAL_PIPE", "LARGE_PIPE"):
        monkeypatch.setattr(f"freebsd_splice._userspace.movers.{size}", 1 << 40)  # refused
    data = random.Random(31).randbytes(1_000_000)
    with runtime(RecordingPlatform(), OS_SPLICE):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        with Splice(source, drain) as splice:
            writer = threading.Thread(target=sender.write, args=(data,))
            writer.start()
            assert receiver.read(len(data)) == data
            writer.join()
        assert splice.wait().mover == OS_SPLICE


@linux
def test_all_workers_together_have_few_large_pipes() -> None:
    """F31: the pipes of one user share a limit, and past it all are small."""

    class FourProcessors(RecordingPlatform):
        def cpus(self) -> int:
            return 4

    platform = FourProcessors()
    supplies = Supplies(platform)
    pipes = list(iter(supplies.take_large, None))
    assert len(pipes) == 8
    assert all(pipe.size > USUAL_PIPE for pipe in pipes)
    for pipe in pipes:
        supplies.give(pipe)
    again = supplies.take_large()
    assert again is not None
    assert again in pipes
    supplies.give(again)
    supplies.close()


@pytest.mark.parametrize("mover", MOVERS)
def test_flows_whose_drains_are_full_do_not_mix(harness: Harness, mover: str) -> None:
    """The copier's buffer is shared: what waits for its drain must be out of it."""
    platform = SteppedPlatform()
    with runtime(platform, mover):
        made = []
        for number in range(3):
            source, sender = harness.pair()
            drain, receiver = harness.pair(small_buffers=True)
            data = random.Random(number).randbytes(120_000)
            writer = harness.in_background(sender.write, data)
            made.append((Splice(source, drain), receiver, data, source, writer))
        platform.until(lambda: all(_waits_for_its_drain(one[0]) for one in made), "the drains full")
        for splice, receiver, data, source, writer in made:
            outcome = splice.cancel()
            assert outcome.unsent
            got = receiver.read(outcome.bytes) + outcome.unsent
            assert got + harness.waiting(source, len(data) - len(got)) == data
            writer.join()


def test_a_slow_drain_leaves_little_to_be_kept(harness: Harness) -> None:
    """A thousand slow readers must not hold a buffer of the worker's size each."""
    platform = SteppedPlatform()
    with runtime(platform, COPY):
        source, sender = harness.pair()
        drain, receiver = harness.pair(small_buffers=True)
        splice = Splice(source, drain)

        def full() -> bool:
            sender.write_what_fits()
            return _waits_for_its_drain(splice)

        for _ in range(8):
            platform.until(full, "the drain full")
            while not receiver.has_nothing_to_read():
                receiver._connection.recv(1 << 20)
                platform.step()
        platform.until(full, "the drain full")
        assert 0 < len(splice.cancel().unsent) <= 1 << 16


def _waits_for_its_drain(splice: Splice) -> bool:
    """What it has taken, it holds."""
    waits: tuple[bool, bool] = splice._flow._waiting  # type: ignore[attr-defined]
    return waits == (False, True)


def test_one_busy_flow_leaves_the_others_their_turn(harness: Harness) -> None:
    """A source that always has more must not keep the worker for itself."""
    platform = _Bottomless()
    with runtime(platform, COPY):
        busy, _ = harness.pair()
        quiet, sender = harness.pair()
        hole, _ = harness.pair()
        drain, receiver = harness.pair()
        platform.bottomless = busy
        platform.hole = hole
        endless = Splice(busy, hole)
        other = Splice(quiet, drain)
        sender.write(b"my turn")
        for _ in range(3):
            platform.step()
        assert endless.bytes > 0
        assert receiver.read(7) == b"my turn"
        assert other.bytes == 7
        platform.bottomless = None


class _Bottomless(SteppedPlatform):
    """One source that never runs dry and one drain that is never full."""

    bottomless: socket.socket | None = None
    hole: socket.socket | None = None

    def receive_into(self, endpoint: Endpoint, buffer: memoryview) -> int:
        if self._same(endpoint, self.bottomless):
            return len(buffer)
        return super().receive_into(endpoint, buffer)

    def send(self, endpoint: Endpoint, data: memoryview) -> int:
        if self._same(endpoint, self.hole):
            return len(data)
        return super().send(endpoint, data)

    def _same(self, endpoint: Endpoint, original: socket.socket | None) -> bool:
        # fstat(2) would not do: to FreeBSD and OpenBSD all TCP sockets are the same file.
        return original is not None and self.identity(endpoint) == self.identity(original)


@linux
def test_idle_flows_hold_no_pipe(harness: Harness) -> None:
    """F31"""
    platform = RecordingPlatform()
    with runtime(platform, OS_SPLICE):
        splices = []
        before = open_descriptors()
        for _ in range(40):
            source, sender = harness.pair()
            drain, receiver = harness.pair()
            splices.append(Splice(source, drain))
            sender.write(b"x")
            assert receiver.read(1) == b"x"
        links = [link for fd, link in open_descriptors().items() if fd not in before]
        pipes = [link for link in links if link.startswith("pipe:")]
        assert 0 < len(pipes) <= 2 * 2 * platform.cpus()
        # A flow costs its two duplicates, whatever it has moved.
        ours = 4 * 40 + 2 * 40
        assert len(links) <= ours + len(pipes) + 3 * (platform.cpus() + 1)
        for splice in splices:
            splice.cancel()


@pytest.mark.parametrize("mover", MOVERS)
def test_nothing_is_watched_for_a_flow_that_has_ended(harness: Harness, mover: str) -> None:
    """epoll goes on reporting a socket whose duplicate was closed: the caller's is still open."""
    platform = SteppedPlatform()
    with runtime(platform, mover) as made:
        source, sender = harness.pair()
        drain, _ = harness.pair()
        splice = Splice(source, drain, max_bytes=1)
        sender.write(b"1 and what stays readable")
        platform.until(lambda: splice.done, "the limit")
        worker = made._engine._workers[0]
        assert worker._poller.wait(0) == []
        assert worker._watched == {}


@pytest.mark.parametrize("mover", MOVERS)
def test_a_full_drain_and_a_dead_source_are_no_busy_loop(harness: Harness, mover: str) -> None:
    platform = SteppedPlatform()
    with runtime(platform, mover) as made:
        source, sender = harness.pair()
        drain, receiver = harness.pair(small_buffers=True)
        splice = Splice(source, drain)
        [worker] = made._engine._workers

        def full() -> bool:
            sender.write_what_fits()
            return splice.bytes > 0 and worker._poller.wait(0) == []

        def read() -> bool:
            if not receiver.has_nothing_to_read():
                receiver._connection.recv(4096)
            return splice.done

        platform.until(full, "the drain full")
        sender.reset()
        harness.until(lambda: harness.hangs_up(source), "the reset")
        # Not at once: the last acknowledgement may come now.
        platform.until(lambda: worker._poller.wait(0) == [], "quiet")
        assert not splice.done
        platform.until(read, "the end")
        assert splice.wait().reason is Reason.SOURCE_ERROR


@linux
def test_an_error_queue_that_is_not_the_end_is_left_alone(harness: Harness) -> None:
    """Time stamps make a socket report an error for ever; the splice lives, nobody spins."""
    so_timestamping, on_acknowledgement = 37, 1 << 9 | 1 << 4 | 1 << 11
    platform = SteppedPlatform()
    with runtime(platform) as made:
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        drain.setsockopt(socket.SOL_SOCKET, so_timestamping, on_acknowledgement)
        splice = Splice(source, drain)
        worker = made._engine._workers[0]
        sender.write(b"stamped")
        platform.until(lambda: splice.bytes == 7, "the bytes moved")
        assert receiver.read(7) == b"stamped"
        harness.until(lambda: worker._poller.wait(0) != [], "a time stamp in the error queue")
        platform.until(lambda: worker._poller.wait(0) == [], "quiet")
        assert not splice.done
        sender.write(b"again")
        platform.until(lambda: splice.bytes == 12, "the splice alive")


@linux
def test_an_error_queue_of_a_socket_read_too_is_left_alone(harness: Harness) -> None:
    so_timestamping, on_acknowledgement = 37, 1 << 9 | 1 << 4 | 1 << 11
    platform = SteppedPlatform()
    with runtime(platform) as made:
        left, client = harness.pair()
        right, server = harness.pair()
        right.setsockopt(socket.SOL_SOCKET, so_timestamping, on_acknowledgement)
        relay = Relay(left, right)
        [worker] = made._engine._workers
        client.write(b"stamped")
        platform.until(lambda: relay.bytes[0] == 7, "the bytes moved")
        poll = select.poll()
        poll.register(right, 0)
        harness.until(lambda: poll.poll(0), "a time stamp in the error queue")
        platform.until(lambda: worker._poller.wait(0) == [], "quiet")
        server.write(b"answer")
        platform.until(lambda: relay.bytes[1] == 6, "the relay alive")
        server.reset()
        platform.until(lambda: relay.done, "the end, which is still seen")


def test_a_false_error_does_not_hide_a_real_one(harness: Harness) -> None:
    """macOS lets no low-water mark be out of reach: an empty send buffer is reported once."""
    platform = SteppedPlatform()
    with runtime(platform) as made:
        source, _ = harness.pair()
        drain, receiver = harness.pair()
        splice = Splice(source, drain)
        platform.step()
        [worker] = made._engine._workers
        assert worker._report(splice._drain.endpoint.fileno(), Readiness.ERROR) == []
        assert not splice.done
        receiver.reset()
        platform.until(lambda: splice.done, "the end")


def test_an_error_without_an_end_is_told_with_nothing_to_write(
    harness: Harness,
) -> None:
    """At its start a flow waits to write as well: its turn finds nothing that could fail."""

    class Unreachable(SteppedPlatform):
        def take_error(self, endpoint: Endpoint) -> OSError | None:
            return OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    with runtime(Unreachable()) as made:
        source, _ = harness.pair()
        drain, _ = harness.pair()
        splice = Splice(source, drain)
        [worker] = made._engine._workers
        ready = Readiness.WRITE | Readiness.ERROR
        [failed] = worker._report(splice._drain.endpoint.fileno(), ready)
        failed.drain_failed()
        assert splice.wait(0).reason is Reason.DRAIN_ERROR


def test_a_notice_beside_readiness_silences_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime(SteppedPlatform()) as made:
        source, _ = harness.pair()
        drain, _ = harness.pair()
        with Splice(source, drain) as splice:
            [worker] = made._engine._workers
            descriptor = splice._source.endpoint.fileno()
            silenced: list[Endpoint] = []
            monkeypatch.setattr(worker._poller, "quieten", silenced.append)
            worker._report(descriptor, Readiness.READ | Readiness.ERROR)
            assert silenced == []
            worker._report(descriptor, Readiness.ERROR)
            assert [endpoint.fileno() for endpoint in silenced] == [descriptor]


def test_a_drain_that_is_not_connected_needs_no_event(harness: Harness) -> None:
    """kqueue and select may never say anything of such a socket."""
    with runtime(RecordingPlatform("select")):
        source, _ = harness.pair()
        drain = harness.keep(socket.socket())
        outcome = Splice(source, drain).wait(DEADLINE)
    assert outcome.reason is Reason.DRAIN_ERROR
    assert outcome.error is not None
    assert outcome.error.errno == errno.ENOTCONN


@pytest.mark.parametrize("mover", MOVERS)
def test_a_cleared_flag_blocks_no_worker(harness: Harness, mover: str) -> None:
    """socket.dup() of a socket without a timeout clears O_NONBLOCK for every duplicate."""
    with runtime(_OneWorker(), mover):
        source, sender = harness.pair()
        drain, receiver = harness.pair(small_buffers=True)
        splice = Splice(source, drain)
        sender.write(b"x")
        assert receiver.read(1) == b"x"
        os.set_blocking(source.fileno(), True)
        os.set_blocking(drain.fileno(), True)
        writer = threading.Thread(target=sender.write, args=(bytes(200_000),))
        writer.start()
        harness.until(lambda: splice.bytes > 1, "the drain filling up")
        quiet, other_sender = harness.pair()
        other_drain, other_receiver = harness.pair()
        with Splice(quiet, other_drain):
            other_sender.write(b"my turn")
            assert other_receiver.read(7) == b"my turn"
        outcome = splice.cancel()
        harness.waiting(source, 200_001 - outcome.bytes - len(outcome.unsent))
        writer.join()


@pytest.mark.parametrize("failure", [RuntimeError, SystemExit])
def test_what_a_callback_raises_ends_no_worker(
    harness: Harness, caplog: pytest.LogCaptureFixture, failure: type[BaseException]
) -> None:
    class Strange(socket.socket):
        def close(self) -> None:
            super().close()
            raise RuntimeError("a library's own")

    def fail(_: object) -> None:
        raise failure("of the program's")

    with runtime(_OneWorker()):
        left, client = harness.pair()
        right, server = harness.pair()
        strange = Strange(fileno=left.detach())
        relay = Relay(strange, right, close=True)
        relay.add_done_callback(fail)
        client.fin()
        server.fin()
        relay.wait(DEADLINE)
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        with Splice(source, drain):
            sender.write(b"served")
            assert receiver.read(6) == b"served"
    assert "a library's own" in caplog.text
    assert "of the program's" in caplog.text


def test_an_error_is_known_to_both_flows_before_either_goes_on(harness: Harness) -> None:
    """Two splices of one socket on two workers: the one's send takes the error, the other reads."""

    class Racing(SteppedPlatform):
        race: threading.Thread | None = None
        other: Splice | None = None

        def send(self, endpoint: Endpoint, data: memoryview) -> int:
            try:
                return super().send(endpoint, data)
            except (ConnectionResetError, BrokenPipeError):  # EPIPE is what the BSDs say first
                if self.other is not None:
                    self.race = threading.Thread(target=self.other._flow.turn)  # type: ignore[attr-defined]
                    self.race.start()
                    self.race.join(0.3)  # it can't get through before the error is known
                raise

    platform = Racing()
    with runtime(platform, COPY):
        source, sender = harness.pair()
        both, peer = harness.pair()
        drain, _ = harness.pair()
        into = Splice(source, both)
        platform.other = out = Splice(both, drain)
        platform.step()
        sender.write(b"x")
        harness.until(lambda: harness.readable(source), "a byte at the source")
        peer.reset()
        harness.until(lambda: harness.readable(both), "the reset")
        into._flow.turn()  # type: ignore[attr-defined]
        assert platform.race is not None
        platform.race.join()
        assert into.wait(0).reason is Reason.DRAIN_ERROR
        assert out.wait(0).reason is Reason.SOURCE_ERROR


def test_a_broken_pipe_is_told_as_what_broke_it(harness: Harness) -> None:
    """The BSDs answer EPIPE where the connection was reset, and keep the reset in SO_ERROR."""

    class Bsd(SteppedPlatform):
        def send(self, endpoint: Endpoint, data: memoryview) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with runtime(Bsd(), COPY):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        splice = Splice(source, drain)
        sender.write(b"x")
        harness.until(lambda: harness.readable(source), "a byte at the source")
        receiver.reset()
        harness.until(lambda: harness.readable(drain), "the reset")
        splice._flow.turn()  # type: ignore[attr-defined]
        outcome = splice.wait(0)
        assert outcome.reason is Reason.DRAIN_ERROR
        assert isinstance(outcome.error, ConnectionResetError)


def test_who_reads_the_notice_finds_it_over(harness: Harness) -> None:
    class Asking(SteppedPlatform):
        splice: Splice

        def __init__(self) -> None:
            super().__init__()
            self.found: list[bool] = []

        def notice(self) -> Notice:
            made = super().notice()
            give = made.give

            def asking_give() -> None:
                self.found.append(self.splice.done)
                give()

            made.give = asking_give  # type: ignore[method-assign]
            return made

    platform = Asking()
    with runtime(platform):
        source, _ = harness.pair()
        drain, _ = harness.pair()
        with Splice(source, drain) as splice:
            platform.splice = splice
            splice.fileno()
            splice.cancel()
        assert platform.found == [True]


def test_a_reset_that_came_with_the_eof_is_not_hidden(harness: Harness) -> None:
    """F16: the drain has died with the bytes; EOF or a limit would call that a success."""
    platform = SteppedPlatform()
    with runtime(platform):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        splice = Splice(source, drain)
        sender.write(b"lost")
        platform.until(lambda: splice.bytes == 4, "the bytes moved")
        sender.fin()
        harness.until(lambda: harness.readable(source), "EOF at the source")
        receiver.reset()
        harness.until(lambda: harness.readable(drain), "the reset at the drain")
        platform.step()
        outcome = splice.wait(0)
        assert outcome.reason is Reason.DRAIN_ERROR
        assert isinstance(outcome.error, ConnectionResetError)


def test_a_reset_told_to_one_direction_is_no_eof_for_the_other(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells an error once, to the send here, and gives the reads after it EOF."""
    monkeypatch.setattr("freebsd_splice._userspace.flow.MOVES_A_TURN", 1)
    for size in ("_SMALL_BYTES", "_SCRATCH_BYTES"):  # there is more each time
        monkeypatch.setattr(f"freebsd_splice._userspace.movers.{size}", 8)
    platform = SteppedPlatform()
    with runtime(platform):
        left, client = harness.pair()
        right, server = harness.pair()
        relay = Relay(left, right, close=True)
        for _ in range(3):
            platform.step()
        client.write(b"taken in one turn, sent in the next")
        platform.step()
        server.reset()
        platform.until(lambda: relay.done, "the end")
        outcome = relay.wait()
        assert outcome.reason is Reason.DRAIN_ERROR
        assert outcome.right_to_left.reason is Reason.SOURCE_ERROR
        with pytest.raises(ConnectionResetError):
            client.read(1)


def test_a_turn_ends_after_so_many_bytes(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other flows of that worker wait meanwhile, and a large pipe moves many in one call."""
    monkeypatch.setattr("freebsd_splice._userspace.flow.BYTES_A_TURN", 16)
    monkeypatch.setattr("freebsd_splice._userspace.movers._SCRATCH_BYTES", 8)
    platform = SteppedPlatform()
    with runtime(platform, COPY):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        splice = Splice(source, drain, max_bytes=1_000)
        sender.write(b"x" * 80)
        harness.until(lambda: harness.readable(source), "the bytes at the source")
        turns = [0]

        def all_moved() -> bool:
            turns.append(splice.bytes)
            return splice.bytes == 80

        platform.until(all_moved, "the bytes moved")
        assert max(after - before for before, after in pairwise(turns)) == 16
        assert receiver.read(80) == b"x" * 80
        splice.cancel()


def test_an_eof_that_cannot_be_passed_on_is_a_drain_error(harness: Harness) -> None:
    """F16: a drain that has died meanwhile, as one whose error somebody else has read."""

    class Dead(SteppedPlatform):
        def shutdown_write(self, endpoint: Endpoint) -> None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    platform = Dead()
    with runtime(platform):
        left, client = harness.pair()
        right, server = harness.pair()
        relay = Relay(left, right)
        client.finish(b"all there is")
        server.fin()
        platform.until(lambda: relay.done, "the end")
        outcome = relay.wait()
        assert outcome.reason is outcome.left_to_right.reason is Reason.DRAIN_ERROR
        assert outcome.error is not None
        assert outcome.error.errno == errno.ENOTCONN


@linux
def test_a_worker_keeps_few_spare_pipes(harness: Harness) -> None:
    """F31: after a crowd of slow drains the user's share of pipes is free again."""
    platform = SteppedPlatform()
    with runtime(platform, OS_SPLICE) as made:
        splices, senders = [], []
        for _ in range(24):
            source, sender = harness.pair()
            drain, _ = harness.pair(small_buffers=True)
            splices.append(Splice(source, drain))
            senders.append(sender)

        def full() -> bool:
            for sender in senders:
                sender.write_what_fits()
            return all(map(_waits_for_its_drain, splices))

        platform.until(full, "the drains full")
        assert platform.pipes == 24
        for splice in splices:
            assert splice.cancel().unsent
        [worker] = made._engine._workers
        assert 0 < len(worker._supplies._spare) <= 16


def test_a_flow_stopped_before_its_start_ends_with_it(harness: Harness) -> None:
    """The other flow of a pair can fail, or a socket be closed, while a relay is being made."""
    with runtime(SteppedPlatform()) as made:
        source, sender = harness.pair()
        drain, _ = harness.pair()
        sender.write(b"kept")
        shared = [
            made.sockets.acquire(one, source=True, drain=True, on_closed=_nothing)
            for one in (source, drain)
        ]
        [flow] = made.flows(1)
        flow.stop(Reason.CLOSED)
        ends: list[End] = []
        flow.start(shared[0], shared[1], None, b"ahead", ends.append)
        assert [(end.reason, end.moved, end.unsent) for end in ends] == [
            (Reason.CLOSED, 0, b"ahead")
        ]
        for one in shared:
            made.sockets.release(one, source=True, drain=True, on_closed=_nothing)
        assert harness.waiting(source, 4) == b"kept"


def _nothing() -> None: ...


def test_a_defect_ends_the_flow_and_not_the_worker(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    class Defective(RecordingPlatform):
        def receive_into(self, endpoint: Endpoint, buffer: memoryview) -> int:
            raise ZeroDivisionError("a defect")

    with runtime(Defective(), COPY), caplog.at_level(logging.CRITICAL, "freebsd_splice"):
        for _ in range(2):
            source, sender = harness.pair()
            drain, _ = harness.pair()
            sender.write(b"x")
            outcome = Splice(source, drain).wait(DEADLINE)
            assert outcome.reason is Reason.SOURCE_ERROR
            assert "a defect" in str(outcome.error)


def test_a_callback_that_fails_is_logged_and_the_worker_goes_on(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    with runtime(RecordingPlatform()):
        for _ in range(2):
            source, sender = harness.pair()
            drain, _ = harness.pair()
            splice = Splice(source, drain)
            splice.add_done_callback(lambda _: 1 / 0)
            sender.fin()
            splice.wait(DEADLINE)
    assert "a done callback of <Splice" in caplog.text


@linux
def test_signals_are_left_to_the_programs_threads(harness: Harness) -> None:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    with Splice(source, drain, timeout=60):
        for thread in threading.enumerate():
            if thread.name.startswith("freebsd-splice"):
                status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
                [blocked] = [line for line in status.splitlines() if line.startswith("SigBlk")]
                # HUP, INT, QUIT and PIPE are; SEGV and BUS are faulthandler's.
                assert int(blocked.split()[1], 16) & 0x1447 == 0x1007


@pytest.mark.parametrize("mover", MOVERS)
def test_a_dead_drain_does_not_kill_a_program_with_sigpipe(mover: str) -> None:
    """Command line programs restore SIGPIPE's default; the splice must not end them."""
    program = """
import signal, socket
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from freebsd_splice import Splice
source, sender = socket.socketpair()
drain, receiver = socket.socketpair()
splice = Splice(source, drain)
receiver.close()
sender.send(b"x")
print(splice.wait(20).reason.name)
for one in (source, sender, drain): one.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FREEBSD_SPLICE_MOVER": mover},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "DRAIN_ERROR\n"), done.stderr


def test_an_unknown_mover_is_refused_by_name(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEBSD_SPLICE_MOVER", "magic")
    source, _ = harness.pair()
    drain, _ = harness.pair()
    with pytest.raises(ValueError, match="FREEBSD_SPLICE_MOVER is 'magic'"):
        Splice(source, drain)


def test_threads_start_with_a_splice_and_end_with_shutdown(harness: Harness) -> None:
    import freebsd_splice

    assert _our_threads() == []
    source, _ = harness.pair()
    drain, _ = harness.pair()
    splice = Splice(source, drain)
    assert _our_threads()
    freebsd_splice.shutdown()
    assert _our_threads() == []
    assert splice.wait(0).reason is Reason.CANCELLED
    with Splice(source, drain):  # and start again when they are needed
        assert _our_threads()


def test_shutdown_is_refused_where_it_would_wait_for_itself(harness: Harness) -> None:
    """Of the caller's code, the ``close`` of a socket alone runs on a thread that moves bytes."""
    import freebsd_splice

    raised: list[BaseException] = []

    class Strange(socket.socket):
        def close(self) -> None:
            super().close()
            try:
                freebsd_splice.shutdown()
            except RuntimeError as error:
                raised.append(error)

    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(Strange(fileno=left.detach()), right, close=True)
    client.fin()
    server.fin()
    relay.wait(DEADLINE)
    assert "would have to wait for" in str(raised[0])
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    with Splice(source, drain):
        sender.write(b"goes on")
        assert receiver.read(7) == b"goes on"


def test_a_splice_made_after_the_shutdown_began_touches_nothing(harness: Harness) -> None:
    platform = RecordingPlatform()
    with runtime(platform) as made:
        made.close()
        source, _ = harness.pair()
        drain, _ = harness.pair()
        source.setblocking(True)
        with pytest.raises(RuntimeError, match="was shut down"):
            Splice(source, drain)
        assert os.get_blocking(source.fileno())
        assert _our_threads() == []


def test_a_shutdown_just_before_a_splice_is_known_is_harmless(harness: Harness) -> None:
    class ClosingClock(RecordingPlatform):
        due = False

        def now(self) -> float:
            if self.due:
                self.due = False
                made.close()
            return super().now()

    platform = ClosingClock()
    with runtime(platform) as made:
        source, _ = harness.pair()
        drain, _ = harness.pair()
        source.setblocking(True)
        Splice(source, drain).cancel()
        harness.until(lambda: made.timers._sleeps_until > 0, "the watcher asleep")
        platform.due = True
        with pytest.raises(RuntimeError, match="was shut down"):
            Splice(source, drain)
        assert os.get_blocking(source.fileno())


def test_a_splice_being_made_during_the_shutdown_ends_with_it(harness: Harness) -> None:
    class ShutDownMeanwhile(RecordingPlatform):
        closing: threading.Thread | None = None

        def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
            if self.closing is None:
                self.closing = threading.Thread(target=made.close)
                self.closing.start()
                harness.until(lambda: made._closing, "the shutdown")
            return super().duplicate(original)

    platform = ShutDownMeanwhile()
    with runtime(platform) as made:
        source, _ = harness.pair()
        drain, _ = harness.pair()
        assert Splice(source, drain).wait(DEADLINE).reason is Reason.CANCELLED
        assert platform.closing is not None
        platform.closing.join()


def test_a_shutdown_does_not_wait_for_a_splice_never_made(harness: Harness) -> None:
    class Failing(RecordingPlatform):
        closing: threading.Thread | None = None

        def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
            self.closing = threading.Thread(target=made.close)
            self.closing.start()
            harness.until(lambda: made._closing, "the shutdown")
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    platform = Failing()
    with runtime(platform) as made:
        source, _ = harness.pair()
        drain, _ = harness.pair()
        with pytest.raises(OSError, match="Too many open files"):
            Splice(source, drain)
        assert platform.closing is not None
        platform.closing.join(DEADLINE)
        assert not platform.closing.is_alive()


def test_a_drain_that_was_short_ends_both_directions(harness: Harness) -> None:
    """It lives, so nothing else would end the other one: both peers would wait for ever."""

    class Short(RecordingPlatform):
        def send(self, endpoint: Endpoint, data: memoryview) -> int:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with runtime(Short(), COPY):
        left, near = harness.pair()
        right, far = harness.pair()
        relay = Relay(left, right, close=True)
        near.write(b"hello")
        outcome = relay.wait(DEADLINE)
        assert outcome.reason is Reason.DRAIN_ERROR
        assert outcome.error is not None
        assert outcome.error.errno == errno.ENOBUFS
        assert outcome.left_to_right.unsent == b"hello"
        for peer in (near, far):
            with pytest.raises(ConnectionResetError):
                peer.read_to_end()


def test_a_thread_that_did_not_start_is_started_next_time(harness: Harness) -> None:
    class Short(RecordingPlatform):
        def __init__(self) -> None:
            super().__init__()
            self.started: set[str] = set()

        def run(self, step: Callable[[], bool], name: str) -> Runner:
            if name not in self.started:
                self.started.add(name)
                raise RuntimeError("can't start new thread")
            return super().run(step, name)

        def cpus(self) -> int:
            return 1

    with runtime(Short()):
        source, _ = harness.pair()
        drain, _ = harness.pair()
        for _ in range(2):  # the worker's, then the watcher's
            with pytest.raises(RuntimeError, match="can't start new thread"):
                Splice(source, drain, timeout=0.05)
        assert Splice(source, drain, timeout=0.05).wait(DEADLINE).reason is Reason.TIMEOUT


def test_a_program_that_forgets_its_splices_still_exits(harness: Harness) -> None:
    program = """
import socket
from freebsd_splice import Relay
keep = [socket.socketpair() for _ in range(2)]
Relay(keep[0][0], keep[1][0], idle_timeout=3600)
print("bye")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60 * SLOWNESS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"bye\n", b"")


def _our_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("freebsd-splice")]
