"""The table.  Each row can be read as: after this script, that is what one sees."""

from __future__ import annotations

from collections.abc import Sequence

from ._row import Row

BOTH = ("FreeBSD", "OpenBSD")
OPENBSD = ("OpenBSD",)
NONE = ("0", "0")
BETWEEN = "it takes the kernel's worker stopped between two of its steps"


def rows() -> Sequence[Row]:
    """All of them."""
    return INTERFACE + REFUSALS + ENDS + AFTER_ENDS + DONT + MODEL + OPENBSD_ROWS


INTERFACE = [
    Row("a struct that is too short", "F3", "splice length=4", says="EINVAL", raw=True),
    Row("a longer one is taken", "F3", "splice length=40; send 3", says="ok", count=3, raw=True),
    Row("the count of a socket never spliced", "F4", "nothing", count=0, systems=BOTH),
    Row(
        "the count stays after the end", "F4", "splice; send 10; end", says="ok", count=10,
        systems=BOTH,
    ),
    Row(
        "a new splice counts from 0", "F4", "splice; send 10; end; splice", count=0, systems=BOTH
    ),
    Row(
        "four bytes get a truncated count", "F4", "splice; send 10; count length=4", says="ok",
        count=10, raw=True),
    Row(
        "it survives the closing of a duplicate", "F8", "splice; duplicates; send 10",
        count=10, end="ok", arrived=10, systems=BOTH,
    ),
    Row("IPv6 into IPv4", "F9", "use source=IPv6; splice; send 10", count=10, end="ok", arrived=10),
    Row(
        "both directions at once", "F9", "splice; splice back; send 10; answer 7",
        count=10, end="ok", arrived=10,
    ),
    Row("a socket into itself: an echo", "F9", "use drain=self; splice; send 10", count=10),
]  # fmt: skip

REFUSALS = [
    Row("a negative limit", "F2", "splice max=-1", says="EINVAL"),
    Row("a negative time is taken", "F11", "splice idle=-60", says="ok", end="ok", raw=True),
    Row("the drain is closed", "F21", "use drain=closed; splice", says="EBADF", systems=BOTH),
    Row("the drain is a file", "F21", "use drain=file; splice", says="ENOTSOCK", systems=BOTH),
    Row("the drain is a Unix socket", "F22", "use drain=unix; splice", says="EPROTONOSUPPORT"),
    Row("the source is a Unix socket", "F22", "use source=unix; splice", says="EPROTONOSUPPORT"),
    Row("the drain is UDP", "F22", "use drain=udp; splice", says="EPROTONOSUPPORT", systems=BOTH),
    Row(
        "the source is not connected", "F22", "use source=unconnected; splice", says="ENOTCONN",
        systems=BOTH,
    ),
    Row("the drain is not connected", "F22", "use drain=unconnected; splice", says="ENOTCONN",
        systems=BOTH),
    Row("the source is listening", "F22", "use source=listening; splice", says="EINVAL"),
    Row("the drain is listening", "F22", "use drain=listening; splice", says="EINVAL"),
    Row("ending where none is", "F19", "end", says="ENOTCONN"),
    Row("ending on a listening socket", "F19", "use source=listening; end", says="EINVAL"),
    Row("the source is spliced already", "F23", "splice; splice", says="EBUSY", end="ok"),
    Row(
        "the drain is one already", "F22", "splice; splice other", says="EBUSY", end="ok",
        systems=BOTH,
    ),
    Row(
        "a refused drain does not harm the source", "F22",
        "use drain=unconnected; splice; use drain=fresh; splice; send 10",
        says="ok", count=10, end="ok", arrived=10, since=(15, 1),
    ),
    Row(
        "a refused drain poisons the source", "F22",
        "use drain=unconnected; splice; use drain=fresh; splice",
        says="EBUSY", end="ENOTCONN", before=(15, 1),
    ),
]  # fmt: skip

