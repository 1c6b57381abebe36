"""What a flow of the kernel's must get right, one thing each, with nothing left to chance."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from freebsd_splice import Outcome, Reason, Relay, Splice, _runtime
from freebsd_splice._kernel.lost_events import FIRST_SECONDS
from model.so_splice import NOTHING, PUSHING, SETTING_AGAIN, ModelledSplice
from model.world import ModelPeer, ModelSocket, World

#: Model seconds for what the second look finds out soon after the start, and at the rarest.
SOON, LATE = 3 * FIRST_SECONDS, 2.2
#: The same for what takes more than one look.
TWO_SOON, TWO_LATE = 10 * FIRST_SECONDS, 1.2


class Stage:
    """Two connections in a world whose clock and worker stand still until they are told to go."""

    def __init__(self, version: str) -> None:
        self.world = World(version)
        self.world.automatic = False
        self.kernel = self.world.so_splice
        self.source, self.sender = self.world.pair(20_000, 40_000)
        self.drain, self.receiver = self.world.pair(20_000, 8_192)

    def splice(self, limit: int | None = None, **options: float) -> Splice:
        made = Splice(self.source, self.drain, max_bytes=limit, **options)  # type: ignore[arg-type]
        self.now()
        return made

    def now(self) -> None:
        """Everything that happens without time passing."""
        self.world.quiet(0.0)

    def arrive(self, data: bytes) -> None:
        """Bytes at the source; the worker has not run yet."""
        assert self.sender.write(data) == len(data)
        self.world.deliver(self.sender.outgoing)

    def fill_the_drain(self, count: int = 20_000) -> bytes:
        """Bytes that nobody reads: 28,192 fit into the drain's and its reader's buffers."""
        data = b"".join(number.to_bytes(2, "big") for number in range(count // 2))
        for at in range(0, len(data), 5_000):
            self.arrive(data[at : at + 5_000])
            self.now()
        return data

    def interrupted(self) -> ModelledSplice:
        """The worker has moved what there was, and has not come to rest."""
        [splice] = self.world.splices
        self.world.worker_move(splice)
        return splice

    def read(self) -> bytes:
        got = b""
        while piece := self.receiver.read():
            got += piece
            self.now()
        return got

    def ended(self, splice: Splice, reason: Reason, count: int) -> Outcome:
        """It is over by now, so."""
        assert splice.done, "no end was reported"
        outcome = splice.wait()
        assert (outcome.reason, outcome.bytes) == (reason, count), outcome
        assert outcome.backend == "kernel"
        return outcome


@contextmanager
def stage(version: str) -> Iterator[Stage]:
    made = Stage(version)
    runtime = _runtime.Runtime(made.world.port, choose=made.world.port.choose)
    before = _runtime.install(runtime)
    try:
        yield made
    finally:
        _runtime.install(before)
        made.world.automatic = True
        runtime.close()
        made.world.check_quiet()


# Learning of the end


def an_end_within_the_call_is_learnt_at_once(on: Stage) -> None:
    """F19, F20: waiting data meets the limit before setsockopt has returned."""
    on.arrive(b"123456789")
    splice = on.splice(limit=5)
    on.ended(splice, Reason.LIMIT, 5)
    assert on.source.recv(10) == b"6789"


def a_stale_event_ends_nothing(on: Stage) -> None:
    """F19: an event between the registration and the splice; all goes on."""
    on.drain.send(b"ahead")
    on.world.deliver(on.receiver.incoming)
    on.kernel.during_set = lambda: on.world.ack(on.receiver.incoming)
    splice = on.splice()
    # F20: on FreeBSD the drain tells that it is one.  Were the splice ended to find out, a stream
    # could make it end and begin for as long as it lasts, by its own ACKs.
    assert on.world.counts["set"] == (2 if on.world.version == "openbsd" else 1)
    on.arrive(b"data")
    on.now()
    assert on.receiver.read() == b"aheaddata"
    assert not splice.done
    on.sender.fin()
    on.now()
    on.ended(splice, Reason.EOF, 4)


def a_stale_event_of_a_full_drain_is_settled(on: Stage) -> None:
    """F19, F20: it can't be told whether the splice lives; it is ended by hand, and set again."""
    data = on.fill_the_drain()  # which is no drain yet: all of it waits at the source
    on.drain.send(b"ahead" * 3_900)
    on.world.deliver(on.receiver.incoming)
    on.kernel.during_set = lambda: on.world.ack(on.receiver.incoming)
    splice = on.splice()
    assert on.world.counts["set"] == 2
    assert not splice.done
    assert on.read() == b"ahead" * 3_900 + data
    on.sender.fin()
    on.now()
    on.ended(splice, Reason.EOF, len(data))


