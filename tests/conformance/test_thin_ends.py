"""Thin calls: how a splice ends and what can be seen of it, row by row of the facts' table.

Each row: the count, what ending by hand says, what is left to read, SO_ERROR of both sockets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

import pytest

from conformance.harness import Harness, Peer
from faults.cells import cell

from .backends import not_on
from .thin import Thin

# A reset that meets a socket in CLOSE_WAIT: Linux's TCP stores EPIPE, the BSDs' ECONNRESET.
RESET_AFTER_FIN = (errno.ECONNRESET, errno.EPIPE)


def errors(harness: Harness, source: socket.socket, drain: socket.socket) -> tuple[int, int]:
    return harness.error(source), harness.error(drain)


@pytest.mark.parametrize("data", [b"", b"ten bytes!"])
def test_a_live_splice_is_ended_by_hand(thin: Thin, harness: Harness, data: bytes) -> None:
    """F35"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(data)
    thin.moved(source, len(data))
    thin.unsplice(source)
    assert server.read(len(data)) == data
    client.write(b"later")
    assert harness.waiting(source, 5) == b"later"
    assert thin.spliced_bytes(source) == len(data)
    assert server.has_nothing_to_read()
    assert errors(harness, source, drain) == (0, 0)


def test_a_limit_met_exactly_ends(thin: Thin, harness: Harness) -> None:
    """F10"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain, max_bytes=5)
    client.write(b"12345")
    thin.moved(source, 5)
    thin.is_over(source, drain)
    thin.cause_is(source, errno.EFBIG)
    client.write(b"678")
    assert harness.waiting(source, 3) == b"678"
    assert server.read(5) == b"12345"
    assert errors(harness, source, drain) == (0, 0)


def test_a_limit_met_by_waiting_data_ends_within_the_call(thin: Thin, harness: Harness) -> None:
    """F20"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    client.write(b"123456789")
    harness.until(lambda: harness.readable(source), "data waiting")
    thin.splice(source, drain, max_bytes=5)
    thin.moved(source, 5)
    thin.cause_is(source, errno.EFBIG)
    thin.is_over(source, drain)
    assert harness.waiting(source, 4) == b"6789"
    assert server.read(5) == b"12345"
    assert errors(harness, source, drain) == (0, 0)


def test_idle_passes_with_nothing_waiting(thin: Thin, harness: Harness) -> None:
    """F11: and what arrives later stays."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain, idle=0.05)
    harness.sleep(0.05 + 0.01)
    thin.is_over(source, drain)
    thin.cause_is(source, errno.ETIMEDOUT)
    client.write(b"abc")
    assert harness.waiting(source, 3) == b"abc"
    assert thin.spliced_bytes(source) == 0
    assert server.has_nothing_to_read()
    assert errors(harness, source, drain) == (0, 0)


@not_on("model openbsd", because="its sp_idle is a true idle time (F11)")
def test_idle_ends_a_busy_splice(thin: Thin, harness: Harness) -> None:
    """F11: it is a time limit."""
    (source, client), (drain, _) = harness.pair(), harness.pair()
    started = harness.now()
    thin.splice(source, drain, idle=0.3)
    written = 0

    def one_stays() -> bool:
        nonlocal written
        harness.sleep(0.001)
        client.write(b"x")
        written += 1
        return thin.spliced_bytes(source) < written - 5 and harness.readable(source)

    harness.until(one_stays, "the splice over in spite of its traffic")
    assert harness.now() - started >= 0.2999
    thin.is_over(source, drain)
    moved = thin.spliced_bytes(source)
    assert 0 < moved < written
    assert len(harness.waiting(source, written - moved)) == written - moved


def test_idle_that_has_not_passed_ends_nothing(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain, idle=1000.0)
    client.write(b"x")
    assert server.read(1) == b"x"
    thin.is_live(source)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("data", [b"", b"ten bytes!"])
@cell(
    "the peer closes",
    "thin",
    "initial",
    sees="of the source's: the splice is over at once, and EOF is not passed on",
    counted="what had come before was moved",
)
@cell(
    "the peer closes",
    "thin",
    "moving",
    sees="the splice is over, and EOF is not passed on: the drain can be used",
    counted="`spliced_bytes` has all that was moved",
)
@pytest.mark.usefixtures("bystander")
def test_fin_from_the_sources_peer_ends_and_is_not_passed_on(
    thin: Thin, harness: Harness, when: str, data: bytes
) -> None:
    """F12"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    if when == "after":
        thin.splice(source, drain)
    client.write(data)
    client.fin()
    thin.hangup(source)
    if when == "before":
        thin.splice(source, drain)
    thin.moved(source, len(data))
    thin.is_over(source, drain)
    assert source.recv(1) == b""
    assert server.read(len(data)) == data
    assert server.has_nothing_to_read()
    assert drain.send(b"still open") == 10
    assert server.read(10) == b"still open"
    assert errors(harness, source, drain) == (0, 0)