ENDS = [
    Row("live and idle", "F19, F25", "splice", events="none", source="OUT", drain="none", count=0,
        end="ok", errors=NONE),
    Row("live, 10 bytes moved", "F19, F25", "splice; send 10", events="none", source="OUT",
        drain="none", count=10, end="ok", errors=NONE, arrived=10),
    Row("a limit met exactly", "F10, F19", "splice max=5; send 5", events="drain.W", source="OUT",
        drain="OUT", count=5, end="ENOTCONN", errors=NONE, left=0, arrived=5),
    Row("a limit, and more than it", "F10", "splice max=5; send 12", events="src.R, drain.W",
        source="IN OUT", drain="OUT", count=5, end="ENOTCONN", errors=NONE, left=7, arrived=5),
    Row("a limit met by waiting data", "F20, F34", "send 9; splice max=5",
        events="src.R, drain.W", source="IN OUT", drain="OUT", count=5, end="ENOTCONN",
        errors=NONE, left=4),
    Row("a limit met exactly behind a full drain", "F19", "splice max=full; send full",
        events="none", source="OUT", drain="none", count="all", end="ENOTCONN", errors=NONE,
        model_only="how much fits can only be guessed"),
    Row("sp_idle runs out, nothing waiting", "F11", "splice idle=0.3; wait 0.9",
        events="drain.W", source="OUT", drain="OUT", count=0, end="ENOTCONN", errors=NONE),
    Row("sp_idle ends a busy splice", "F11",
        "splice idle=0.5; send 1; wait 0.3; send 1; wait 0.3; send 1; wait 0.3; send 1",
        events="src.R?, drain.W", drain="OUT", count="some", end="ENOTCONN", errors=NONE),
    Row("sp_idle runs out, then bytes", "F11", "splice idle=0.3; wait 0.9; send 3",
        events="drain.W, src.R", source="IN OUT", drain="OUT", count=0, end="ENOTCONN",
        errors=NONE, left=3),
    Row("FIN", "F12", "splice; fin", events="src.R EOF?, drain.W?", source="IN OUT RDHUP",
        count=0, end="ENOTCONN or ok", errors=NONE, left=0),
    Row("bytes and FIN", "F12, F14", "splice; send 10; fin", events="src.R EOF?, drain.W?",
        source="IN OUT RDHUP", count=10, end="ENOTCONN or ok", errors=NONE, left=0, arrived=10),
    Row("FIN before the call", "F20", "fin; splice", events="src.R EOF, drain.W",
        source="IN OUT RDHUP", drain="OUT", count=0, end="ENOTCONN", errors=NONE, left=0),
    Row("FIN behind a full drain", "F13", "splice; fill; send 3000; fin", events="src.R EOF?",
        source="IN OUT RDHUP", drain="none", count="some", end="ENOTCONN or ok", errors=NONE,
        left="rest", arrived="count"),
    Row("the source's peer resets", "F18", "splice; reset", events="src.R EOF?, drain.W?",
        source="IN HUP RDHUP", count=0, end="ENOTCONN or ok", errors=("ECONNRESET", "0")),
    Row("it resets after 10 bytes", "F18", "splice; send 10; reset",
        events="src.R EOF?, drain.W?", source="IN HUP RDHUP", count=10, end="ENOTCONN or ok",
        errors=("ECONNRESET", "0"), arrived=10),
    Row("the drain's peer sends FIN", "F17", "splice; drain fin", events="none", source="OUT",
        drain="IN RDHUP", count=0, end="ok", errors=NONE),
    Row("the drain's peer closes, then 10 bytes", "F17, F16", "splice; drain close; send 10",
        events="drain.W EOF?", source="OUT", drain="IN HUP RDHUP", count=10,
        end="ENOTCONN or ok", errors=("0", "ECONNRESET")),
    Row("and then 20 more", "F17, F16", "splice; drain close; send 10; send 20",
        events="drain.W EOF?, src.R?", drain="IN HUP RDHUP", end="ENOTCONN or ok",
        errors=("0", "ECONNRESET")),
    Row("the drain's peer resets", "F16", "splice; drain reset", events="drain.W EOF?",
        source="OUT", drain="IN HUP RDHUP", count=0, end="ENOTCONN or ok",
        errors=("0", "ECONNRESET")),
    Row("and then 10 bytes", "F16", "splice; drain reset; send 10",
        events="drain.W EOF?, src.R?", drain="IN HUP RDHUP", end="ENOTCONN or ok",
        errors=("0", "ECONNRESET")),
    Row("we shut the live drain down", "F21", "splice; shut drain", events="drain.W EOF",
        source="OUT", drain="OUT", count=0, end="ENOTCONN", errors=NONE),
    Row("and then 10 bytes", "F21", "splice; shut drain; send 10", events="drain.W EOF, src.R",
        source="IN OUT", drain="OUT", count=0, end="ENOTCONN", errors=NONE, left=10),
    Row("we shut the source down for reading", "F12", "splice; shut source",
        events="src.R EOF, drain.W", source="IN OUT RDHUP", drain="OUT", count=0, end="ENOTCONN",
        errors=NONE),
    Row("ended by hand behind a full drain", "F19", "splice; fill; send 3000; end", says="ok",
        events="src.R", source="IN OUT", drain="none", count="some", end="ENOTCONN", errors=NONE,
        left="rest", arrived="count"),
]  # fmt: skip