def only_the_first_event_can_be_stale(on: Stage) -> None:
    """F19: one that comes later is of an end, whoever uses the drain by then."""
    on.drain.send(b"ahead")
    on.world.deliver(on.receiver.incoming)
    on.kernel.during_set = lambda: on.world.ack(on.receiver.incoming)
    splice = on.splice()
    on.world.unspliced_by_somebody(on.source)
    other, _ = on.world.pair()
    on.world.calls.set_splice(other.fileno(), on.drain.fileno(), 0, 0)
    on.now()
    on.ended(splice, Reason.UNSPLICED, 0)
    on.world.calls.end_splice(other.fileno())


def a_lost_eof_is_found_soon(on: Stage) -> None:
    """F14"""
    splice = on.splice()
    on.arrive(b"short answer")
    on.interrupted()
    on.world.deliver(on.receiver.incoming)
    on.world.ack(on.receiver.incoming)
    on.sender.fin()
    on.world.deliver_fin(on.sender.outgoing)
    on.now()
    assert not splice.done, "the model has lost no EOF"
    on.world.quiet(SOON)
    on.ended(splice, Reason.EOF, 12)


def a_lost_eof_is_found_late_too(on: Stage) -> None:
    """F14, after a long silence."""
    splice = on.splice()
    on.world.quiet(60)
    on.arrive(b"at last")
    on.interrupted()
    on.world.deliver(on.receiver.incoming)
    on.world.ack(on.receiver.incoming)
    on.sender.fin()
    on.world.deliver_fin(on.sender.outgoing)
    on.world.quiet(LATE)
    on.ended(splice, Reason.EOF, 7)


def a_lost_reset_of_the_drain_is_found(on: Stage) -> None:
    """F14, F16"""
    splice = on.splice()
    on.arrive(b"data")
    on.interrupted()
    on.receiver.reset()
    on.world.deliver_reset(on.receiver.outgoing)
    on.now()
    assert not splice.done, "the model has lost no reset"
    on.world.quiet(SOON)
    on.ended(splice, Reason.DRAIN_ERROR, 4)


def a_limit_met_behind_a_full_drain_is_found(on: Stage) -> None:
    """F19's second silent end."""
    splice = on.splice(limit=28_192)
    on.fill_the_drain()
    data = b"x" * (28_192 - splice.bytes)
    on.arrive(data)
    on.now()
    assert on.drain.endpoint.outgoing.room == 0
    on.world.quiet(LATE)
    on.ended(splice, Reason.LIMIT, 28_192)


def the_other_directions_eof_brings_the_looks_back(on: Stage) -> None:
    """F14: the answer ends soon after the request."""
    relay = Relay(on.source, on.drain)
    on.world.quiet(60)
    on.sender.fin()
    on.now()  # passed on: the server may end now too
    on.receiver.write(b"answer")
    on.world.deliver(on.receiver.outgoing)
    [splice] = on.world.splices
    on.world.worker_move(splice)
    on.world.deliver(on.sender.incoming)
    on.world.ack(on.sender.incoming)
    on.receiver.fin()
    on.world.deliver_fin(on.receiver.outgoing)
    on.now()
    assert not relay.done
    on.world.quiet(SOON)
    assert relay.done
    assert relay.wait().reason is Reason.EOF


def an_idle_splice_is_left_alone(on: Stage) -> None:
    """F19: a look that shows nothing touches nothing."""
    splice = on.splice()
    on.world.quiet(3)
    before = on.world.counts.copy()
    on.world.quiet(10)
    made = on.world.counts - before
    # F38: poll(2) doesn't tell whether bytes wait at a source, so OpenBSD is asked for that.
    asked = {"poll", "unread"} if on.world.version == "openbsd" else {"poll"}
    assert set(made.keys()) == asked
    assert made["unread"] <= made["poll"] <= 11
    assert not splice.done


# Standing still, on OpenBSD


def a_splice_that_stands_still_is_pushed(on: Stage) -> None:
    """F38: and nothing more is done to it, nor before it stands still."""
    splice = on.splice()
    on.world.quiet(60)
    on.arrive(b"on its way")
    on.now()
    on.world.quiet(LATE)
    assert on.world.counts["push"] == 0
    on.kernel.stall = PUSHING
    on.arrive(b"stands still")
    on.now()
    assert on.receiver.read() == b"on its way" + b"stands"
    on.world.quiet(TWO_LATE)
    assert on.receiver.read() == b" still"
    assert (on.world.counts["push"], on.world.counts["set"]) == (1, 1)
    on.sender.fin()
    on.now()
    on.ended(splice, Reason.EOF, 22)


