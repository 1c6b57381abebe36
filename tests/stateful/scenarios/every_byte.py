"""No byte is lost, doubled, or reported as delivered when it was not."""

from __future__ import annotations

import errno
import socket

from freebsd_splice import Reason, Splice

from ..registry import FREEBSD
from ..rig import Rig
from . import scenario


@scenario()
def bytes_behind_a_full_drain_come_before_the_eof(on: Rig) -> None:
    """F13: a FIN at a full drain ends the kernel's splice with bytes left at the source."""
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


@scenario()
def a_limit_is_exact_over_all_segments(on: Rig) -> None:
    """Stale events cut the splice into segments; the limit is for all of them together."""
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


@scenario()
def nothing_is_spliced_into_a_drain_that_was_shut_down(on: Rig) -> None:
    """F21: FreeBSD's kernel would destroy the waiting bytes."""
    on.arrive(b"kept")
    on.drain.shutdown(socket.SHUT_WR)
    outcome = on.ended(on.splice(), Reason.DRAIN_ERROR, 0)
    assert isinstance(outcome.error, BrokenPipeError)
    assert on.source.recv(9) == b"kept"


@scenario(FREEBSD)
def nothing_is_spliced_into_a_drain_that_is_connecting(on: Rig) -> None:
    """F21: FreeBSD's kernel would destroy the waiting bytes; OpenBSD's waits for the drain."""
    on.drain.endpoint.state = 2
    on.arrive(b"kept")
    outcome = on.ended(on.splice(), Reason.DRAIN_ERROR, 0)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ENOTCONN
    assert on.source.recv(9) == b"kept"


@scenario()
def a_batch_that_vanishes_is_no_success(on: Rig) -> None:
    """F16: a FIN follows the batch that is lost with the dying drain."""
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


@scenario()
def a_reset_of_the_source_comes_after_its_bytes(on: Rig) -> None:
    """F18, F13: even if the drain was full."""
    splice = on.splice()
    data = on.fill_the_drain()
    on.arrive(b"and more" * 100)
    on.sender.reset()
    on.now()
    assert on.read() == data + b"and more" * 100
    outcome = on.ended(splice, Reason.SOURCE_ERROR, len(data) + 800)
    assert isinstance(outcome.error, ConnectionResetError)


@scenario()
def cancelling_leaves_the_remainder_at_the_source(on: Rig) -> None:
    splice = on.splice()
    data = on.fill_the_drain(30_000)
    on.arrive(b"kept")
    on.now()
    outcome = splice.cancel()
    assert outcome.reason is Reason.CANCELLED
    left = on.source.recv(100_000)
    assert on.read() == (data + b"kept")[: outcome.bytes]
    assert left == (data + b"kept")[outcome.bytes :]


@scenario()
def bytes_read_before_go_ahead(on: Rig) -> None:
    on.arrive(b" world")
    splice = Splice(on.source, on.drain, initial=b"hello")
    on.now()
    assert on.receiver.read() == b"hello world"
    on.sender.fin()
    on.now()
    on.ended(splice, Reason.EOF, 11)


@scenario()
def bytes_sent_ahead_to_a_dead_drain_are_a_drain_error(on: Rig) -> None:
    """F16: cancelled between ``initial`` and the first splice."""
    splice = Splice(on.source, on.drain, initial=b"ahead")
    [worker] = [loop for loop in on.world.loops if "worker" in loop.name]
    on.world.turn(worker)
    on.receiver.reset()
    on.world.deliver_reset(on.receiver.outgoing)
    splice.cancel()
    on.ended(splice, Reason.DRAIN_ERROR, 5)
