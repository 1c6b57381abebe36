"""What the userspace engine must get right, on sockets of a kernel without SO_SPLICE."""

from __future__ import annotations

import errno

from freebsd_splice import Reason, Relay, Splice
from freebsd_splice._userspace.flow import MOVES_A_TURN, MUCH_BYTES

from ..registry import ENGINE
from ..rig import Rig
from . import scenario

#: Bytes of a pipe: less than arrives at once, so that it takes many moves.
SMALL_PIPE = 500
#: And of a large one: more than a drain must have room for to be reported.
LARGER_PIPE = 40 * SMALL_PIPE


@scenario(ENGINE)
def all_that_a_quiet_source_has_is_moved(on: Rig) -> None:
    """It is reported only when it changes, as a notice lies in its error queue."""
    splice, data = _busy_with_small_pipes(on)
    assert on.read() == data
    _notice(on)
    more = b"more" * 4_000
    on.arrive(more)
    on.sender.fin()
    on.world.deliver_fin(on.sender.outgoing)
    on.now()
    assert on.read() == more
    on.ended(splice, Reason.EOF, len(data + more))


@scenario(ENGINE)
def an_eof_at_a_quiet_source_is_seen(on: Rig) -> None:
    """It comes together with the last bytes: there is one change for both."""
    splice = on.splice()
    _notice(on)
    on.arrive(b"the last")
    on.sender.fin()
    on.world.deliver_fin(on.sender.outgoing)
    on.now()
    on.ended(splice, Reason.EOF, 8)


@scenario(ENGINE)
def a_notice_costs_next_to_nothing(on: Rig) -> None:
    """Such as a time stamp, which lies there until the socket's owner reads it."""
    splice = on.splice()
    _notice(on)
    waits = on.world.waits
    on.world.quiet(60)
    assert on.world.waits - waits < 100
    splice.cancel()


def _notice(on: Rig) -> None:
    """Put a notice into the source's error queue."""
    on.source.endpoint.has_notice = True
    on.source.endpoint.changes += 1
    on.now()


@scenario(ENGINE)
def a_turn_is_bounded_however_much_there_is(on: Rig) -> None:
    """The other flows of that worker have theirs in between."""
    splice, data = _busy_with_small_pipes(on)
    assert on.read() == data
    on.arrive(b"much" * 5_000)
    [worker] = [loop for loop in on.world.loops if "worker" in loop.name]
    before = on.world.counts["splice"]
    on.world.turn(worker)
    assert on.world.counts["splice"] - before <= 2 * MOVES_A_TURN + 1
    splice.cancel()


