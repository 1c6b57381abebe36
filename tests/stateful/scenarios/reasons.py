"""The reported reason is the one for which the splice ended."""

from __future__ import annotations

import errno

from freebsd_splice import Reason

from ..registry import OPENBSD
from ..rig import Rig
from . import scenario


@scenario(OPENBSD)
def a_cause_left_at_the_source_ends_no_splice(on: Rig) -> None:
    """F10: the cause of an earlier splice, made by the program itself, is still in SO_ERROR."""
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


@scenario()
def somebody_elses_unsplice_is_an_end(on: Rig) -> None:
    splice = on.splice()
    on.arrive(b"12345")
    on.now()
    on.world.unspliced_by_somebody(on.source)
    on.now()
    on.ended(splice, Reason.UNSPLICED, 5)
    on.arrive(b"mine again")
    assert on.source.recv(99) == b"mine again"


@scenario()
def traffic_keeps_it_alive(on: Rig) -> None:
    """F11: FreeBSD's sp_idle would end the splice in spite of traffic."""
    splice = on.splice(idle_timeout=0.5)
    for _ in range(20):
        on.arrive(b"x")
        on.world.quiet(0.1)
        on.receiver.read()
        assert not splice.done
    on.world.quiet(0.7)
    on.ended(splice, Reason.IDLE, 20)


@scenario()
def a_closed_object_ends_it_within_a_second(on: Rig) -> None:
    """F27: no event shows that the caller has closed its object."""
    splice = on.splice()
    on.source.close()
    on.world.quiet(1.0)
    on.ended(splice, Reason.CLOSED, 0)
