"""What a ``Relay`` does, on every backend and mover that this machine has."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable

import pytest

from faults.cells import cell
from freebsd_splice import Reason, Relay

from .backends import Served, not_on
from .harness import DEADLINE, Harness, Peer

pytestmark = pytest.mark.usefixtures("served")

whole_answers = not_on(
    "model",
    "kernel",
    because="FreeBSD reports a reset behind a FIN to the reader as ECONNRESET: no telling it from "
    "one before the FIN",
)


def test_both_directions_are_moved_and_counted(harness: Harness, served: Served) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    with Relay(left, right) as relay:
        client.write(b"question")
        assert server.read(8) == b"question"
        server.write(b"answer")
        assert client.read(6) == b"answer"
        harness.until(lambda: relay.bytes == (8, 6), "8 and 6 bytes counted")
    outcome = relay.wait()
    served.check(outcome.left_to_right)
    served.check(outcome.right_to_left)


def test_a_live_relay_says_how_far_it_is_and_what_serves(harness: Harness, served: Served) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    serves = (served.backend, served.mover)
    with Relay(left, right) as relay:
        client.write(b"question")
        assert server.read(8) == b"question"
        harness.until(lambda: relay.progress() == [(8, serves), (0, serves)], "8 bytes counted")
        relay.cancel()
        assert relay.progress() == [(8, serves), (0, serves)]


def test_eof_is_passed_on_and_the_other_direction_lives_on(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right)
    client.write(b"question")
    client.fin()
    assert server.read_to_end() == b"question"
    assert not relay.done
    server.write(b"the answer")
    server.fin()
    assert client.read_to_end() == b"the answer"
    outcome = relay.wait(DEADLINE)
    assert outcome.reason is Reason.EOF
    assert (outcome.left_to_right.reason, outcome.left_to_right.bytes) == (Reason.EOF, 8)
    assert (outcome.right_to_left.reason, outcome.right_to_left.bytes) == (Reason.EOF, 10)
    assert outcome.seconds >= outcome.left_to_right.seconds


def test_eof_behind_a_slow_reader_comes_after_the_last_byte(harness: Harness) -> None:
    """F13: FreeBSD's example proxy truncates such a stream."""
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    data = random.Random(13).randbytes(230_000)
    with Relay(left, right):
        writer = harness.in_background(client.finish, data)
        assert server.read_to_end() == data
        writer.join()