def one_that_a_push_does_not_help_is_set_again(on: Stage) -> None:
    """F38"""
    splice = on.splice(limit=11)
    on.kernel.stall = SETTING_AGAIN
    on.arrive(b"stands still")
    on.world.quiet(TWO_SOON)
    assert on.world.counts["set"] == 2
    assert on.receiver.read() == b"stands stil"
    on.ended(splice, Reason.LIMIT, 11)


def one_that_nothing_helps_is_not_set_again_and_again(on: Stage) -> None:
    """F38: whatever holds it up, it burns no processor."""
    splice = on.splice()
    on.kernel.stall = NOTHING
    on.arrive(b"ten bytes!")
    on.world.quiet(20)
    assert on.world.counts["set"] == 2
    assert on.world.counts["push"] < 100
    splice.cancel()
    assert on.source.recv(99) == b"ten bytes!"


def a_full_drain_is_no_stall(on: Stage) -> None:
    """F38: its reader will take what there is, some time."""
    splice = on.splice()
    data = on.fill_the_drain(30_000)
    on.world.quiet(20)
    assert (on.world.counts["push"], on.world.counts["set"]) == (0, 1)
    assert on.read() == data
    splice.cancel()


def traffic_at_every_look_is_no_stall(on: Stage) -> None:
    """F38: bytes wait whenever somebody looks, but not the same ones."""
    splice = on.splice()
    for _ in range(200):
        on.arrive(b"some bytes")
        on.world.tick(0.01)
        for loop in list(on.world.loops):
            on.world.turn(loop)  # the looks come before the kernel's worker
        on.now()
        on.receiver.read()
    assert on.world.counts["unread"] > 5
    assert on.world.counts["count"] > 5
    assert (on.world.counts["push"], on.world.counts["set"]) == (0, 1)
    splice.cancel()


def a_drain_that_died_in_a_stall_is_no_failure_of_ours(on: Stage) -> None:
    """F38: the push is refused; the end comes as ever."""
    splice = on.splice()
    on.kernel.stall = PUSHING
    on.arrive(b"stands still")
    on.world.worker(on.world.splices[0])
    on.drain.endpoint.die(errno.ECONNRESET)
    on.drain.endpoint.dead = True
    splice._flow.bytes_wait()  # type: ignore[attr-defined]
    on.now()
    splice._flow.bytes_wait()  # type: ignore[attr-defined]
    on.now()
    assert on.world.counts["push"] == 1
    on.world.quiet(LATE)
    on.ended(splice, Reason.DRAIN_ERROR, 6)


def a_cause_left_at_the_source_ends_no_splice(on: Stage) -> None:
    """F10: of a splice that the program itself made before."""
    on.arrive(b"1234567890")
    on.world.calls.set_splice(on.source.fileno(), on.drain.fileno(), 5, 0)
    on.now()
    assert on.source.endpoint.error == errno.EFBIG
    splice = on.splice()
    assert on.world.counts["set"] == 2
    assert on.receiver.read() == b"1234567890"
    on.sender.fin()
    on.now()
    outcome = on.ended(splice, Reason.EOF, 5)
    assert outcome.mover == "SO_SPLICE"
    assert on.world.counts["recv"] == 0, "userspace has moved what the kernel could"


# Every byte


def bytes_behind_a_full_drain_come_before_the_eof(on: Stage) -> None:
    """F13"""
    splice = on.splice()
    data = on.fill_the_drain()
    more = b"the last of it" * 700
    on.arrive(more)
    on.sender.fin()
    on.now()
    assert not splice.done
    assert on.read() == data + more
    on.now()
    on.ended(splice, Reason.EOF, len(data + more))


def a_limit_is_exact_over_all_segments(on: Stage) -> None:
    """Stale events cut the splice in pieces; the limit counts through."""
    splice = on.splice(limit=3_000)
    for _ in range(5):
        on.arrive(b"x" * 500)
        on.world.worker(on.world.splices[0])
        on.world.deliver(on.receiver.incoming)
        splice._flow.wake()  # type: ignore[attr-defined]
        on.now()
        assert splice.bytes == len(on.receiver.read()) + splice.bytes - 500
    assert on.world.counts["set"] == 6
    on.arrive(b"x" * 600)
    on.now()
    on.ended(splice, Reason.LIMIT, 3_000)
    assert on.source.recv(1000) == b"x" * 100


