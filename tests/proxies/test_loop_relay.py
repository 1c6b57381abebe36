"""Relays that a loop's thread moves: what holds for every ``Relay`` that closes, and their own."""

from __future__ import annotations

import errno
import gc
import random
import socket
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from conformance import test_relay as cases
from conformance.backends import MODELS
from conformance.harness import DEADLINE, Harness
from freebsd_splice import Reason, Relay
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._platform.pollers import KqueuePoller
from freebsd_splice._runtime import current
from freebsd_splice._userspace.flow import MANY_MESSAGES, MUCH_BYTES
from freebsd_splice.proxies._loop_relay import LoopRelays
from model.harness import ModelHarness
from model.local_worker import LoopsWorker
from programs.processes import descriptors_left
from proxies.on_loop import Loop, OnLoop, looping
from support.platforms import RecordingPlatform, runtime
from system.test_pollers import PollingKqueue

#: The cases that hold for these as well, with what each takes besides the harness.
CASES: list[Any] = [
    (cases.test_eof_is_passed_on_and_the_other_direction_lives_on, {}),
    (cases.test_eof_behind_a_slow_reader_comes_after_the_last_byte, {}),
    pytest.param(
        cases.test_traffic_one_way_keeps_both_directions_alive, {}, marks=pytest.mark.slow
    ),
    (cases.test_close_closes_both_at_the_end, {}),
    (cases.test_a_reset_is_passed_on_as_a_reset, {"from_left": True}),
    (cases.test_a_reset_is_passed_on_as_a_reset, {"from_left": False}),
    (cases.test_a_reset_after_the_answer_is_passed_on_too, {}),
    (cases.test_a_client_whose_bytes_nobody_took_is_reset, {}),
    (cases.test_bytes_left_at_the_source_by_a_cut_get_no_fin, {}),
    (cases.test_an_idle_end_closes_in_the_ordinary_way, {}),
    (cases.test_what_a_dying_server_had_sent_is_still_delivered, {}),
    (cases.test_bulk_both_ways_at_once, {}),
]


def name_of(case: Any) -> str:
    return case.__name__.removeprefix("test_") if callable(case) else ""


@pytest.mark.parametrize(("case", "more"), CASES, ids=name_of)
def test_what_holds_for_every_relay(
    case: Callable[..., None],
    more: dict[str, Any],
    harness: Harness,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cases, "Relay", partial(OnLoop, loop))
    case(harness, **more)


