"""What messages say of errors and of sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from freebsd_splice._errors import why
from freebsd_splice._platform.borrowed import Borrowed
from freebsd_splice._thin.messages import call_error, describe

REFUSED = os.strerror(errno.ECONNREFUSED)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, REFUSED), REFUSED),
        # What asyncio makes of it, which names the address once more.
        (OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"), REFUSED),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), "Name not known"),
        # On FreeBSD these numbers are those of errnos.
        (socket.gaierror(errno.ENOENT, "Name not known"), "Name not known"),
        (socket.herror(1, "Unknown host"), "Unknown host"),
        (TimeoutError("timed out"), "timed out"),
        (TimeoutError(), "timed out"),
        (ConnectionResetError(), "ConnectionResetError"),
        (ConnectionResetError("Connection lost"), "Connection lost"),
        (OSError(0, "Error"), "Error"),
    ],
)
def test_no_reason_is_success_or_none(error: OSError, reason: str) -> None:
    assert why(error) == reason


@pytest.mark.skipif(not issubclass(asyncio.TimeoutError, OSError), reason="since Python 3.11")
def test_a_timeout_of_the_loop_has_a_reason() -> None:
    assert why(asyncio.TimeoutError()) == "timed out"  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, -2, 2**40])
def test_a_number_of_no_descriptor_is_closed(number: int) -> None:
    assert describe(number) == f"fd {number}, closed"


def test_a_closed_descriptor_is_closed() -> None:
    with socket.socket() as sock:
        number = sock.fileno()
    assert describe(number) == f"fd {number}, closed"


def test_a_negative_descriptor_cannot_be_borrowed() -> None:
    """The library's dup2 raises whatever errno the thread had last, or 0."""
    borrowed = Borrowed()
    try:
        with pytest.raises(OSError) as caught:
            borrowed.take(-1)
    finally:
        borrowed.close()
    assert caught.value.errno == errno.EBADF


def test_a_call_that_failed_without_an_errno_has_a_reason() -> None:
    error = call_error("splice", ConnectionResetError(), source=-1)
    assert error.errno == errno.EIO
    assert str(error).endswith("splice(source=<fd -1, closed>): ConnectionResetError")
