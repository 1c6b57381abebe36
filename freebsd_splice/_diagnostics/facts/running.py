"""Running a fact: its script on some rig, and what is seen against what the fact says."""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from .fact import Fact


class Rig(Protocol):
    """Two connections, from the sender to the source and from the drain to the receiver, and one
    splice from the source to the drain.  Sockets are non-blocking.

    The words of a script are ``do_…`` methods of it; one that can fail says so by OSError.  After
    each word everything that follows from it has happened.
    """

    @property
    def system(self) -> str: ...

    @property
    def sockets(self) -> str:
        """The system whose sockets these are."""
        ...

    @property
    def release(self) -> tuple[int, int]: ...

    def shows(self, fact: Fact) -> Fact | None:
        """What of a fact this rig can show."""
        ...

    @property
    def sent(self) -> int:
        """Bytes that the sender has sent."""
        ...

    def seen_events(self) -> list[str]:
        """Events since the first splice, in the table's words."""
        ...

    def seen_poll(self, which: str) -> set[str]: ...

    def seen_count(self) -> int: ...

    def seen_error(self, which: str) -> int:
        """SO_ERROR."""
        ...

    def seen_left(self) -> bytes:
        """Everything that can be read from the source."""
        ...

    def seen_arrived(self) -> bytes:
        """Everything that has arrived at the receiver, in the script and now."""
        ...

    def expected(self, first: int, count: int) -> bytes:
        """Bytes of those that the sender sends."""
        ...

    def do_end(self) -> None: ...

    def close(self) -> None: ...


class Result(NamedTuple):
    """How a fact went."""

    fact: Fact
    #: What differs, one line each; empty: the fact holds here.
    differs: list[str]


def shown_by(fact: Fact, rig: Rig) -> Fact | None:
    """As much of the fact as says something about this system and release."""
    if rig.system not in fact.systems or (fact.sockets and rig.sockets not in fact.sockets):
        return None
    if rig.system == "FreeBSD" and not fact.since <= rig.release < fact.before:
        return None
    return rig.shows(fact)


def run_fact(fact: Fact, rig: Rig) -> Result:
    """Run its script, and compare.  The rig is used up then."""
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
        compare("end by hand", fact.end, ended, ended in fact.end.split(" or "))
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
    """What has arrived, what is left, and that they are the bytes sent, in their order."""
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
        """All that must come has come, and nothing else (an event may come again)."""
        parts = [] if wanted == "none" else [part.strip() for part in wanted.split(",")]
        must = {part for part in parts if not part.endswith("?")}
        may = {part.rstrip("?") for part in parts}
        # An end is also told of without the EOF, where that came a moment later.
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
    """One word of the script with its arguments; what it said, where it can say something."""
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
    for name in ("EAGAIN", "EOPNOTSUPP"):  # on some systems a second name of the same number
        if number == getattr(errno, name):
            return name
    return errno.errorcode.get(number, str(number))