AFTER_ENDS = [
    Row("the EOF is not passed on", "F12", "splice; send 10; fin; end; drain open", says="ok",
        arrived=10),
    Row("spliced again after the end", "F13, F19", "splice; send 10; end; splice; send 5",
        count=5, end="ok", arrived=15, systems=BOTH),
    Row("spliced again after a limit", "F10", "splice max=5; send 12; splice; send 3", count=10,
        end="ok", arrived=15, systems=BOTH),
    Row("spliced again behind a full drain", "F13, F19",
        "splice; fill; send 3000; fin; end; splice; read; end; splice; read",
        end="ENOTCONN or ok", left="rest", arrived="some"),
    Row("a recv on an empty spliced source", "F28", "splice; receive", says="EAGAIN", end="ok",
        systems=BOTH),
    Row("the source is closed with unread bytes", "F27", "send 10; close source; sender reset",
        says="ok", systems=BOTH),
    Row("the drain is closed", "F27", "splice; send 10; close drain; drain ended", says="ok",
        events="src.R?", arrived=10),
]  # fmt: skip

DONT = [
    Row("into a drain that is shut down: bytes are destroyed", "F21",
        "send 5; shut drain; splice", says="ok", events="drain.W EOF", source="OUT", drain="OUT",
        count=0, end="ENOTCONN", errors=NONE, left=0, raw=True),
    Row("a second call resets the live one's count", "F23",
        "splice max=10; send 9; splice; send 9; splice", says="EBUSY", count=0, raw=True),
    Row("the drain is not writable for poll", "F25", "splice", drain="none", end="ok",
        systems=BOTH),
    Row("the drain's buffer is made smaller", "F26", "splice; fill; shrink drain; wait 0.2",
        end="ENOTCONN", raw=True),
]  # fmt: skip

MODEL = [
    Row("an EOF is lost", "F14, F15", "splice; send 10; halfway; fin; rest", events="none",
        source="IN OUT RDHUP", drain="none", count=10, end="ok", errors=NONE, left=0,
        model_only=BETWEEN),
    Row("a reset of the drain is lost", "F14", "splice; send 10; halfway; drain reset; rest",
        events="none", drain="IN HUP RDHUP", count=10, model_only=BETWEEN),
    Row("a batch vanishes", "F16", "splice; vanish; halfway; drain reset; rest; send 10",
        drain="IN HUP RDHUP", count=0, end="ENOTCONN", left=0, model_only=BETWEEN),
    Row("ended while it is being set, it lives", "F35", "end within the call; splice",
        says="ok", end="ok", model_only="it takes two threads in the kernel at once"),
    Row("what fires between registration and splice is stale", "F19",
        "ahead; ack within the call; splice", events="drain.W", drain="none", end="ok",
        model_only="it takes an ACK at one very moment"),
]  # fmt: skip

OPENBSD_ROWS = [
    Row("a limit is told by EFBIG", "F10", "splice max=5; send 5", events="src.R, drain.W",
        count=5, end="EPROTO", errors=("EFBIG", "0"), systems=OPENBSD),
    Row("sp_idle is told by ETIMEDOUT", "F11", "splice idle=0.3; wait 0.9",
        events="src.R, drain.W", count=0, end="EPROTO", errors=("ETIMEDOUT", "0"),
        systems=OPENBSD),
    Row("sp_idle is a true idle time", "F11",
        "splice idle=0.5; send 1; wait 0.3; send 1; wait 0.3; send 1; wait 0.3; send 1",
        count=4, end="ok", arrived=4, systems=OPENBSD),
    Row("a drain shut down is told by EPIPE", "F21", "splice; shut drain; send 1",
        events="src.R, drain.W EOF?", end="EPROTO", errors=("EPIPE", "0"), systems=OPENBSD),
    Row("EOF waits for the last byte", "F13", "splice; fill; send 3000; fin; read",
        count="all", left=0, arrived="count", systems=OPENBSD),
    Row("ending where none is", "F19", "end", says="EPROTO", systems=OPENBSD),
    Row("a listening source", "F22", "use source=listening; splice", says="EOPNOTSUPP",
        systems=OPENBSD),
    Row("the limit's last part is moved by a second splice", "F10",
        "short; splice max=10; send 10; splice max=1", count=1, arrived=10, systems=OPENBSD,
        model_only="it depends on how the bytes lie in the kernel's buffers"),
]  # fmt: skip
