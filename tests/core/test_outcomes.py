"""The line that an outcome is printed as."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from freebsd_splice import Outcome, Reason, RelayOutcome
from freebsd_splice._relay import describe

RESET = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
EOF = Outcome(78, b"", Reason.EOF, None, "kernel", "SO_SPLICE", 0.25)
BACK = replace(EOF, bytes=1_048_576)
CANCELLED = replace(BACK, reason=Reason.CANCELLED)


def _relay_of(towards: Outcome, back: Outcome, decisive: Outcome) -> RelayOutcome:
    return RelayOutcome(towards, back, decisive.reason, decisive.error, 1.0)


def test_an_outcome_is_printed_as_one_line() -> None:
    assert str(EOF) == "78 bytes, eof, 0.250 s, kernel/SO_SPLICE"


def test_an_outcome_says_what_failed_and_what_is_missing() -> None:
    outcome = replace(
        EOF, unsent=b"three", reason=Reason.DRAIN_ERROR, error=RESET, mover="copy", undelivered=4
    )
    assert str(outcome) == (
        f"78 bytes, drain error ({os.strerror(errno.ECONNRESET)}), 0.250 s, kernel/copy; "
        "unsent: 5; may not have arrived: 4"
    )


def test_what_the_system_does_not_tell_is_not_printed() -> None:
    assert str(replace(EOF, undelivered=None)) == str(EOF)


def test_an_outcome_is_shown_with_its_fields_all_the_same() -> None:
    assert repr(EOF).startswith("Outcome(bytes=78, unsent=b'', reason=<Reason.EOF: 'eof'>, ")


def test_a_relays_outcome_is_printed_as_one_line() -> None:
    assert str(_relay_of(EOF, BACK, EOF)) == (
        "78 bytes left to right, 1048576 bytes right to left, eof, 1.000 s, kernel/SO_SPLICE"
    )


def test_two_movers_are_both_named() -> None:
    copied = replace(BACK, backend="userspace", mover="copy")
    line = str(_relay_of(EOF, copied, EOF))
    assert line.endswith("eof, 1.000 s, kernel/SO_SPLICE and userspace/copy")


def test_bytes_that_may_not_have_arrived_come_last() -> None:
    lost, back = replace(EOF, undelivered=3), replace(CANCELLED, undelivered=4)
    assert str(_relay_of(lost, back, back)).endswith(
        "SO_SPLICE; may not have arrived: 3 left to right, 4 right to left"
    )
    one_way = str(_relay_of(EOF, back, back))
    assert one_way.endswith("SO_SPLICE; may not have arrived: 4 right to left")


@pytest.mark.parametrize(
    ("reason", "direction", "side"),
    [
        (Reason.SOURCE_ERROR, 0, "left"),
        (Reason.DRAIN_ERROR, 0, "right"),
        (Reason.SOURCE_ERROR, 1, "right"),
        (Reason.DRAIN_ERROR, 1, "left"),
    ],
)
def test_an_error_names_the_side_that_failed(reason: Reason, direction: int, side: str) -> None:
    failed = replace(BACK, reason=reason, error=RESET)
    ends = (failed, CANCELLED) if direction == 0 else (CANCELLED, failed)
    what = f", {reason.value} ({side}: {os.strerror(errno.ECONNRESET)}), "
    assert what in str(_relay_of(*ends, failed))


def test_of_two_errors_the_decisive_one_is_named() -> None:
    first = replace(EOF, reason=Reason.SOURCE_ERROR, error=TimeoutError(errno.ETIMEDOUT, "late"))
    second = replace(BACK, reason=Reason.SOURCE_ERROR, error=RESET)
    assert f"(right: {os.strerror(errno.ECONNRESET)})" in str(_relay_of(first, second, second))


def test_a_proxy_names_the_directions_and_sides_in_its_own_words() -> None:
    failed = replace(BACK, reason=Reason.DRAIN_ERROR, error=RESET, undelivered=4)
    outcome = _relay_of(CANCELLED, failed, failed)
    assert describe(outcome, ("up", "down"), ("client", "target")) == (
        "1048576 bytes up, 1048576 bytes down, "
        f"drain error (client: {os.strerror(errno.ECONNRESET)}), 1.000 s, kernel/SO_SPLICE; "
        "may not have arrived: 4 down"
    )
