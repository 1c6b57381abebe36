"""Playing a row: its script on some stage, and what is seen against what the row says."""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from ._row import Row


class Stage(Protocol):
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

    def plays(self, row: Row) -> Row | None:
        """What of a row this stage can show."""
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
    """How a row went."""

    row: Row
    #: What differs, one line each; empty: the fact holds here.
    differs: list[str]


def played_here(row: Row, stage: Stage) -> Row | None:
    """As much of the row as says something about this system and release."""
    if stage.system not in row.systems or (row.sockets and stage.sockets not in row.sockets):
        return None
    if stage.system == "FreeBSD" and not row.since <= stage.release < row.before:
        return None
    return stage.plays(row)


def play(row: Row, stage: Stage) -> Result:
    """Play it, and compare.  The stage is used up then."""
    said = "ok"
    for words in row.script.split(";"):
        said = _do(stage, words.split()) or said
    seen = _See(stage)
    differs: list[str] = []

    def compare(what: str, wanted: object, shown: object, holds: bool) -> None:
        if not holds:
            differs.append(f"{what}: {wanted} expected, {shown} seen")

    if row.events is not None:
        compare("events", row.events, ", ".join(seen.events) or "none", seen.has(row.events))
    for which in ("source", "drain"):
        wanted = getattr(row, which)
        if wanted is not None:
            shown = stage.seen_poll(which)
            compare(f"poll, {which}", wanted, " ".join(sorted(shown)), _shows(wanted, shown))
    if row.says is not None:
        compare("it says", row.says, said, said == row.says)
    count = stage.seen_count() if row.count is not None or row.left or row.arrived else 0
    if row.count is not None:
        compare("count", row.count, count, _counts(row.count, count, stage.sent))
    if row.end is not None:
        ended = _said(stage.do_end)
        compare("end by hand", row.end, ended, ended in row.end.split(" or "))
    if row.errors is not None:
        shown_errors = tuple(_name(stage.seen_error(which)) for which in ("source", "drain"))
        compare("SO_ERROR", row.errors, shown_errors, shown_errors == row.errors)
    if row.arrived is not None:
        _compare_bytes(stage, row, count, compare)
    elif row.left is not None:
        left = len(stage.seen_left())
        compare("left", row.left, left, left == row.left)
    return Result(row, differs)


def _compare_bytes(stage: Stage, row: Row, count: int, compare: object) -> None:
    """What has arrived, what is left, and that they are the bytes sent, in their order."""
    assert callable(compare)
    arrived, left = stage.seen_arrived(), b""
    wanted = count if row.arrived == "count" else row.arrived
    compare("arrived", wanted, len(arrived), wanted in (len(arrived), "some"))
    if row.left is not None:
        left = stage.seen_left()
        rest = stage.sent - len(arrived) if row.left == "rest" else row.left
        compare("left", rest, len(left), len(left) == rest)
    same = arrived + left == stage.expected(0, len(arrived) + len(left))
    compare("bytes", "those sent", "others", same)


class _See:
    def __init__(self, stage: Stage) -> None:
        self.events = stage.seen_events()

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


def _do(stage: Stage, words: list[str]) -> str | None:
    """One word of the script with its arguments; what it said, where it can say something."""
    name = words[0]
    arguments = [_value(word) for word in words[1:] if "=" not in word]
    options = dict(word.split("=") for word in words[1:] if "=" in word)
    call = getattr(stage, f"do_{name}")
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