def _busy_with_small_pipes(on: Rig) -> tuple[Splice, bytes]:
    """A splice that os.splice serves, as it has shown to have much to move; and its bytes."""
    on.world.pipes.size = SMALL_PIPE
    data = b"".join(number.to_bytes(4, "big") for number in range(MUCH_BYTES // 4))
    for at in range(0, len(data), 16_384):
        on.arrive(data[at : at + 16_384])
        on.world.ack(on.sender.outgoing)
    splice = on.splice()
    return splice, data


@scenario(ENGINE)
def a_drain_that_keeps_up_has_a_large_pipe(on: Rig) -> None:
    """The same bytes take fewer calls then."""
    on.world.pipes.largest = LARGER_PIPE
    splice, data = _busy_with_small_pipes(on)
    assert on.read() == data
    _four_full_pipes_at_once(on)
    before = on.world.counts["splice"]
    _four_full_pipes_at_once(on)
    assert on.world.counts["splice"] - before == 2
    splice.cancel()


@scenario(ENGINE)
def a_drain_that_falls_behind_has_a_usual_pipe(on: Rig) -> None:
    """F31: large pipes are few, and slow drains would keep them all."""
    on.world.pipes.largest = LARGER_PIPE
    splice, data = _busy_with_small_pipes(on)
    assert on.read() == data
    _four_full_pipes_at_once(on)
    more = on.fill_the_drain(50_000)
    got = b""
    while piece := on.receiver.read(100):
        got += piece
        on.now()
    assert got == more
    before = on.world.counts["splice"]
    on.arrive(b"x" * 4 * SMALL_PIPE)
    on.now()
    assert on.world.counts["splice"] - before == 2 * 4
    splice.cancel()


@scenario(ENGINE)
def where_no_large_pipe_is_to_be_had_few_are_asked_for(on: Rig) -> None:
    """F31: past the user's share a pipe that was to be large is not."""
    on.world.pipes.largest = 0
    splice, data = _busy_with_small_pipes(on)
    assert on.read() == data
    before = on.world.pipes.made
    for _ in range(8):
        _four_full_pipes_at_once(on)
    assert on.world.pipes.made - before <= 8
    assert len(on.world.pipes.open) == 1
    splice.cancel()


def _four_full_pipes_at_once(on: Rig) -> None:
    on.arrive(b"much" * SMALL_PIPE)
    on.now()
    assert on.read() == b"much" * SMALL_PIPE


@scenario(ENGINE)
def what_takes_a_part_is_not_asked_at_once_again(on: Rig) -> None:
    """A drain that is full after a part: the next call would fail."""
    splice = on.splice()
    on.arrive(b"a" * 16_000)
    on.now()
    on.arrive(b"b" * 16_000)
    before = on.world.counts["send"]
    on.now()
    assert on.world.counts["send"] - before == 1
    outcome = splice.cancel()
    assert outcome.unsent == b"b" * len(outcome.unsent) != b""


@scenario(ENGINE)
def bytes_held_come_before_the_eof_behind_them(on: Rig) -> None:
    """As F13: a FIN arrives while the drain is full."""
    splice = on.splice()
    data = on.fill_the_drain(30_000)
    on.sender.fin()
    on.now()
    assert not splice.done
    assert on.read() == data
    on.ended(splice, Reason.EOF, len(data))


@scenario(ENGINE)
def a_full_drain_costs_nothing_while_it_is_full(on: Rig) -> None:
    """However much arrives meanwhile."""
    splice = on.splice()
    on.fill_the_drain(30_000)
    before, waits = on.world.counts.copy(), on.world.waits
    on.arrive(b"behind")
    on.sender.fin()
    on.world.quiet(60)
    assert not on.world.counts - before
    assert on.world.waits - waits < 100  # the watcher looks for closed sockets
    splice.cancel()


@scenario(ENGINE)
def the_count_is_what_the_drain_has_taken(on: Rig) -> None:
    splice = on.splice()
    data = on.fill_the_drain(30_000)
    outcome = splice.cancel()
    left = on.source.recv(100_000) if on.source.endpoint.received else b""
    assert outcome.unsent, "the scenario needs bytes that are held"
    got = on.read()
    assert len(got) == outcome.bytes
    assert got + outcome.unsent + left == data


@scenario(ENGINE)
def a_stop_gives_back_what_is_in_a_pipe(on: Rig) -> None:
    """F32: bytes in a pipe are nowhere else."""
    splice, data = _busy_with_small_pipes(on)
    assert on.read() == data
    more = on.fill_the_drain(30_000)
    outcome = splice.cancel()
    assert outcome.mover == "os.splice"
    assert 0 < len(outcome.unsent) <= SMALL_PIPE
    left = on.source.recv(100_000)
    assert on.read() + outcome.unsent + left == more


@scenario(ENGINE)
def held_bytes_are_kept_from_other_flows(on: Rig) -> None:
    """All flows of a worker take their bytes into one buffer."""
    other, sender = on.world.pair(20_000, 20_000)
    drain, receiver = on.world.pair(20_000, 20_000)
    splice, another = on.splice(limit=50_000), Splice(other, drain, max_bytes=50_000)
    data = on.fill_the_drain(30_000)
    sender.write(b"z" * 15_000)
    on.now()
    assert receiver.read() == b"z" * 15_000
    assert on.read() == data
    another.cancel()
    splice.cancel()


@scenario(ENGINE)
def a_limit_is_exact_and_the_rest_stays(on: Rig) -> None:
    on.arrive(b"0123456789")
    splice = on.splice(limit=6)
    on.ended(splice, Reason.LIMIT, 6)
    assert on.source.recv(99) == b"6789"


@scenario(ENGINE)
def initial_bytes_behind_the_limit_come_back(on: Rig) -> None:
    splice = Splice(on.source, on.drain, max_bytes=3, initial=b"abcdef")
    on.now()
    assert on.ended(splice, Reason.LIMIT, 3).unsent == b"def"


@scenario(ENGINE)
def a_dead_drain_is_found_though_nothing_is_sent(on: Rig) -> None:
    splice = on.splice()
    on.receiver.reset()
    on.now()
    outcome = on.ended(splice, Reason.DRAIN_ERROR, 0)
    assert isinstance(outcome.error, ConnectionResetError)


@scenario(ENGINE)
def a_drain_that_died_is_reported_before_an_eof(on: Rig) -> None:
    """F16: the reset comes between the last bytes and the EOF behind them."""
    splice = on.splice()
    on.arrive(b"lost")
    on.sender.fin()
    on.world.deliver_fin(on.sender.outgoing)

    def the_reader_goes() -> None:
        on.receiver.reset()
        on.world.deliver_reset(on.receiver.outgoing)

    send = on.drain.endpoint.send

    def send_and_die(data: bytes) -> int:
        taken = send(data)
        on.world.interruption = the_reader_goes
        return taken

    on.drain.endpoint.send = send_and_die  # type: ignore[method-assign]
    on.now()
    on.ended(splice, Reason.DRAIN_ERROR, 4)


@scenario(ENGINE)
def bytes_before_a_reset_are_read_though_it_is_a_drain_too(on: Rig) -> None:
    relay = Relay(on.source, on.drain)
    on.now()
    on.arrive(b"the last words")
    on.sender.reset()
    on.world.deliver_reset(on.sender.outgoing)
    on.now()
    outcome = relay.wait()
    assert on.receiver.read() == b"the last words"
    assert outcome.left_to_right.bytes == 14
    assert outcome.left_to_right.reason is Reason.SOURCE_ERROR


@scenario(ENGINE)
def an_error_is_told_to_both_directions(on: Rig) -> None:
    """The system tells it once; the direction that comes second must not take it for a FIN."""
    relay = Relay(on.source, on.drain)
    on.now()
    on.receiver.write(b"for one who has gone")
    on.world.deliver(on.receiver.outgoing)
    on.sender.reset()
    on.world.deliver_reset(on.sender.outgoing)
    on.now()
    outcome = relay.wait()
    assert outcome.left_to_right.reason is Reason.SOURCE_ERROR
    assert outcome.right_to_left.reason is Reason.DRAIN_ERROR
    assert isinstance(outcome.left_to_right.error, ConnectionResetError)


@scenario(ENGINE)
def steady_traffic_is_not_idle(on: Rig) -> None:
    splice = on.splice(idle_timeout=0.5)
    for _ in range(20):
        on.arrive(b"x")
        on.world.quiet(0.1)
        on.receiver.read()
        assert not splice.done
    on.world.quiet(0.65)
    assert on.ended(splice, Reason.IDLE, 20).seconds >= 2.4


@scenario(ENGINE)
def a_reader_that_takes_what_was_sent_is_not_idle(on: Rig) -> None:
    splice = on.splice(idle_timeout=0.5)
    on.fill_the_drain(28_000)
    for _ in range(20):
        assert on.receiver.read(900)
        on.world.quiet(0.1)
        assert not splice.done
    on.world.quiet(0.65)
    on.ended(splice, Reason.IDLE, 28_000)


@scenario(ENGINE)
def the_sockets_are_blocking_again_at_the_end(on: Rig) -> None:
    on.source.setblocking(True)
    on.drain.setblocking(True)
    splice = on.splice()
    on.arrive(b"x")
    on.now()
    assert not on.world.would_block
    splice.cancel()
    assert not on.source.endpoint.non_blocking
    assert not on.drain.endpoint.non_blocking


@scenario(ENGINE)
def a_poller_without_room_ends_the_flow(on: Rig) -> None:
    on.world.pollers_are_full = True
    splice = on.splice()
    outcome = on.ended(splice, Reason.SOURCE_ERROR, 0)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ENOSPC


@scenario(ENGINE)
def no_pipe_to_be_had_is_no_failure(on: Rig) -> None:
    """F31: pipes are limited."""
    on.world.pipes.none_left = True
    splice, data = _busy_with_small_pipes(on)
    got = on.read()
    on.sender.fin()
    on.now()
    assert on.ended(splice, Reason.EOF, len(data)).mover == "copy"
    assert got == data