def test_initial_bytes_go_first_both_ways(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    with Relay(left, right, initial=(b"from left, ", b"from right, ")):
        client.write(b"more")
        server.write(b"more")
        assert server.read(15) == b"from left, more"
        assert client.read(16) == b"from right, more"


def test_without_half_close_the_first_eof_ends_the_pair(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right, half_close=False)
    client.write(b"last words")
    client.fin()
    outcome = relay.wait(DEADLINE)
    assert outcome.reason is Reason.EOF
    assert outcome.left_to_right.bytes == 10
    assert outcome.right_to_left.reason is Reason.CANCELLED
    assert server.read(10) == b"last words"
    assert server.has_nothing_to_read()


def test_traffic_one_way_keeps_both_directions_alive(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right, idle_timeout=1)
    until = harness.now() + 2
    while harness.now() < until:
        harness.sleep(0.01)
        client.write(b"x")
        assert server.read(1) == b"x"
        assert not relay.done
    server.write(b"y")
    assert client.read(1) == b"y"
    outcome = relay.wait(DEADLINE)
    assert outcome.reason is Reason.IDLE
    assert outcome.left_to_right.reason is outcome.right_to_left.reason is Reason.IDLE


def test_a_timeout_ends_both(harness: Harness) -> None:
    left, _ = harness.pair()
    right, _ = harness.pair()
    outcome = Relay(left, right, timeout=0.1).wait(DEADLINE)
    assert outcome.reason is Reason.TIMEOUT
    assert outcome.seconds >= 0.1


def test_cancel_ends_both_and_leaves_the_sockets_usable(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    outcome = Relay(left, right).cancel()
    assert outcome.reason is Reason.CANCELLED
    left.sendall(b"mine")
    right.sendall(b"mine")
    assert client.read(4) == server.read(4) == b"mine"


def test_closing_one_socket_object_ends_both(harness: Harness) -> None:
    left, client = harness.pair()
    right, _ = harness.pair()
    relay = Relay(left, right)
    left.close()
    assert relay.wait(DEADLINE).reason is Reason.CLOSED
    assert client.read(1) == b""


def test_close_closes_both_at_the_end(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right, close=True)
    client.fin()
    server.fin()
    relay.wait(DEADLINE)
    assert left.fileno() == right.fileno() == -1
    assert client.read_to_end() == server.read_to_end() == b""


def test_without_close_nothing_is_closed(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right)
    client.fin()
    server.fin()
    relay.wait(DEADLINE)
    assert left.fileno() >= 0
    assert right.fileno() >= 0


@pytest.mark.parametrize("from_left", [True, False])
def test_a_reset_is_passed_on_as_a_reset(harness: Harness, from_left: bool) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right, close=True)
    breaker, other = (client, server) if from_left else (server, client)
    breaker.write(b"half of it")
    assert other.read(10) == b"half of it"
    breaker.reset()
    with pytest.raises(ConnectionResetError):
        other.read(1)
    outcome = relay.wait(DEADLINE)
    assert outcome.reason in (Reason.SOURCE_ERROR, Reason.DRAIN_ERROR)
    assert outcome.error is not None


def test_a_reset_after_the_answer_is_passed_on_too(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right, close=True)
    server.finish(b"the whole answer")
    assert client.read_to_end() == b"the whole answer"
    client.write(b"half of a request")
    assert server.read(17) == b"half of a request"
    client.reset()
    with pytest.raises(ConnectionResetError):
        server.read(1)
    assert relay.wait(DEADLINE).reason is Reason.SOURCE_ERROR


def test_a_client_whose_bytes_nobody_took_is_reset(harness: Harness) -> None:
    left, client = harness.pair()
    right, _server = harness.pair()
    relay = Relay(left, right, close=True)
    right.shutdown(socket.SHUT_WR)
    client.write(b"for nobody")
    harness.until(lambda: relay._ends[0] is not None, "the end of that direction")
    relay.cancel()
    with pytest.raises(ConnectionResetError):
        client.read(1)


def test_bytes_left_at_the_source_by_a_cut_get_no_fin(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = Relay(left, right, close=True)
    writer = harness.in_background(_write_until_reset, client)
    harness.until(_steady(relay), "more than is taken")
    relay.cancel()
    writer.join()
    with pytest.raises(ConnectionResetError):
        server.read_to_end()


def test_an_idle_end_closes_in_the_ordinary_way(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right, close=True, idle_timeout=0.2)
    client.write(b"all of it")
    assert relay.wait(DEADLINE).reason is Reason.IDLE
    assert server.read_to_end() == b"all of it"
    assert client.read_to_end() == b""


def _steady(relay: Relay) -> Callable[[], bool]:
    """Whether the count has stopped to rise: the drain is full, and bytes wait at the source."""
    seen = [0] * 20

    def steady() -> bool:
        seen[:] = [*seen[1:], relay.bytes[0]]
        return seen[0] > 0 and seen[0] == seen[-1]

    return steady


#: Bytes that wait at the proxy for a slow reader, and are there whole.  What was still in a dying
#: server's own buffer would be lost with its reset.
WAITING = 60_000


def _write_until_reset(client: Peer) -> None:
    with contextlib.suppress(OSError):
        client.write(bytes(20_000_000))


def test_bytes_lost_by_a_cut_are_not_followed_by_a_fin(harness: Harness) -> None:
    """A FIN would tell the reader that it has got everything."""
    left, _client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = Relay(left, right, close=True, initial=(b"x" * 3_000_000, b""))
    harness.until(lambda: relay.bytes[0] > 0, "a first byte")
    outcome = relay.cancel()
    assert outcome.left_to_right.unsent
    with pytest.raises(ConnectionResetError):
        server.read_to_end()


def test_what_a_dying_server_had_sent_is_still_delivered(harness: Harness) -> None:
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * WAITING)
    answer = random.Random(3).randbytes(WAITING)
    relay = Relay(left, right)
    writer = harness.in_background(server.write, answer)
    harness.until(lambda: relay.bytes[1] > 0, "a first byte")
    writer.join()
    server.fin()
    client.write(b"nobody reads this")
    harness.until(lambda: relay.bytes[0] > 0, "the request moved")
    server.close()  # with unread bytes: a reset on Linux (F27)
    assert client.read(len(answer)) == answer
    relay.cancel()


@whole_answers
def test_a_reset_behind_the_fin_does_not_spoil_a_whole_answer(harness: Harness) -> None:
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * WAITING)
    answer = random.Random(4).randbytes(WAITING)
    relay = Relay(left, right, close=True)
    writer = harness.in_background(server.write, answer)
    harness.until(lambda: relay.bytes[1] > 0, "a first byte")
    writer.join()
    server.close()
    client.write(b"too late")  # answered by a reset
    harness.until(lambda: relay.bytes[0] > 0, "the late request moved")
    assert client.read_to_end() == answer
    outcome = relay.wait(DEADLINE)
    assert outcome.right_to_left.reason is Reason.EOF
    assert outcome.left_to_right.reason is Reason.DRAIN_ERROR


