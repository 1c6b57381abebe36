"""Thin calls: what is moved, how much of it, and what is counted."""

from __future__ import annotations

import errno
import hashlib
import random
import socket
import sys

import pytest

from conformance.harness import Harness

from .thin import Thin

FAMILIES = [socket.AF_INET, socket.AF_INET6]


def test_what_arrives_at_the_source_comes_out_behind_the_drain(
    thin: Thin, harness: Harness
) -> None:
    """F4: and is counted."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"hello")
    assert server.read(5) == b"hello"
    assert thin.spliced_bytes(source) == 5


def test_a_descriptor_and_an_object_with_fileno_will_do(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()

    class Wrapped:
        def fileno(self) -> int:
            return drain.fileno()

    thin.splice(source.fileno(), Wrapped())
    client.write(b"hello")
    assert server.read(5) == b"hello"
    assert thin.spliced_bytes(source.fileno()) == 5
    thin.unsplice(source.fileno())


def test_waiting_data_is_moved_within_the_call(thin: Thin, harness: Harness) -> None:
    """F34"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    client.write(b"early")
    harness.until(lambda: harness.readable(source), "data waiting")
    thin.splice(source, drain)
    assert thin.spliced_bytes(source) == 5
    assert server.read(5) == b"early"


def test_all_of_a_full_receive_buffer_is_moved_within_the_call(
    thin: Thin, harness: Harness
) -> None:
    """F34: as much as the drain has room for."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 400_000)
    writer = harness.in_background(client.write, b"x" * 300_000)
    drain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
    sent = 300_000
    writer.join()
    harness.until(lambda: harness.readable(source), "a first byte")
    harness.until(lambda: len(source.recv(sent, socket.MSG_PEEK)) == sent, "all of it waiting")
    thin.splice(source, drain)
    moved = thin.spliced_bytes(source)
    assert moved == sent or thin.backend == "kernel"
    assert len(server.read(sent)) == sent


@pytest.mark.parametrize("families", [(a, b) for a in FAMILIES for b in FAMILIES])
def test_ipv4_and_ipv6_are_joined(thin: Thin, harness: Harness, families: tuple[int, int]) -> None:
    """F9"""
    (source, client), (drain, server) = map(harness.pair, families)
    thin.splice(source, drain)
    client.write(b"over")
    assert server.read(4) == b"over"


def test_both_directions_of_a_pair_are_spliced(thin: Thin, harness: Harness) -> None:
    """F9: independently of each other."""
    (left, client), (right, server) = harness.pair(), harness.pair()
    thin.splice(left, right)
    thin.splice(right, left)
    client.write(b"question")
    assert server.read(8) == b"question"
    server.write(b"answers")
    assert client.read(7) == b"answers"
    assert (thin.spliced_bytes(left), thin.spliced_bytes(right)) == (8, 7)
    thin.unsplice(left)
    server.write(b"more")
    assert client.read(4) == b"more"
    thin.is_live(right)


def test_a_socket_spliced_to_itself_is_an_echo(thin: Thin, harness: Harness) -> None:
    """F9"""
    ours, client = harness.pair()
    thin.splice(ours, ours)
    client.write(b"echo")
    assert client.read(4) == b"echo"
    assert thin.spliced_bytes(ours) == 4
    thin.is_live(ours)


def test_a_chain_of_splices_moves_through_every_link(thin: Thin, harness: Harness) -> None:
    (first, client), (second, middle) = harness.pair(), harness.pair()
    (third, server) = harness.pair()
    thin.splice(first, second)
    link, joint = harness.pair()
    thin.splice(link, third)
    client.write(b"on")
    joint.write(middle.read(2))
    assert server.read(2) == b"on"


def test_a_limit_is_exact_and_the_rest_stays_readable(thin: Thin, harness: Harness) -> None:
    """F10"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain, max_bytes=5)
    client.write(b"hello, world")
    assert server.read(5) == b"hello"
    thin.is_over(source, drain)
    assert thin.spliced_bytes(source) == 5
    assert harness.waiting(source, 7) == b", world"
    assert server.has_nothing_to_read()


def test_a_limit_is_met_over_several_writes(thin: Thin, harness: Harness) -> None:
    """F10"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain, max_bytes=10)
    for piece in (b"abc", b"def", b"ghijkl"):
        client.write(piece)
    assert server.read(10) == b"abcdefghij"
    thin.is_over(source, drain)
    assert harness.waiting(source, 2) == b"kl"


def test_a_limit_of_zero_is_none(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain, max_bytes=0)
    writer = harness.in_background(client.write, b"x" * 50_000)
    assert len(server.read(50_000)) == 50_000
    thin.is_live(source)
    writer.join()


def test_the_largest_limit_is_accepted(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain, max_bytes=2**63 - 1)
    client.write(b"x")
    assert server.read(1) == b"x"


def test_a_large_limit_cuts_a_stream_at_its_byte(thin: Thin, harness: Harness) -> None:
    """F10: past any buffer's size."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    limit, data = 3_000_001, random.Random(1).randbytes(3_500_000)
    thin.splice(source, drain, max_bytes=limit)
    writer = harness.in_background(client.write, data)
    assert server.read(limit) == data[:limit]
    thin.is_over(source, drain)
    thin.cause_is(source, errno.EFBIG)
    assert harness.waiting(source, len(data) - limit) == data[limit:]
    writer.join()


def test_the_count_is_zero_on_a_socket_never_spliced(thin: Thin, harness: Harness) -> None:
    """F4"""
    assert thin.spliced_bytes(harness.pair()[0]) == 0


