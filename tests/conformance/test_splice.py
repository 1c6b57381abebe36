"""What a ``Splice`` does, on every backend and mover that this machine has."""

from __future__ import annotations

import errno
import hashlib
import random
import socket

import pytest

from faults.cells import cell
from freebsd_splice import InvalidArgument, Reason, Splice

from .backends import Served, counterpart, not_on
from .harness import DEADLINE, Harness

pytestmark = pytest.mark.usefixtures("served")


@counterpart("FreeBSD: basic")
def test_bytes_arrive_and_are_counted(harness: Harness, served: Served) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    with Splice(source, drain) as splice:
        sender.write(b"hello")
        assert receiver.read(5) == b"hello"
        harness.until(lambda: splice.bytes == 5, "5 bytes counted")
    served.check(splice.wait())


def test_what_was_waiting_before_is_moved(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    sender.write(b"early")
    harness.until(lambda: harness.readable(source), "data at the source")
    with Splice(source, drain):
        assert receiver.read(5) == b"early"


@cell(
    "the peer closes",
    "Splice",
    "moving",
    sees="`Reason.EOF`, which is not passed on",
    counted="all that was moved",
)
@pytest.mark.usefixtures("bystander")
def test_eof_ends_it_and_is_not_passed_on(harness: Harness, served: Served) -> None:
    """F12"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    sender.write(b"all")
    sender.fin()
    outcome = splice.wait(DEADLINE)
    assert (outcome.reason, outcome.bytes, outcome.unsent) == (Reason.EOF, 3, b"")
    assert outcome.error is None
    served.check(outcome)
    drain.sendall(b" and more")
    assert receiver.read(12) == b"all and more"


def test_eof_before_the_start_ends_it_at_once(harness: Harness) -> None:
    """F20"""
    source, sender = harness.pair()
    drain, _ = harness.pair()
    sender.fin()
    harness.until(lambda: harness.readable(source), "EOF at the source")
    assert Splice(source, drain).wait(DEADLINE).reason is Reason.EOF


@counterpart("OpenBSD: small buffers")
def test_eof_behind_a_slow_reader_loses_nothing(harness: Harness, served: Served) -> None:
    """F13"""
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    data = random.Random(13).randbytes(230_000)
    splice = Splice(source, drain)
    writer = harness.in_background(sender.finish, data)
    harness.until(lambda: splice.bytes > 0, "a first byte")
    assert receiver.read(len(data)) == data
    outcome = splice.wait(DEADLINE)
    writer.join()
    assert (outcome.reason, outcome.bytes) == (Reason.EOF, len(data))
    served.check(outcome)


@counterpart("FreeBSD: byte limit")
def test_a_limit_met_exactly_ends_it(harness: Harness, served: Served) -> None:
    """F10"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain, max_bytes=5)
    sender.write(b"12345")
    outcome = splice.wait(DEADLINE)
    assert (outcome.reason, outcome.bytes) == (Reason.LIMIT, 5)
    assert receiver.read(5) == b"12345"
    served.check(outcome)


def test_what_is_past_the_limit_stays_at_the_source(harness: Harness) -> None:
    """F10"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    sender.write(b"12345rest")
    assert Splice(source, drain, max_bytes=5).wait(DEADLINE).bytes == 5
    assert harness.waiting(source, 4) == b"rest"
    assert receiver.read(5) == b"12345"
    assert receiver.has_nothing_to_read()


def test_a_large_limit_is_exact(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    data = random.Random(10).randbytes(3_000_001)
    splice = Splice(source, drain, max_bytes=3_000_000)
    writer = harness.in_background(sender.write, data)
    assert receiver.read(3_000_000) == data[:-1]
    assert splice.wait(DEADLINE).reason is Reason.LIMIT
    writer.join()
    assert harness.waiting(source, 1) == data[-1:]


def test_a_limit_of_zero_moves_nothing_and_ends_at_once(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    sender.write(b"kept")
    splice = Splice(source, drain, max_bytes=0)
    assert splice.done
    outcome = splice.wait()
    assert (outcome.reason, outcome.bytes, outcome.unsent) == (Reason.LIMIT, 0, b"")
    assert harness.waiting(source, 4) == b"kept"
    assert receiver.has_nothing_to_read()


def test_a_limit_and_eof_together_are_a_limit(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    sender.write(b"12345")
    sender.fin()
    assert Splice(source, drain, max_bytes=5).wait(DEADLINE).reason is Reason.LIMIT


def test_a_limit_that_is_not_met_ends_with_eof(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    sender.write(b"1234")
    sender.fin()
    outcome = Splice(source, drain, max_bytes=5).wait(DEADLINE)
    assert (outcome.reason, outcome.bytes) == (Reason.EOF, 4)


def test_initial_bytes_go_first_and_count(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    sender.write(b" world")
    sender.fin()
    outcome = Splice(source, drain, initial=b"hello").wait(DEADLINE)
    assert outcome.bytes == 11
    assert receiver.read(11) == b"hello world"


def test_initial_bytes_count_towards_the_limit(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    sender.write(b"67890")
    outcome = Splice(source, drain, max_bytes=7, initial=b"12345").wait(DEADLINE)
    assert (outcome.reason, outcome.bytes, outcome.unsent) == (Reason.LIMIT, 7, b"")
    assert receiver.read(7) == b"1234567"
    assert harness.waiting(source, 3) == b"890"


def test_initial_bytes_past_the_limit_come_back(harness: Harness) -> None:
    source, _ = harness.pair()
    drain, receiver = harness.pair()
    outcome = Splice(source, drain, max_bytes=2, initial=b"12345").wait(DEADLINE)
    assert (outcome.reason, outcome.bytes, outcome.unsent) == (Reason.LIMIT, 2, b"345")
    assert receiver.read(2) == b"12"


def test_initial_bytes_larger_than_the_drains_buffer_arrive(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    data = random.Random(1).randbytes(1_000_000)
    splice = Splice(source, drain, initial=data)
    sender.write(b"end")
    assert receiver.read(len(data) + 3) == data + b"end"
    splice.cancel()


@cell(
    "the peer resets",
    "Splice",
    "moving",
    sees="`Reason.SOURCE_ERROR` with a `ConnectionResetError`",
    counted="all that was moved before the reset",
)
@counterpart("OpenBSD: resets")
def test_a_reset_of_the_sources_peer_is_a_source_error(harness: Harness, served: Served) -> None:
    """F18"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    sender.write(b"before")
    assert receiver.read(6) == b"before"
    sender.reset()
    outcome = splice.wait(DEADLINE)
    assert (outcome.reason, outcome.bytes) == (Reason.SOURCE_ERROR, 6)
    assert isinstance(outcome.error, ConnectionResetError)
    served.check(outcome)


@counterpart("OpenBSD: resets")
@cell(
    "the peer resets",
    "Splice",
    "moving",
    sees="of the drain's: `Reason.DRAIN_ERROR`, also while nothing moves",
)
@pytest.mark.usefixtures("bystander")
def test_a_reset_of_the_drains_peer_ends_an_idle_splice(harness: Harness) -> None:
    """F16"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    sender.write(b"1")
    assert receiver.read(1) == b"1"
    receiver.reset()
    outcome = splice.wait(DEADLINE)
    assert outcome.reason is Reason.DRAIN_ERROR
    assert isinstance(outcome.error, ConnectionResetError)
    sender.write(b"later")
    assert harness.waiting(source, 5) == b"later"


@cell(
    "the peer resets",
    "Splice",
    "half-closed",
    sees="of the drain's: `Reason.DRAIN_ERROR`",
    counted="what the drain did not take is `Outcome.unsent` or still at the source",
)
@pytest.mark.usefixtures("bystander")
def test_bytes_that_a_dead_drain_did_not_take_come_back(harness: Harness) -> None:
    """F16, F32"""
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    data = random.Random(16).randbytes(200_000)
    splice = Splice(source, drain)
    writer = harness.in_background(sender.write, data)
    harness.until(lambda: splice.bytes > 0 and not splice.done, "the drain full")
    settled = _settled(splice, harness)
    receiver.reset()
    outcome = splice.wait(DEADLINE)
    assert outcome.reason is Reason.DRAIN_ERROR
    assert outcome.bytes >= settled
    left = harness.waiting(source, len(data) - outcome.bytes - len(outcome.unsent))
    writer.join()
    assert outcome.unsent + left == data[outcome.bytes :]


@cell(
    "the peer closes",
    "Splice",
    "half-closed",
    sees="of the drain's: nothing until bytes are answered by a reset; then `Reason.DRAIN_ERROR`",
)
@pytest.mark.usefixtures("bystander")
def test_a_fin_of_the_drains_peer_does_nothing_until_a_send(harness: Harness) -> None:
    """F17"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    receiver.fin()
    sender.write(b"still")
    assert receiver.read(5) == b"still"
    assert not splice.done
    splice.cancel()


def test_a_drain_without_a_peer_is_an_error_by_the_second_send(harness: Harness) -> None:
    """F17"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    receiver.close()
    sender.write(b"first")
    outcome = splice.wait(DEADLINE)
    assert outcome.reason is Reason.DRAIN_ERROR
    assert isinstance(outcome.error, (ConnectionResetError, BrokenPipeError))


def test_a_drain_shut_down_for_writing_is_a_drain_error(harness: Harness) -> None:
    """F21: bytes at the source are not destroyed but handed back."""
    source, sender = harness.pair()
    drain, _ = harness.pair()
    drain.shutdown(socket.SHUT_WR)
    sender.write(b"kept")
    outcome = Splice(source, drain).wait(DEADLINE)
    assert outcome.reason is Reason.DRAIN_ERROR
    assert isinstance(outcome.error, BrokenPipeError)
    assert outcome.unsent + harness.waiting(source, 4 - len(outcome.unsent)) == b"kept"


def test_a_source_that_is_not_connected_is_a_source_error(harness: Harness) -> None:
    source = harness.unconnected()
    drain, _ = harness.pair()
    outcome = Splice(source, drain).wait(DEADLINE)
    assert outcome.reason is Reason.SOURCE_ERROR
    assert outcome.error is not None
    assert outcome.error.errno == errno.ENOTCONN


def test_a_drain_that_is_not_connected_is_a_drain_error(harness: Harness) -> None:
    source, _ = harness.pair()
    drain = harness.unconnected()
    assert Splice(source, drain).wait(DEADLINE).reason is Reason.DRAIN_ERROR


def test_cancelling_gives_everything_back(harness: Harness, served: Served) -> None:
    """F32, F35: what was in flight is in ``unsent``, the rest at the source, all in order."""
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    data = random.Random(35).randbytes(300_000)
    splice = Splice(source, drain)
    writer = harness.in_background(sender.write, data)
    harness.until(lambda: splice.bytes > 0, "a first byte")
    outcome = splice.cancel()
    assert outcome.reason is Reason.CANCELLED
    got = receiver.read(outcome.bytes)
    left = harness.waiting(source, len(data) - outcome.bytes - len(outcome.unsent))
    writer.join()
    assert got + outcome.unsent + left == data
    served.check(outcome)


def test_nothing_moves_after_cancel(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    outcome = Splice(source, drain).cancel()
    assert (outcome.reason, outcome.bytes) == (Reason.CANCELLED, 0)
    sender.write(b"after")
    assert harness.waiting(source, 5) == b"after"
    assert receiver.has_nothing_to_read()


def test_an_outcome_does_not_change(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    splice = Splice(source, drain)
    sender.fin()
    outcome = splice.wait(DEADLINE)
    assert splice.cancel() is outcome
    assert splice.wait() is outcome


@counterpart("FreeBSD: resplice")
def test_a_pair_can_be_spliced_again(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    for part in (b"one", b"two", b"six"):
        sender.write(part)
        outcome = Splice(source, drain, max_bytes=3).wait(DEADLINE)
        assert (outcome.reason, outcome.bytes) == (Reason.LIMIT, 3)
    assert receiver.read(9) == b"onetwosix"


@counterpart("FreeBSD: loop")
def test_a_socket_spliced_to_itself_is_an_echo(harness: Harness) -> None:
    """F9"""
    both, peer = harness.pair()
    with Splice(both, both) as splice:
        peer.write(b"echo")
        assert peer.read(4) == b"echo"
        peer.fin()
        assert splice.wait(DEADLINE).reason is Reason.EOF


@counterpart("FreeBSD: v4/v6")
def test_ipv4_and_ipv6_can_be_joined(harness: Harness) -> None:
    """F9"""
    source, sender = harness.pair(socket.AF_INET6)
    drain, receiver = harness.pair(socket.AF_INET)
    with Splice(source, drain):
        sender.write(b"v6 to v4")
        assert receiver.read(8) == b"v6 to v4"


@not_on("model", because="the model knows no Unix sockets")
@not_on("kernel", because="it can't splice them, and userspace may not stand in here")
def test_unix_sockets_are_served_too(harness: Harness) -> None:
    """Userspace needs no TCP; the kernel does (EPROTONOSUPPORT)."""
    source, sender = map(harness.keep, socket.socketpair())
    drain, receiver = map(harness.keep, socket.socketpair())
    with Splice(source, drain) as splice:
        sender.sendall(b"local")
        receiver.settimeout(DEADLINE)
        assert receiver.recv(5) == b"local"
        sender.shutdown(socket.SHUT_WR)
        assert splice.wait(DEADLINE).reason is Reason.EOF


@counterpart("FreeBSD: errors")
def test_a_second_splice_of_the_source_is_refused(harness: Harness) -> None:
    source, _sender = harness.pair()
    drain, _receiver = harness.pair()
    other, _ = harness.pair()
    with Splice(source, drain), pytest.raises(OSError, match="source of a splice") as refused:
        Splice(source, other)
    assert refused.value.errno == errno.EBUSY


def test_a_second_splice_into_the_drain_leaves_the_first_alive(harness: Harness) -> None:
    """F23"""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    other, _ = harness.pair()
    with Splice(source, drain) as splice:
        with pytest.raises(OSError, match="drain of a splice") as refused:
            Splice(other, drain)
        assert refused.value.errno == errno.EBUSY
        sender.write(b"alive")
        assert receiver.read(5) == b"alive"
        harness.until(lambda: splice.bytes == 5, "5 bytes counted")
    with Splice(other, drain):
        pass  # after the refusal the other one is as free as before


@counterpart("FreeBSD: listen, errors")
def test_closed_listening_and_datagram_sockets_are_refused(harness: Harness) -> None:
    good, _ = harness.pair()
    closed = harness.closed()
    listening = harness.listening()
    datagrams = harness.datagrams()
    for bad, number in (
        (closed, errno.EBADF),
        (listening, errno.EINVAL),
        (datagrams, errno.EPROTONOSUPPORT),
    ):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(OSError) as refused:
                Splice(*pair)
            assert refused.value.errno == number


@pytest.mark.parametrize("limit", [-1, 1 << 63])
def test_impossible_limits_are_refused(harness: Harness, limit: int) -> None:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    with pytest.raises(InvalidArgument) as refused:
        Splice(source, drain, max_bytes=limit)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_impossible_times_are_refused(harness: Harness, seconds: float) -> None:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    with pytest.raises(ValueError, match="idle_timeout"):
        Splice(source, drain, idle_timeout=seconds)
    with pytest.raises(ValueError, match="timeout"):
        Splice(source, drain, timeout=seconds)


def test_a_timeout_ends_it_though_it_is_busy(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain, timeout=0.3)
    started = harness.now()
    while not splice.done:
        sender.write(b"x")
        harness.sleep(0.001)
    outcome = splice.wait()
    assert outcome.reason is Reason.TIMEOUT
    assert harness.now() - started >= 0.3
    assert receiver.read(outcome.bytes) == b"x" * outcome.bytes


@counterpart("FreeBSD: timeout")
def test_an_idle_timeout_is_kept_up_by_traffic(harness: Harness) -> None:
    """F11: a true idle timeout, as FreeBSD's own is not."""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain, idle_timeout=2)
    until = harness.now() + 3
    while harness.now() < until:
        harness.sleep(0.01)
        sender.write(b"x")
        assert receiver.read(1) == b"x"
        assert not splice.done
    last = harness.now()
    assert splice.wait(DEADLINE).reason is Reason.IDLE
    assert harness.now() - last >= 1.9


def test_closing_the_source_object_ends_it(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    splice = Splice(source, drain)
    source.close()
    assert splice.wait(DEADLINE).reason is Reason.CLOSED
    assert sender.read(1) == b""


def test_closing_the_drain_object_ends_it(harness: Harness) -> None:
    """F27"""
    source, _ = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    drain.close()
    assert splice.wait(DEADLINE).reason is Reason.CLOSED
    assert receiver.read(1) == b""


@counterpart("FreeBSD: non-blocking")
def test_both_are_nonblocking_meanwhile_and_blocking_again_after(harness: Harness) -> None:
    """F24"""
    source, _ = harness.pair()
    drain, _ = harness.pair()
    source.setblocking(True)
    with Splice(source, drain):
        assert not harness.is_blocking(source)
        assert not harness.is_blocking(drain)
    assert harness.is_blocking(source)
    assert not harness.is_blocking(drain)


def test_fileno_becomes_readable_at_the_end_and_stays_so(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    with Splice(source, drain) as splice:
        assert not harness.readable(splice)  # type: ignore[arg-type]
        sender.fin()
        harness.until(lambda: harness.readable(splice), "the notice")  # type: ignore[arg-type]
        assert splice.done
        assert harness.readable(splice)  # type: ignore[arg-type]


def test_fileno_asked_for_after_the_end_is_readable(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    sender.fin()
    with Splice(source, drain) as splice:
        splice.wait(DEADLINE)
        assert harness.readable(splice)  # type: ignore[arg-type]


def test_waiting_has_a_deadline_and_the_splice_goes_on(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    with Splice(source, drain) as splice:
        with pytest.raises(TimeoutError, match=r"Splice .* is not over after 0\.01 seconds"):
            splice.wait(0.01)
        sender.write(b"on")
        assert receiver.read(2) == b"on"


def test_done_callbacks_are_called_once(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    splice = Splice(source, drain)
    called: list[object] = []
    splice.add_done_callback(called.append)
    sender.fin()
    splice.wait(DEADLINE)
    harness.until(lambda: called, "the callback")
    splice.add_done_callback(called.append)
    harness.until(lambda: len(called) > 1, "the second one")
    assert called == [splice, splice]


@not_on("model", because="64 MiB say nothing that 3 MB don't, and take it minutes")
@counterpart("FreeBSD: throughput")
def test_many_megabytes_arrive_whole(harness: Harness, served: Served) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    block = random.Random(2).randbytes(1 << 20)
    sent, got = hashlib.sha256(), hashlib.sha256()

    def write() -> None:
        for _ in range(64):
            sent.update(block)
            sender.write(block)
        sender.fin()

    writer = harness.in_background(write)
    splice = Splice(source, drain)
    for _ in range(64):
        got.update(receiver.read(1 << 20))
    outcome = splice.wait(DEADLINE)
    writer.join()
    assert (outcome.reason, outcome.bytes) == (Reason.EOF, 64 << 20)
    assert got.digest() == sent.digest()
    served.check(outcome)


@not_on("model", because="the model knows no urgent data")
def test_urgent_data_does_not_stop_the_stream(harness: Harness) -> None:
    """The urgent byte itself is out of band and stays there; os.splice can't pass its mark."""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    sender.write(b"abc")
    assert receiver.read(3) == b"abc"
    sender._connection.send(b"!", socket.MSG_OOB)
    sender.write(b"what follows")
    assert receiver.read(12) == b"what follows"
    sender._connection.send(b"!", socket.MSG_OOB)
    sender.finish(b"the rest")
    outcome = splice.wait(DEADLINE)
    assert (outcome.reason, outcome.bytes) == (Reason.EOF, 23)
    assert receiver.read(8) == b"the rest"


@not_on("model", because="the model knows no urgent data")
def test_urgent_data_right_before_the_end_hides_nothing(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    sender.write(b"abc")
    sender._connection.send(b"!", socket.MSG_OOB)
    sender.finish(b"the rest")
    assert Splice(source, drain).wait(DEADLINE).reason is Reason.EOF
    assert receiver.read(11) == b"abcthe rest"


def test_a_closed_object_comes_before_the_cancel_after_it(harness: Harness) -> None:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    splice = Splice(source, drain)
    source.close()
    assert splice.cancel().reason is Reason.CLOSED


def test_small_writes_arrive_in_order(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    pieces = [bytes([number % 251]) * (number % 97) for number in range(3000)]

    def write_all() -> None:
        for piece in pieces:
            sender.write(piece)

    with Splice(source, drain):
        writer = harness.in_background(write_all)
        whole = b"".join(pieces)
        assert receiver.read(len(whole)) == whole
        writer.join()


def _settled(splice: Splice, harness: Harness) -> int:
    """The count once it has stopped to rise: the drain is full."""
    last = -1

    def steady() -> bool:
        nonlocal last
        before, last = last, splice.bytes
        return last == before

    harness.until(steady, "a drain that is full")
    return last