@whole_answers
def test_an_answer_in_the_send_buffer_survives_a_reset_behind_it(harness: Harness) -> None:
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    answer = random.Random(5).randbytes(16_000)  # more than the client's buffer holds
    relay = Relay(left, right, close=True, linger=0.5)
    server.write(answer)
    server.close()
    harness.until(lambda: relay.bytes[1] == len(answer), "the answer taken")
    client.write(b"too late")  # answered by a reset
    outcome = relay.wait(DEADLINE)
    assert outcome.left_to_right.reason is Reason.DRAIN_ERROR
    assert client.read_to_end() == answer


@pytest.mark.parametrize("upwards", [False, True])
@cell(
    "the peer resets",
    "Relay",
    "closing",
    sees="that of the other side: the reader gets all that was counted, then a reset",
    counted="all that was counted has arrived: `Outcome.undelivered` is 0",
)
@pytest.mark.usefixtures("bystander")
def test_what_was_counted_arrives_before_the_reset_behind_it(
    harness: Harness, upwards: bool
) -> None:
    """F27: to reset throws away what the peer has not acknowledged."""
    relay, reader, _ = _reset_behind_a_slow_reader(harness, upwards=upwards, linger=DEADLINE)
    assert not relay.done
    assert _read_until_reset(reader) == SENT
    outcome = relay.wait(DEADLINE)
    way = outcome.left_to_right if upwards else outcome.right_to_left
    assert (way.bytes, way.undelivered) == (len(SENT), 0)


def test_a_still_reader_is_reset_and_what_it_may_lack_counted(
    harness: Harness,
) -> None:
    relay, reader, _ = _reset_behind_a_slow_reader(harness, linger=0.2)
    way = relay.wait(DEADLINE).right_to_left
    got = _read_until_reset(reader)
    assert way.bytes == len(SENT)
    assert way.undelivered is not None
    assert 0 < way.bytes - way.undelivered <= len(got) < way.bytes


def test_cancel_does_not_wait_for_a_slow_reader_who_gets_all(harness: Harness) -> None:
    relay, reader, drain = _reset_behind_a_slow_reader(harness, linger=DEADLINE)
    way = relay.cancel().right_to_left
    assert drain.fileno() == -1
    assert way.undelivered is not None
    assert 0 < way.undelivered <= way.bytes
    assert _read_until_reset(reader) == SENT


def test_bytes_unsent_at_a_cancel_mean_a_reset_behind_those_sent(
    harness: Harness,
) -> None:
    left, _client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    data = random.Random(8).randbytes(300_000)
    relay = Relay(left, right, close=True, linger=DEADLINE, initial=(data, b""))
    harness.until(_steady(relay), "all that is taken while nobody reads")
    way = relay.cancel().left_to_right
    assert data[way.bytes :] == way.unsent
    assert _read_until_reset(server) == data[: way.bytes]