@cell(
    "the peer stops reading for ever",
    "thin",
    "half-closed",
    sees="the source has ended: FreeBSD's kernel ends the splice with bytes left, elsewhere "
    "nothing is seen until `unsplice`",
    counted="what was moved can be read; the remainder is still at the source",
)
@pytest.mark.usefixtures("bystander")
def test_fin_behind_a_full_drain_leaves_nothing_behind_unseen(thin: Thin, harness: Harness) -> None:
    """F13: FreeBSD ends early, with bytes left; either way all of them can be had in order."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    sent = thin.fill(client)
    client.fin()
    ended_early = thin.differs(
        kernel=True, userspace=False, because="the emulation doesn't imitate F13"
    )
    received = 0
    if ended_early:
        while not harness.hangs_up(source):  # the FIN is behind what its peer could not send yet
            received += len(server.read(thin.spliced_bytes(source) - received))
            harness.sleep(0.001)
        with contextlib.suppress(OSError):  # or that, F19
            thin.unsplice(source)
    else:
        received += len(server.read(sent))
        thin.hangup(source)
        thin.is_over(source, drain)
    moved = thin.spliced_bytes(source)
    received += len(server.read(moved - received))
    assert received + len(harness.waiting(source, sent - moved)) == sent
    assert source.recv(1) == b""


@pytest.mark.parametrize("data", [b"", b"ten bytes!"])
@cell(
    "the peer resets",
    "thin",
    "moving",
    sees="the splice is over: `unsplice` says ENOTCONN, reading the source ECONNRESET",
    counted="`spliced_bytes` has all that was moved",
)
@pytest.mark.usefixtures("bystander")
def test_a_reset_from_the_sources_peer_ends(thin: Thin, harness: Harness, data: bytes) -> None:
    """F18: the source has the error."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(data)
    thin.moved(source, len(data))
    client.reset()
    thin.hangup(source)
    thin.is_over(source, drain)
    assert server.read(len(data)) == data
    assert server.has_nothing_to_read()
    assert thin.spliced_bytes(source) == len(data)
    assert errors(harness, source, drain) == (errno.ECONNRESET, 0)


def test_reading_a_reset_source_says_so(thin: Thin, harness: Harness) -> None:
    """F18"""
    (source, client), (drain, _) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.reset()
    thin.hangup(source)
    thin.is_over(source, drain)
    with pytest.raises(ConnectionResetError):
        source.recv(1)


def test_fin_from_the_drains_peer_changes_nothing(thin: Thin, harness: Harness) -> None:
    """F17: it may still read."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    server.fin()
    thin.hangup(drain)
    client.write(b"taken")
    assert server.read(5) == b"taken"
    thin.is_live(source)
    assert errors(harness, source, drain) == (0, 0)


def test_the_drains_peer_closing_changes_nothing_by_itself(thin: Thin, harness: Harness) -> None:
    """F17"""
    (source, _), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    server.close()
    thin.hangup(drain)
    assert thin.spliced_bytes(source) == 0
    thin.is_live(source)
    assert errors(harness, source, drain) == (0, 0)


@cell(
    "the peer closes",
    "thin",
    "half-closed",
    sees="of the drain's: nothing until bytes are answered by a reset; then the splice is over",
    counted="what was moved before the reset; the remainder is still at the source",
)
@pytest.mark.usefixtures("bystander")
def test_data_after_the_drains_peer_has_closed_ends(thin: Thin, harness: Harness) -> None:
    """F17: the first push counts, what comes later stays."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    server.close()
    thin.hangup(drain)
    client.write(b"ten bytes!")
    thin.moved(source, 10)
    harness.until(lambda: drain_is_dead(drain), "the answer: a reset")
    thin.cause_is(source, errno.EPIPE)
    client.write(b"twenty bytes, later!")
    assert harness.waiting(source, 20) == b"twenty bytes, later!"
    assert thin.spliced_bytes(source) == 10
    thin.is_over(source, drain)
    source_error, drain_error = errors(harness, source, drain)
    assert source_error == 0
    assert drain_error in RESET_AFTER_FIN