def test_the_count_is_kept_after_the_end(thin: Thin, harness: Harness) -> None:
    """F4"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"12345")
    assert server.read(5) == b"12345"
    thin.unsplice(source)
    assert thin.spliced_bytes(source) == 5


def test_the_count_starts_again_with_the_next_splice(thin: Thin, harness: Harness) -> None:
    """F4"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"12345")
    assert server.read(5) == b"12345"
    thin.unsplice(source)
    thin.splice(source, drain)
    assert thin.spliced_bytes(source) == 0
    client.write(b"678")
    assert server.read(3) == b"678"
    assert thin.spliced_bytes(source) == 3


def test_the_count_is_per_source(thin: Thin, harness: Harness) -> None:
    """F4: a drain has none."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"12345")
    assert server.read(5) == b"12345"
    assert thin.spliced_bytes(drain) == 0


def test_a_source_is_spliced_again_to_another_drain(thin: Thin, harness: Harness) -> None:
    (source, client), (first, one), (second, two) = (harness.pair() for _ in range(3))
    thin.splice(source, first, max_bytes=3)
    client.write(b"onetwo")
    assert one.read(3) == b"one"
    thin.is_over(source, first)
    thin.cause_is(source, errno.EFBIG)
    thin.splice(source, second)
    assert two.read(3) == b"two"


def test_a_drain_is_used_again_by_another_source(thin: Thin, harness: Harness) -> None:
    (first, one), (second, two), (drain, server) = (harness.pair() for _ in range(3))
    thin.splice(first, drain)
    one.write(b"one")
    assert server.read(3) == b"one"
    thin.unsplice(first)
    thin.splice(second, drain)
    two.write(b"two")
    assert server.read(3) == b"two"


def test_a_drain_is_free_when_its_splice_is_over_by_itself(thin: Thin, harness: Harness) -> None:
    """Without anybody ending it or asking about it."""
    (first, one), (second, two), (drain, server) = (harness.pair() for _ in range(3))
    thin.splice(first, drain, max_bytes=3)
    one.write(b"one")
    assert server.read(3) == b"one"
    harness.until(lambda: thin.spliced_bytes(first) == 3, "the limit met")
    if thin.backend == "kernel":
        thin.is_over(first, drain)
    thin.splice(second, drain)
    two.write(b"two")
    assert server.read(3) == b"two"


def test_a_slow_reader_gets_every_byte(thin: Thin, harness: Harness) -> None:
    """The drain is full most of the time."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    data = random.Random(2).randbytes(400_000)
    thin.splice(source, drain)
    writer = harness.in_background(client.write, data)
    received = bytearray()
    chunks = random.Random(3)
    while len(received) < len(data):
        received += server.read(min(chunks.randrange(1, 9000), len(data) - len(received)))
    writer.join()
    assert received == data
    assert thin.spliced_bytes(source) == len(data)


def test_nothing_is_lost_while_the_drain_is_full(thin: Thin, harness: Harness) -> None:
    """What the drain didn't take is still at the source when the splice is ended."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    sent = thin.fill(client)
    thin.is_live(source)
    moved = thin.spliced_bytes(source)
    assert 0 < moved < sent
    assert len(server.read(moved)) == moved
    assert server.has_nothing_to_read()
    rest = sent - moved
    assert len(harness.waiting(source, rest)) == rest


def test_fifty_megabytes_arrive_with_their_checksum(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    piece, pieces = random.Random(4).randbytes(1 << 20), 50
    thin.splice(source, drain)

    def write() -> None:
        for number in range(pieces):
            client.write(piece[number:] + piece[:number])

    writer = harness.in_background(write)
    expected, received = hashlib.sha256(), hashlib.sha256()
    for number in range(pieces):
        expected.update(piece[number:] + piece[:number])
        received.update(server.read(len(piece)))
    writer.join()
    assert received.digest() == expected.digest()
    assert thin.spliced_bytes(source) == pieces * len(piece)


def test_reading_an_empty_spliced_source_would_block(thin: Thin, harness: Harness) -> None:
    """F28"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"moved")
    assert server.read(5) == b"moved"
    thin.moved(source, 5)
    with pytest.raises(BlockingIOError):
        source.recv(1)


def test_userspace_writes_into_a_drain_between_the_moves(thin: Thin, harness: Harness) -> None:
    """F28"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"one ")
    assert server.read(4) == b"one "
    assert drain.send(b"two ") == 4
    assert server.read(4) == b"two "
    client.write(b"three")
    assert server.read(5) == b"three"
    assert thin.spliced_bytes(source) == 9


def test_reading_what_the_drains_peer_says_goes_on(thin: Thin, harness: Harness) -> None:
    """F28: a splice is one direction only."""
    (source, _), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    server.write(b"back")
    assert harness.waiting(drain, 4) == b"back"


@pytest.mark.parametrize("blocking", [True, False])
def test_the_blocking_mode_of_the_sockets_is_left_alone(
    thin: Thin, harness: Harness, blocking: bool
) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows doesn't tell")
    (source, client), (drain, server) = harness.pair(), harness.pair()
    source.setblocking(blocking)
    drain.setblocking(blocking)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7)
    try:
        thin.splice(source.fileno(), drain.fileno())
        client.write(b"moved")
        assert server.read(5) == b"moved"
        thin.unsplice(source.fileno())
        with thin.refused(thin.none_to_end):
            thin.unsplice(source.fileno())
    finally:
        socket.setdefaulttimeout(before)
    assert harness.is_blocking(source) is blocking
    assert harness.is_blocking(drain) is blocking
