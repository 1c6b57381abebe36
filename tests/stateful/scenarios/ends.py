"""Learning of the end from events that are stale, late or lost.

OpenBSD's kernel loses no event: the scenarios about lost ones are FreeBSD's alone.
"""

from __future__ import annotations

from freebsd_splice import Reason, Relay

from ..registry import FREEBSD
from ..rig import LATE, SOON, Rig
from . import scenario


@scenario()
def an_end_within_the_call_is_learnt_at_once(on: Rig) -> None:
    """F19, F20: waiting data meets the limit before setsockopt has returned."""
    on.arrive(b"123456789")
    splice = on.splice(limit=5)
    on.ended(splice, Reason.LIMIT, 5)
    assert on.source.recv(10) == b"6789"


@scenario()
def a_stale_event_ends_nothing(on: Rig) -> None:
    """F19: an event between the registration and the splice leaves the splice alive."""
    on.drain.send(b"ahead")
    on.world.deliver(on.receiver.incoming)
    on.kernel.during_set = lambda: on.world.ack(on.receiver.incoming)
    splice = on.splice()
    # F20: on FreeBSD the drain shows that the splice is alive. If the splice were ended to find
    # out, the ACKs of a stream could make it end and begin again for as long as the stream lasts.
    assert on.world.counts["set"] == (2 if on.world.version == "openbsd" else 1)
    on.arrive(b"data")
    on.now()
    assert on.receiver.read() == b"aheaddata"
    assert not splice.done
    on.sender.fin()
    on.now()
    on.ended(splice, Reason.EOF, 4)


@scenario()
def a_stale_event_of_a_full_drain_is_settled(on: Rig) -> None:
    """F19, F20: a full drain hides whether the splice is alive; it is ended and set again."""
    data = on.fill_the_drain()  # nothing is spliced yet: all of it waits at the source
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


@scenario(FREEBSD)
def only_the_first_event_can_be_stale(on: Rig) -> None:
    """F19: a later event is about an end, even if another splice uses the drain by then."""
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


@scenario(FREEBSD)
def a_lost_eof_is_found_soon(on: Rig) -> None:
    """F14: a FIN while the worker moves the last bytes gives no event."""
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


@scenario(FREEBSD)
def a_lost_eof_is_found_late_too(on: Rig) -> None:
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


@scenario(FREEBSD)
def a_lost_reset_of_the_drain_is_found(on: Rig) -> None:
    """F14, F16: a drain's reset while the worker runs gives no event either."""
    splice = on.splice()
    on.arrive(b"data")
    on.interrupted()
    on.receiver.reset()
    on.world.deliver_reset(on.receiver.outgoing)
    on.now()
    assert not splice.done, "the model has lost no reset"
    on.world.quiet(SOON)
    on.ended(splice, Reason.DRAIN_ERROR, 4)


@scenario()
def a_limit_met_behind_a_full_drain_is_found(on: Rig) -> None:
    """F19: besides the lost EOF, this is the other end without an event."""
    splice = on.splice(limit=28_192)
    on.fill_the_drain()
    data = b"x" * (28_192 - splice.bytes)
    on.arrive(data)
    on.now()
    assert on.drain.endpoint.outgoing.room == 0
    on.world.quiet(LATE)
    on.ended(splice, Reason.LIMIT, 28_192)


@scenario(FREEBSD)
def the_other_directions_eof_brings_the_looks_back(on: Rig) -> None:
    """F14: the answer ends soon after the request."""
    relay = Relay(on.source, on.drain)
    on.world.quiet(60)
    on.sender.fin()
    on.now()  # the EOF is passed on: the server may end now too
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