@cell(
    "the peer resets",
    "thin",
    "moving",
    sees="of the drain's: the splice is over; the drain has ECONNRESET, the source no error",
)
@pytest.mark.usefixtures("bystander")
def test_a_reset_from_the_drains_peer_ends_even_an_idle_splice(
    thin: Thin, harness: Harness
) -> None:
    """F16: the drain has the error, the source has none."""
    (source, _), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    server.reset()
    thin.hangup(drain)
    thin.cause_is(source, errno.EPIPE)
    thin.is_over(source, drain)
    assert thin.spliced_bytes(source) == 0
    assert errors(harness, source, drain) == (0, errno.ECONNRESET)


@cell(
    "the peer resets",
    "thin",
    "half-closed",
    sees="the splice is over; the drain has the error",
    counted="what came later is still at the source",
)
@pytest.mark.usefixtures("bystander")
def test_data_after_a_reset_from_the_drains_peer_stays(thin: Thin, harness: Harness) -> None:
    """F16: and doesn't take the drain's error away."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    server.reset()
    thin.hangup(drain)
    thin.cause_is(source, errno.EPIPE)
    client.write(b"ten bytes!")
    assert harness.waiting(source, 10) == b"ten bytes!"
    thin.is_over(source, drain)
    assert errors(harness, source, drain) == (0, errno.ECONNRESET)


def test_a_reset_from_the_peer_of_a_full_drain_ends(thin: Thin, harness: Harness) -> None:
    """F16: while the splice waits for room."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    sent = thin.fill(client)
    server.reset()
    thin.hangup(drain)
    thin.is_over(source, drain)
    left = sent - thin.spliced_bytes(source)
    lost = thin.differs(
        kernel=65536, userspace=0, because="F16: the worker's last batch can vanish uncounted"
    )
    assert len(harness.waiting(source, max(0, left - lost))) >= left - lost
    assert harness.error(drain) == errno.ECONNRESET