def test_a_short_one_becomes_no_other_relay(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    client.write(b"there already")
    relay = OnLoop(loop, left, right)
    assert server.read(13) == b"there already"
    for number in range(100):
        client.write(b"%9d" % number)
        assert server.read(9) == b"%9d" % number
        server.write(b"%9d" % -number)
        assert client.read(9) == b"%9d" % -number
    client.fin()
    assert server.read(1) == b""
    server.finish(b"answer")
    assert client.read_to_end() == b"answer"
    outcome = relay.wait()
    assert relay.relay.relay is None
    assert outcome.reason is Reason.EOF
    up, down = outcome.left_to_right, outcome.right_to_left
    assert (up.bytes, up.reason, up.unsent, up.error) == (913, Reason.EOF, b"", None)
    assert (down.bytes, down.mover, down.fallback) == (906, "copy", None)
    assert 0 < up.seconds <= down.seconds == outcome.seconds
    assert left.fileno() == right.fileno() == -1


def test_a_short_one_on_kqueue(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KqueuePoller, "module", WatchedKqueue)
    monkeypatch.setattr("freebsd_splice._platform.system.make_poller", lambda kind: KqueuePoller())
    with runtime(RecordingPlatform()), looping() as loop:
        test_a_short_one_becomes_no_other_relay(harness, loop)


class WatchedKqueue(PollingKqueue):
    """One that is said to have a descriptor, for whom a loop watches nothing else."""

    class kqueue(PollingKqueue.kqueue):
        def fileno(self) -> int:
            return 0


def test_a_drain_that_was_shut_down_may_say_so(harness: Harness, loop: Loop) -> None:
    """kqueue(2): EV_EOF of a write filter is our own shutdown, too."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.finish(b"request")
    assert server.read_to_end() == b"request"
    harness.until(lambda: relay.relay.ways[0].end is not None, "the EOF is passed on")
    loop.do(lambda: relay.relay.ways[1].ready(Readiness.WRITE | Readiness.HANGUP))
    server.finish(b"answer")
    assert client.read_to_end() == b"answer"
    assert relay.wait().reason is Reason.EOF
    assert relay.relay.relay is None


def test_an_error_without_an_end_is_left_to_a_relay(harness: Harness, loop: Loop) -> None:
    """A notice in Linux's error queue is reported for ever; only a ``Relay`` quietens that."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.finish(b"request")
    assert server.read_to_end() == b"request"
    harness.until(lambda: relay.relay.ways[0].end is not None, "the EOF is passed on")
    loop.do(lambda: relay.relay.ways[1].ready(Readiness.ERROR))
    assert relay.relay.relay is not None
    server.finish(b"answer")
    assert client.read_to_end() == b"answer"
    assert relay.wait().reason is Reason.EOF


def test_the_loop_has_its_turns_while_bytes_are_moved(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    passed = threading.Event()

    def messages() -> None:
        while not passed.is_set():
            client.write(b"?")
            assert server.read(1) == b"?"

    busy = harness.in_background(messages)
    try:
        loop.do(lambda: loop.loop.call_later(0.05, loop.loop.call_soon, passed.set))
        assert passed.wait(DEADLINE)
    finally:
        passed.set()
        busy.join()
    relay.cancel()


def test_it_is_a_relay_for_whom_asks(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"before, ")
    assert server.read(8) == b"before, "
    relay.relay.started -= 1_000
    made = loop.do(relay.relay.as_relay)
    assert isinstance(made, Relay)
    assert loop.do(relay.relay.as_relay) is made
    client.write(b"after")
    assert server.read(5) == b"after"
    harness.until(lambda: made.bytes == (13, 0), "it is counted")
    client.fin()
    server.fin()
    assert relay.wait() == made.wait(0)
    assert relay.wait().left_to_right.bytes == 13
    assert relay.wait().seconds >= 1_000


def test_much_goes_on_without_the_loop(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = OnLoop(loop, left, right)
    client.write(b"little")
    assert server.read(6) == b"little"
    data = random.Random(3).randbytes(5_000_000)
    writing = harness.in_background(client.finish, data)
    got = server.read(16 * MUCH_BYTES)
    held_up = threading.Event()
    loop.loop.call_soon_threadsafe(held_up.wait, DEADLINE)
    try:
        got += server.read_to_end()
    finally:
        held_up.set()
    assert got == data
    writing.join()
    server.fin()
    outcome = relay.wait()
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, 6 + len(data))


def test_to_become_another_takes_no_descriptor(harness: Harness, loop: Loop) -> None:
    """A proxy's clients can have them all, and bytes are under way."""
    left, client = harness.pair()
    right, server = harness.pair()
    current().start_workers()  # as a server does
    relay = OnLoop(loop, left, right, idle_timeout=1_000)
    data = random.Random(7).randbytes(1_000_000)
    with descriptors_left(0):
        writing = harness.in_background(client.finish, data)
        assert server.read_to_end() == data
        writing.join()
    server.fin()
    outcome = relay.wait()
    assert relay.relay.relay is not None
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, len(data))


def test_what_finds_the_drain_full_is_not_lost(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair(small_buffers=True)
    relay = OnLoop(loop, left, right)
    sent = bytearray()
    while relay.relay.relay is None:  # less than MUCH_BYTES at a time, until no more goes in
        message = random.Random(len(sent)).randbytes(1_001)
        client.write(message)
        sent += message
        loop.do(lambda: None)
    client.fin()
    assert server.read_to_end() == bytes(sent)
    server.fin()
    outcome = relay.wait()
    assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, len(sent))


def test_the_answer_to_a_half_closed_client_may_be_much(harness: Harness, loop: Loop) -> None:
    """The direction that has ended is over for the relay that goes on, and is counted once."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.finish(b"request")
    assert server.read_to_end() == b"request"
    answer = random.Random(5).randbytes(3_000_000)
    writing = harness.in_background(server.finish, answer)
    assert client.read_to_end() == answer
    writing.join()
    outcome = relay.wait()
    assert relay.relay.relay is not None
    up, down = outcome.left_to_right, outcome.right_to_left
    assert (up.reason, up.bytes, down.reason, down.bytes) == (
        Reason.EOF,
        7,
        Reason.EOF,
        len(answer),
    )
    assert up.seconds < down.seconds


def test_an_idle_drain_that_dies_is_noticed(harness: Harness, loop: Loop) -> None:
    """F16"""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"?")
    assert server.read(1) == b"?"
    server.reset()
    error = relay.wait().error
    assert error is not None
    assert error.errno == errno.ECONNRESET


def test_a_message_for_a_dead_drain_is_unsent(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"one")
    assert server.read(3) == b"one"

    def both() -> None:
        client.write(b"two")
        server.reset()

    loop.do(both)  # the loop sees them together
    outcome = relay.wait()
    up = outcome.left_to_right
    assert up.bytes + len(up.unsent) in (3, 6)
    assert outcome.error is not None
    assert outcome.error.errno == errno.ECONNRESET


def test_a_fin_behind_which_the_drain_is_dead_is_no_success(harness: Harness, loop: Loop) -> None:
    """F16: the drain's peer may not have got what was moved."""
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right)
    client.write(b"one")
    assert server.read(3) == b"one"

    def both() -> None:
        client.fin()
        server.reset()
        harness.until(lambda: harness.readable(left) and harness.readable(right), "both are there")

    loop.do(both)
    outcome = relay.wait()
    assert outcome.reason in (Reason.DRAIN_ERROR, Reason.SOURCE_ERROR)
    assert outcome.left_to_right.reason is Reason.DRAIN_ERROR


