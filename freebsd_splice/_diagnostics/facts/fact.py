"""One entry of the table of facts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """A script, and what must be seen after it."""

    name: str
    #: The facts of docs/so_splice.md that it shows, "F10, F19".
    numbers: str
    #: Calls of ``Rig``, separated by semicolons: "send 5; splice max=5".
    script: str
    #: Events of the source and the drain from the splice on, as "src.R EOF, drain.W"; "none". An
    #: event with a question mark may come or not; each may come again.
    events: str | None = None
    #: Which of IN, OUT, HUP and RDHUP poll(2) shows; "none". "OUT?": may be shown or not.
    source: str | None = None
    drain: str | None = None
    #: The answer of the last splice, end or other call that can fail: an errno's name, or "ok".
    says: str | None = None
    #: Bytes that the kernel counts. "all": those sent; "some": fewer than those, more than none.
    count: int | str | None = None
    #: The answer of an unsplice call at the end: "ok", an errno's name, or several with "or".
    end: str | None = None
    #: SO_ERROR of the source and of the drain afterwards.
    errors: tuple[str, str] | None = None
    #: Bytes left at the source once the splice is over. "rest": all that has not arrived.
    left: int | str | None = None
    #: Bytes that have arrived at the drain's peer in the end, in order. "count": those counted;
    #: "some": any number.
    arrived: int | str | None = None
    #: The systems whose SO_SPLICE does that.
    systems: tuple[str, ...] = ("FreeBSD",)
    #: Where the fact is about what TCP does without a splice too: the systems whose TCP does that.
    sockets: tuple[str, ...] = ()
    #: The releases of FreeBSD that the fact holds for: from ``since`` on, and before ``before``.
    since: tuple[int, int] = (14, 3)
    before: tuple[int, int] = (99, 0)
    #: The fact is about the kernel's raw call. The package in userspace doesn't imitate that: it
    #: refuses what would destroy bytes.
    raw: bool = False
    #: Why the fact can be run on the model alone; empty: it can be run anywhere.
    model_only: str = ""