def nothing_is_spliced_into_a_drain_that_was_shut_down(on: Stage) -> None:
    """F21"""
    on.arrive(b"kept")
    on.drain.shutdown(socket.SHUT_WR)
    outcome = on.ended(on.splice(), Reason.DRAIN_ERROR, 0)
    assert isinstance(outcome.error, BrokenPipeError)
    assert on.source.recv(9) == b"kept"


def nothing_is_spliced_into_a_drain_that_is_connecting(on: Stage) -> None:
    """F21; OpenBSD's kernel waits for it."""
    on.drain.endpoint.state = 2
    on.arrive(b"kept")
    outcome = on.ended(on.splice(), Reason.DRAIN_ERROR, 0)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ENOTCONN
    assert on.source.recv(9) == b"kept"


def a_batch_that_vanishes_is_no_success(on: Stage) -> None:
    """F16: a FIN follows what the dying drain has swallowed."""
    on.kernel.vanish = True
    splice = on.splice()
    on.receiver.reset()
    on.arrive(b"vanishing")
    on.sender.fin()
    on.world.deliver_fin(on.sender.outgoing)
    on.world.deliver_reset(on.receiver.outgoing)
    on.now()
    outcome = on.ended(splice, Reason.DRAIN_ERROR, 0)
    assert isinstance(outcome.error, ConnectionResetError)


def a_reset_of_the_source_comes_after_its_bytes(on: Stage) -> None:
    """F18, F13: also where the drain was full."""
    splice = on.splice()
    data = on.fill_the_drain()
    on.arrive(b"and more" * 100)
    on.sender.reset()
    on.now()
    assert on.read() == data + b"and more" * 100
    outcome = on.ended(splice, Reason.SOURCE_ERROR, len(data) + 800)
    assert isinstance(outcome.error, ConnectionResetError)


def cancelling_leaves_the_rest_at_the_source(on: Stage) -> None:
    splice = on.splice()
    data = on.fill_the_drain(30_000)
    on.arrive(b"kept")
    on.now()
    outcome = splice.cancel()
    assert outcome.reason is Reason.CANCELLED
    left = on.source.recv(100_000)
    assert on.read() == (data + b"kept")[: outcome.bytes]
    assert left == (data + b"kept")[outcome.bytes :]


def bytes_read_before_go_ahead(on: Stage) -> None:
    on.arrive(b" world")
    splice = Splice(on.source, on.drain, initial=b"hello")
    on.now()
    assert on.receiver.read() == b"hello world"
    on.sender.fin()
    on.now()
    on.ended(splice, Reason.EOF, 11)


def bytes_sent_ahead_to_a_drain_that_died_are_no_success(on: Stage) -> None:
    """F16: cancelled between ``initial`` and the first splice."""
    splice = Splice(on.source, on.drain, initial=b"ahead")
    [worker] = [loop for loop in on.world.loops if "worker" in loop.name]
    on.world.turn(worker)
    on.receiver.reset()
    on.world.deliver_reset(on.receiver.outgoing)
    splice.cancel()
    on.ended(splice, Reason.DRAIN_ERROR, 5)


# Reasons


def somebody_elses_unsplice_is_an_end(on: Stage) -> None:
    splice = on.splice()
    on.arrive(b"12345")
    on.now()
    on.world.unspliced_by_somebody(on.source)
    on.now()
    on.ended(splice, Reason.UNSPLICED, 5)
    on.arrive(b"mine again")
    assert on.source.recv(99) == b"mine again"


def traffic_keeps_it_alive(on: Stage) -> None:
    """F11: FreeBSD's sp_idle would end it."""
    splice = on.splice(idle_timeout=0.5)
    for _ in range(20):
        on.arrive(b"x")
        on.world.quiet(0.1)
        on.receiver.read()
        assert not splice.done
    on.world.quiet(0.7)
    on.ended(splice, Reason.IDLE, 20)


def a_closed_object_ends_it_within_a_second(on: Stage) -> None:
    """F27"""
    splice = on.splice()
    on.source.close()
    on.world.quiet(1.0)
    on.ended(splice, Reason.CLOSED, 0)


# What others may do at the same time


def the_sockets_are_non_blocking_before_the_kernel_hears_of_them(on: Stage) -> None:
    """F24"""
    on.source.setblocking(True)
    on.drain.setblocking(True)
    on.splice().cancel()
    assert not on.world.blocking_while_spliced
    assert not on.source.endpoint.non_blocking
    assert not on.drain.endpoint.non_blocking


