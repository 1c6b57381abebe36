"""How many calls of the kernel a flow makes."""

from __future__ import annotations

from freebsd_splice import Splice

from ..rig import Rig
from . import scenario


@scenario()
def an_idle_splice_is_left_alone(on: Rig) -> None:
    """F19: a look that shows nothing touches nothing."""
    splice = on.splice()
    on.world.quiet(3)
    before = on.world.counts.copy()
    on.world.quiet(10)
    made = on.world.counts - before
    # F38: poll(2) doesn't show whether bytes wait at a source, so on OpenBSD FIONREAD is asked.
    asked = {"poll", "unread"} if on.world.version == "openbsd" else {"poll"}
    assert set(made.keys()) == asked
    assert made["unread"] <= made["poll"] <= 11
    assert not splice.done


@scenario()
def setting_up_takes_three_calls(on: Rig) -> None:
    """Besides the checks, the duplicates and O_NONBLOCK; a second splice starts no thread."""
    other, another = on.world.pair()[0], on.world.pair()[0]
    first = on.splice()
    loops, before = len(on.world.loops), on.world.counts.copy()
    second = Splice(other, another)
    made = on.world.counts - before
    assert made["kevent"] + made["set"] == 3
    assert len(on.world.loops) == loops
    first.cancel()
    second.cancel()
