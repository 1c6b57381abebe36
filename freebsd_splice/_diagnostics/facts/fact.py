"""One entry of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """A script, and what is to be seen after it."""

    name: str
    #: The facts of docs/so_splice.md that it shows, "F10, F19".
    numbers: str
    #: Calls of ``Rig``: "send 5", "splice max=5", one after the other, separated by semicolons.
    script: str
    #: Events of the source and the drain from the splice on, as "src.R EOF, drain.W"; "none".
    #: An event with a question mark may come or not; each may come again.
    events: str | None = None
    #: What poll(2) shows of IN, OUT, HUP and RDHUP; "none".  "OUT?": it may be there or not.
    source: str | None = None
    drain: str | None = None
    #: What the last splice, end or other call that can fail has said: an errno's name, or "ok".
    says: str | None = None
    #: Bytes that the kernel counts.  "all": those sent; "some": fewer than those, more than none.
    count: int | str | None = None
    #: What ending by hand says at last: "ok", an errno's name, or several with "or".
    end: str | None = None
    #: SO_ERROR of the source and of the drain afterwards.
    errors: tuple[str, str] | None = None
    #: Bytes left at the source once the splice is over.  "rest": all that has not arrived.
    left: int | str | None = None
    #: Bytes that have arrived at the drain's peer in the end, in order; "count": those counted;
    #: "some": however many.
    arrived: int | str | None = None
    #: Whose SO_SPLICE does that.
    systems: tuple[str, ...] = ("FreeBSD",)
    #: It is about what TCP does without a splice too: whose TCP; empty: it is not about that.
    sockets: tuple[str, ...] = ()
    #: The releases of FreeBSD it holds for: from, and before.
    since: tuple[int, int] = (14, 3)
    before: tuple[int, int] = (99, 0)
    #: It is about the kernel's raw call, which the package in userspace does not imitate: it
    #: refuses what would destroy bytes.
    raw: bool = False
    #: Why it can be run on the model alone; empty: anywhere.
    model_only: str = ""