def an_end_waits_for_a_set_under_way(on: Stage) -> None:
    """F35: ended in the middle of the call, it would answer ENOTCONN and live."""
    threads: list[threading.Thread] = []
    ended = threading.Event()

    def end_it() -> None:
        runtime = _runtime.current()
        [splice] = runtime._live

        def cancel() -> None:
            splice.end_for_shutdown()  # of the event, nothing is asked of the world by then
            ended.set()

        threads.append(threading.Thread(target=cancel))
        threads[0].start()
        # Where nothing holds it back it is done at once; else it goes on when this call is over.
        ended.wait(0.2)

    on.kernel.during_set = end_it
    splice = Splice(on.source, on.drain)
    threads[0].join(20)
    assert not threads[0].is_alive()
    assert splice.done
    assert not on.world.splices, "a splice lives on that nobody knows"


def a_reset_between_the_check_and_the_call(on: Stage) -> None:
    """F22: before 15.1 the source is lost by it, and the error says so."""

    def reset() -> None:
        on.receiver.reset()
        on.world.deliver_reset(on.receiver.outgoing)

    on.arrive(b"data")
    on.kernel.before_set = reset
    splice = on.splice()
    outcome = on.ended(splice, Reason.DRAIN_ERROR, 0)
    assert outcome.error is not None
    if on.world.version == "14.3":
        assert outcome.error.errno == errno.ENOTRECOVERABLE
        assert "only closing the source helps" in str(outcome.error)
    else:
        assert isinstance(outcome.error, ConnectionResetError)
        assert on.source.recv(9) == b"data"


def setting_up_takes_three_calls(on: Stage) -> None:
    """Besides the checks, the duplicates and O_NONBLOCK; and no thread of its own."""
    other, another = on.world.pair()[0], on.world.pair()[0]
    first = on.splice()
    loops, before = len(on.world.loops), on.world.counts.copy()
    second = Splice(other, another)
    made = on.world.counts - before
    assert made["kevent"] + made["set"] == 3
    assert len(on.world.loops) == loops
    first.cancel()
    second.cancel()


FREEBSD: list[Callable[[Stage], None]] = [
    an_end_within_the_call_is_learnt_at_once,
    a_stale_event_ends_nothing,
    a_stale_event_of_a_full_drain_is_settled,
    only_the_first_event_can_be_stale,
    a_lost_eof_is_found_soon,
    a_lost_eof_is_found_late_too,
    a_lost_reset_of_the_drain_is_found,
    a_limit_met_behind_a_full_drain_is_found,
    the_other_directions_eof_brings_the_looks_back,
    an_idle_splice_is_left_alone,
    bytes_behind_a_full_drain_come_before_the_eof,
    a_limit_is_exact_over_all_segments,
    nothing_is_spliced_into_a_drain_that_was_shut_down,
    nothing_is_spliced_into_a_drain_that_is_connecting,
    a_batch_that_vanishes_is_no_success,
    a_reset_of_the_source_comes_after_its_bytes,
    cancelling_leaves_the_rest_at_the_source,
    bytes_read_before_go_ahead,
    bytes_sent_ahead_to_a_drain_that_died_are_no_success,
    somebody_elses_unsplice_is_an_end,
    traffic_keeps_it_alive,
    a_closed_object_ends_it_within_a_second,
    the_sockets_are_non_blocking_before_the_kernel_hears_of_them,
    an_end_waits_for_a_set_under_way,
    a_reset_between_the_check_and_the_call,
    setting_up_takes_three_calls,
]
#: What OpenBSD's kernel has no part in: it loses no event, and waits for a drain that connects.
NOT_OPENBSD = {
    only_the_first_event_can_be_stale,
    a_lost_eof_is_found_soon,
    a_lost_eof_is_found_late_too,
    a_lost_reset_of_the_drain_is_found,
    the_other_directions_eof_brings_the_looks_back,
    nothing_is_spliced_into_a_drain_that_is_connecting,
}
OPENBSD_ALONE: list[Callable[[Stage], None]] = [
    a_splice_that_stands_still_is_pushed,
    one_that_a_push_does_not_help_is_set_again,
    one_that_nothing_helps_is_not_set_again_and_again,
    a_full_drain_is_no_stall,
    traffic_at_every_look_is_no_stall,
    a_drain_that_died_in_a_stall_is_no_failure_of_ours,
    a_cause_left_at_the_source_ends_no_splice,
]
OPENBSD = [scenario for scenario in FREEBSD if scenario not in NOT_OPENBSD] + OPENBSD_ALONE

__all__ = ["FREEBSD", "OPENBSD", "OPENBSD_ALONE", "ModelPeer", "ModelSocket", "Stage", "stage"]
