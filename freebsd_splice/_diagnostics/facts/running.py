"""Running a fact: run its script on a rig, and compare what is seen with what the fact says."""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from .fact import Fact


class Rig(Protocol):
    """Two connections, from the sender to the source and from the drain to the receiver, and one
    splice from the source to the drain. Sockets are non-blocking.

    The words of a script are the ``do_…`` methods. One that can fail raises OSError. When a method
    returns, everything that follows from it has happened.
    """

    @property
    def system(self) -> str: ...

    @property
    def sockets(self) -> str:
        """The system that the sockets belong to."""
        ...

    @property
    def release(self) -> tuple[int, int]: ...

    def shows(self, fact: Fact) -> Fact | None:
        """Return the part of a fact that this rig can show; None: nothing of it."""
        ...

    @property
    def sent(self) -> int:
        """Bytes that the sender has sent."""
        ...

    def seen_events(self) -> list[str]:
        """Return the events since the first splice, in the table's words."""
        ...

    def seen_poll(self, which: str) -> set[str]: ...

    def seen_count(self) -> int: ...

    def seen_error(self, which: str) -> int:
        """Return SO_ERROR, and clear it."""
        ...

    def seen_left(self) -> bytes:
        """Read everything that the source has."""
        ...

    def seen_arrived(self) -> bytes:
        """Return everything that has arrived at the receiver, in the script and now."""
        ...

    def expected(self, first: int, count: int) -> bytes:
        """Return ``count`` of the bytes that the sender sends, from the one numbered ``first``."""
        ...

    def do_end(self) -> None: ...

    def close(self) -> None: ...


class Result(NamedTuple):
    """The result of running a fact."""

    fact: Fact
    #: A line for each difference; empty: the fact holds here.
    differs: list[str]


def shown_by(fact: Fact, rig: Rig) -> Fact | None:
    """Return the part of the fact that says something about this system and release."""
    if rig.system not in fact.systems or (fact.sockets and rig.sockets not in fact.sockets):
        return None
    if rig.system == "FreeBSD" and not fact.since <= rig.release < fact.before:
        return None
    return rig.shows(fact)


def run_fact(fact: Fact, rig: Rig) -> Result:
    """Run the script on the rig, which can't be used again, and compare."""
    said = "ok"
    for words in fact.script.split(";"):
        said = _do(rig, words.split()) or said
    seen = _See(rig)
    differs: list[str] = []

    def compare(what: str, wanted: object, shown: object, holds: bool) -> None:
        if not holds:
            differs.append(f"{what}: {wanted} expected, {shown} seen")

    if fact.events is not None:
        compare("events", fact.events, ", ".join(seen.events) or "none", seen.has(fact.events))
    for which in ("source", "drain"):
        wanted = getattr(fact, which)
        if wanted is not None:
            shown = rig.seen_poll(which)
            compare(f"poll, {which}", wanted, " ".join(sorted(shown)), _shows(wanted, shown))
    if fact.says is not None:
        compare("it says", fact.says, said, said == fact.says)
    count = rig.seen_count() if fact.count is not None or fact.left or fact.arrived else 0
    if fact.count is not None:
        compare("count", fact.count, count, _counts(fact.count, count, rig.sent))
    if fact.end is not None:
        ended = _said(rig.do_end)
        compare("unsplice", fact.end, ended, ended in fact.end.split(" or "))
    if fact.errors is not None:
        shown_errors = tuple(_name(rig.seen_error(which)) for which in ("source", "drain"))
        compare("SO_ERROR", fact.errors, shown_errors, shown_errors == fact.errors)
    if fact.arrived is not None:
        _compare_bytes(rig, fact, count, compare)
    elif fact.left is not None:
        left = len(rig.seen_left())
        compare("left", fact.left, left, left == fact.left)
    return Result(fact, differs)


def _compare_bytes(rig: Rig, fact: Fact, count: int, compare: object) -> None:
    """Compare what has arrived and what is left, and that those are the bytes sent, in order."""
    assert callable(compare)
    arrived, left = rig.seen_arrived(), b""
    wanted = count if fact.arrived == "count" else fact.arrived
    compare("arrived", wanted, len(arrived), wanted in (len(arrived), "some"))
    if fact.left is not None:
        left = rig.seen_left()
        rest = rig.sent - len(arrived) if fact.left == "rest" else fact.left
        compare("left", rest, len(left), len(left) == rest)
    same = arrived + left == rig.expected(0, len(arrived) + len(left))
    compare("bytes", "those sent", "others", same)


class _See:
    def __init__(self, rig: Rig) -> None:
        self.events = rig.seen_events()

    def has(self, wanted: str) -> bool:
        """Return whether all events that must come have come, and no others; each may repeat."""
        parts = [] if wanted == "none" else [part.strip() for part in wanted.split(",")]
        must = {part for part in parts if not part.endswith("?")}
        may = {part.rstrip("?") for part in parts}
        # The event of an end can come without the EOF flag, where the EOF came a moment later.
        seen = set(self.events)
        return must <= seen and seen <= may | {part.replace(" EOF", "") for part in may}


def _shows(wanted: str, shown: set[str]) -> bool:
    parts = set() if wanted == "none" else set(wanted.split())
    must = {part for part in parts if not part.endswith("?")}
    return must <= shown <= {part.rstrip("?") for part in parts}


def _counts(wanted: int | str, count: int, sent: int) -> bool:
    if wanted == "all":
        return count == sent
    if wanted == "some":
        return 0 < count < sent
    return count == wanted


def _do(rig: Rig, words: list[str]) -> str | None:
    """Call one word of the script with its arguments; return its answer."""
    name = words[0]
    arguments = [_value(word) for word in words[1:] if "=" not in word]
    options = dict(word.split("=") for word in words[1:] if "=" in word)
    call = getattr(rig, f"do_{name}")
    return _said(lambda: call(*arguments, **{key: _value(text) for key, text in options.items()}))


def _said(call: object) -> str:
    assert callable(call)
    try:
        call()
    except OSError as error:
        return _name(error.errno or 0)
    return "ok"


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _name(number: int) -> str:
    for name in ("EAGAIN", "EOPNOTSUPP"):  # some systems have a second name for the number
        if number == getattr(errno, name):
            return name
    return errno.errorcode.get(number, str(number))