def test_one_that_is_over_needs_no_collector(harness: Harness, loop: Loop) -> None:
    left, client = harness.pair()
    right, server = harness.pair()
    relay = OnLoop(loop, left, right, idle_timeout=1_000)
    way = weakref.ref(left)
    gc.disable()
    try:
        client.fin()
        server.fin()
        relay.wait()
        del relay, left, right
        harness.keep(socket.socket()).close()
        made = harness._sockets
        made[:] = [each for each in made if each is not way()]
        loop.do(lambda: None)
        assert way() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["much", "long"])
def test_one_that_lasts_is_spliced(name: str, how: str) -> None:
    harness = ModelHarness(name.split()[1])
    world = harness.world
    over: list[bool] = []
    with runtime(world.platform):
        worker = LoopsWorker(world.platform)
        loop = world.start(worker.step, "the loop")
        left, client = harness.pair()
        right, server = harness.pair()
        with worker.its_thread():
            relays = LoopRelays(current(), worker, None, _NoLoop())  # type: ignore[arg-type]
            relay = relays.begin(left, right, lambda: over.append(True))
        sent = 0
        while sent < (MANY_MESSAGES if how == "long" else MUCH_BYTES):
            assert how == "much" or world.counts["set"] == 0
            message = b"m" if how == "long" else bytes(MUCH_BYTES)
            client.write(message)
            assert server.read(len(message)) == message
            sent += len(message)
        harness.until(lambda: world.counts["set"] == 1, "it is spliced")
        client.write(b"the last")
        assert server.read(8) == b"the last"
        client.fin()
        assert server.read(1) == b""
        server.finish(b"answer")
        assert client.read_to_end() == b"answer"
        harness.until(lambda: over, "it is over")
        outcome = relay.outcome()
        towards, back = outcome.left_to_right, outcome.right_to_left
        assert (towards.bytes, towards.mover, towards.fallback) == (sent + 8, "SO_SPLICE", None)
        assert (back.bytes, back.mover) == (6, "copy")
        world.loops.remove(loop)
        relays.close()
        worker.close()
    assert worker.begun_elsewhere == []
    world.check_quiet()


class _NoLoop:
    """What such relays need of an event loop, in a modelled world."""

    def is_running(self) -> bool:
        return False

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        call()

    call_soon = call_soon_threadsafe
