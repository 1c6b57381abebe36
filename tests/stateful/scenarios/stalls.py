"""Splices that stand still, on OpenBSD (F38)."""

from __future__ import annotations

import errno

from freebsd_splice import Reason
from model.so_splice import NOTHING, PUSHING, SETTING_AGAIN

from ..registry import OPENBSD
from ..rig import LATE, TWO_LATE, TWO_SOON, Rig
from . import scenario


@scenario(OPENBSD)
def a_splice_that_stands_still_is_pushed(on: Rig) -> None:
    """F38: it is pushed once, only after it stands still, and nothing else is done to it."""
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


@scenario(OPENBSD)
def one_that_a_push_does_not_help_is_set_again(on: Rig) -> None:
    """F38: and its limit counts the bytes moved before."""
    splice = on.splice(limit=11)
    on.kernel.stall = SETTING_AGAIN
    on.arrive(b"stands still")
    on.world.quiet(TWO_SOON)
    assert on.world.counts["set"] == 2
    assert on.receiver.read() == b"stands stil"
    on.ended(splice, Reason.LIMIT, 11)


@scenario(OPENBSD)
def one_that_nothing_helps_is_not_set_again_and_again(on: Rig) -> None:
    """F38: whatever holds it up, it must not use up the processor."""
    splice = on.splice()
    on.kernel.stall = NOTHING
    on.arrive(b"ten bytes!")
    on.world.quiet(20)
    assert on.world.counts["set"] == 2
    assert on.world.counts["push"] < 100
    splice.cancel()
    assert on.source.recv(99) == b"ten bytes!"


@scenario(OPENBSD)
def a_full_drain_is_not_a_stall(on: Rig) -> None:
    """F38: the drain's reader takes the bytes later."""
    splice = on.splice()
    data = on.fill_the_drain(30_000)
    on.world.quiet(20)
    assert (on.world.counts["push"], on.world.counts["set"]) == (0, 1)
    assert on.read() == data
    splice.cancel()


@scenario(OPENBSD)
def traffic_at_every_look_is_not_a_stall(on: Rig) -> None:
    """F38: bytes wait at every look, but not the same ones."""
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


@scenario(OPENBSD)
def a_drain_that_dies_in_a_stall_ends_the_splice_as_usual(on: Rig) -> None:
    """F38: the kernel refuses the push, which must not be taken for a defect."""
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