def test_shutting_the_live_drain_down_for_writing_ends(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    drain.shutdown(socket.SHUT_WR)
    assert server.read_to_end() == b""
    thin.cause_is(source, errno.EPIPE)
    thin.is_over(source, drain)
    client.write(b"ten bytes!")
    assert harness.waiting(source, 10) == b"ten bytes!"
    assert thin.spliced_bytes(source) == 0
    assert errors(harness, source, drain) == (0, 0)


def test_data_after_the_drain_was_shut_down_stays(thin: Thin, harness: Harness) -> None:
    """Without anybody asking in between."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    drain.shutdown(socket.SHUT_WR)
    client.write(b"ten bytes!")
    assert server.read_to_end() == b""
    assert harness.waiting(source, 10) == b"ten bytes!"
    thin.is_over(source, drain)


def test_shutting_the_source_down_for_reading_ends(thin: Thin, harness: Harness) -> None:
    (source, _), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    source.shutdown(socket.SHUT_RD)
    thin.is_over(source, drain)
    assert thin.spliced_bytes(source) == 0
    assert server.has_nothing_to_read()
    assert errors(harness, source, drain) == (0, 0)


@cell(
    "the peer stops reading for ever",
    "thin",
    "moving",
    sees="nothing until `unsplice`, at any time",
    counted="what the drain took, which its peer can read; the remainder is still at the source",
)
@pytest.mark.usefixtures("bystander")
def test_bytes_behind_a_full_drain_stay_when_ended_by_hand(thin: Thin, harness: Harness) -> None:
    """F35: what was sent is what was counted, the rest is at the source."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    sent = thin.fill(client)
    thin.unsplice(source)
    moved = thin.spliced_bytes(source)
    assert len(server.read(moved)) == moved
    assert len(harness.waiting(source, sent - moved)) == sent - moved
    assert server.has_nothing_to_read()


def test_nothing_is_in_flight_after_an_end_in_mid_stream(thin: Thin, harness: Harness) -> None:
    """F35: count, delivered and left add up at whatever moment it is ended."""
    for round_ in range(30):
        (source, client), (drain, server) = harness.pair(), harness.pair()
        data = os.urandom(200_000)
        thin.splice(source, drain)
        writer = harness.in_background(client.write, data)
        received = bytearray()
        while len(received) < round_ * 5000:
            harness.until(some_moved(thin, source, len(received) + 1), "some of it moved")
            received += server.read(thin.spliced_bytes(source) - len(received))
        thin.unsplice(source)
        moved = thin.spliced_bytes(source)
        received += server.read(moved - len(received))
        assert received == data[:moved]
        assert harness.waiting(source, len(data) - moved) == data[moved:]
        assert server.has_nothing_to_read()
        writer.join()
        harness.close()


def test_a_splice_goes_on_where_another_was_ended(thin: Thin, harness: Harness) -> None:
    """F35: ended and set again in the middle of a stream, it loses and doubles nothing."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    data = os.urandom(2_000_000)
    writer = harness.in_background(client.write, data)
    received = bytearray()
    reader = harness.in_background(lambda: received.extend(server.read(len(data))))
    total = 0
    while total < len(data):
        thin.splice(source, drain, max_bytes=min(70_001, len(data) - total))
        harness.until(lambda: thin.spliced_bytes(source) > 0, "some of it moved")
        with contextlib.suppress(OSError):  # the limit was met before
            thin.unsplice(source)
        harness.error(source)  # OpenBSD's cause (F10), which would end the next one
        total += thin.spliced_bytes(source)
    writer.join()
    reader.join()
    assert received == data


def test_a_splice_survives_the_closing_of_duplicates(thin: Thin, harness: Harness) -> None:
    """F8: those it was made with included."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    other_source, other_drain = harness.keep(source.dup()), harness.keep(drain.dup())
    thin.splice(source, drain)
    source.close()
    client.write(b"one")
    assert server.read(3) == b"one"
    drain.close()
    client.write(b"two")
    assert server.read(3) == b"two"
    assert thin.spliced_bytes(other_source) == 6
    assert other_drain.fileno() >= 0
    thin.is_live(other_source)


def test_a_splice_ends_with_the_last_descriptor_of_its_source(thin: Thin, harness: Harness) -> None:
    """F8: the peer sees the end at once, and the drain is free."""
    (source, client), (drain, server), (next_, other) = (harness.pair() for _ in range(3))
    thin.splice(source, drain)
    client.write(b"one")
    assert server.read(3) == b"one"
    thin.moved(source, 3)
    source.close()
    assert client.read_to_end() == b""
    thin.splice(next_, drain)
    other.write(b"two")
    assert server.read(3) == b"two"


def test_a_splice_ends_with_the_last_descriptor_of_its_drain(thin: Thin, harness: Harness) -> None:
    """F8, F27: its bytes and FIN are sent; what arrives at the source later stays there."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"one")
    assert server.read(3) == b"one"
    drain.close()
    assert server.read_to_end() == b""
    client.write(b"two")
    harness.until(lambda: harness.readable(source), "the source readable again")
    # OpenBSD may say why; nobody has measured that.
    assert harness.error(source) in (0, errno.ENOTCONN, errno.EPIPE)
    assert harness.waiting(source, 3) == b"two"
    with thin.refused(thin.none_to_end):
        thin.unsplice(source)


def test_closing_a_spliced_source_with_unread_bytes_is_a_reset(
    thin: Thin, harness: Harness
) -> None:
    """F27: at once on Linux; elsewhere by a FIN, and a reset when it sends more."""
    source, client = harness.pair(small_buffers=True)
    drain, _ = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    thin.fill(client)
    source.close()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sends_more_after_an_eof(client)


def sends_more_after_an_eof(client: Peer) -> None:
    while client.read(1) == b"":
        client.write(b"more")


def some_moved(thin: Thin, source: socket.socket, size: int) -> Callable[[], bool]:
    return lambda: thin.spliced_bytes(source) >= size


def drain_is_dead(drain: socket.socket) -> bool:
    try:
        drain.getpeername()
    except OSError:
        return True
    return False