@whole_answers
def test_a_whole_answer_arrives_though_nobody_reads_the_client(
    harness: Harness,
) -> None:
    """F27: where bytes are unread, some systems close with a reset, which destroys the answer."""
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair()
    answer = random.Random(6).randbytes(16_000)  # more than the client's buffer holds
    relay = Relay(left, right, close=True)
    server.write(answer)
    server.close()
    harness.until(lambda: relay.bytes[1] == len(answer), "the answer taken")
    client.write(b"too late")  # answered by a reset
    harness.until(lambda: relay._ends[0] is not None, "the end of that direction")
    client.write(b"read by nobody")
    assert client.read_to_end() == answer
    relay.wait(DEADLINE)


def test_a_cut_resets_behind_what_was_sent(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = Relay(left, right, close=True)
    server.write(b"half of an answer")
    harness.until(lambda: relay.bytes == (0, 17), "the half moved")
    relay.cut_soon()
    assert client.read(17) == b"half of an answer"
    for peer in (client, server):
        with pytest.raises(ConnectionResetError):
            peer.read(1)
    assert relay.wait(DEADLINE).reason is Reason.CANCELLED


@pytest.mark.parametrize("linger", [-1, float("nan"), float("inf")])
def test_a_linger_that_is_not_a_time_is_refused(harness: Harness, linger: float) -> None:
    left, _ = harness.pair()
    right, _ = harness.pair()
    with pytest.raises(ValueError, match="linger"):
        Relay(left, right, linger=linger)


#: More than the receive buffer of a small pair holds, and less than both of its buffers do.
SENT = random.Random(7).randbytes(16_000)


def _reset_behind_a_slow_reader(
    harness: Harness, *, linger: float, upwards: bool = False
) -> tuple[Relay, Peer, socket.socket]:
    """A relay that has taken all of SENT and met a reset, whose reader has read nothing yet."""
    left, client = harness.pair(small_buffers=not upwards)
    right, server = harness.pair(small_buffers=upwards)
    relay = Relay(left, right, close=True, linger=linger)
    breaker, reader, drain = (client, server, right) if upwards else (server, client, left)
    breaker.write(SENT)
    harness.until(lambda: sum(relay.bytes) == len(SENT), "all of it taken")
    breaker.reset()
    harness.until(lambda: relay._closing_has_begun, "the end of both directions")
    return relay, reader, drain


def _read_until_reset(peer: Peer) -> bytes:
    """What comes before the reset; a FIN in its place is a failure."""
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := peer.read(1):
            got += piece
        raise AssertionError("a FIN, which says that all is well")
    return bytes(got)


def test_sockets_stay_nonblocking_until_both_directions_end(harness: Harness) -> None:
    """F24"""
    left, client = harness.pair()
    right, server = harness.pair()
    left.setblocking(True)
    right.setblocking(True)
    relay = Relay(left, right)
    client.fin()
    assert server.read_to_end() == b""
    assert not harness.is_blocking(left)
    assert not harness.is_blocking(right)
    server.fin()
    relay.wait(DEADLINE)
    assert harness.is_blocking(left)
    assert harness.is_blocking(right)


def test_a_pair_of_one_socket_is_refused_and_the_socket_is_free(harness: Harness) -> None:
    both, peer = harness.pair()
    with pytest.raises(OSError, match="left and right must be two connections"):
        Relay(both, both)
    other, other_peer = harness.pair()
    with Relay(both, other, close=True):
        peer.write(b"free")
        assert other_peer.read(4) == b"free"


def test_a_refused_relay_closes_nothing(harness: Harness) -> None:
    left, _ = harness.pair()
    right, _ = harness.pair()
    third, _ = harness.pair()
    with Relay(left, right):
        with pytest.raises(OSError, match="is the"):
            Relay(third, right, close=True)
        assert third.fileno() >= 0


def test_bulk_both_ways_at_once(harness: Harness) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    up, down = (random.Random(seed).randbytes(16 << 20) for seed in (1, 2))
    got: dict[str, bytes] = {}
    threads = [
        harness.in_background(client.finish, up),
        harness.in_background(server.finish, down),
        harness.in_background(lambda: got.update(up=server.read_to_end())),
        harness.in_background(lambda: got.update(down=client.read_to_end())),
    ]
    with Relay(left, right) as relay:
        for thread in threads:
            thread.join()
        outcome = relay.wait(DEADLINE)
    assert outcome.reason is Reason.EOF
    assert got["up"] == up
    assert got["down"] == down
