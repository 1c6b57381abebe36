"""Thin calls: many splices, many threads, processes, and what an idle splice costs."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable

import pytest

from conformance.harness import Harness, Peer
from faults.cells import cell
from support.slowness import SLOWNESS

from .backends import not_on
from .thin import Thin

if sys.platform == "win32":
    pytest.skip("Windows has no fork and no getrusage", allow_module_level=True)

pytestmark = not_on("model", because="it has neither threads nor processes of its own")

# The child runs one call of this package and ends by os._exit, whatever threads there were.
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work(0), work(1)... at once, and raise what one of them raised."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_every_one_of_many_splices_moves_its_own_bytes(thin: Thin, harness: Harness) -> None:
    ways = [(harness.pair(), harness.pair()) for _ in range(100)]
    for (source, _), (drain, _) in ways:
        thin.splice(source, drain)
    for round_ in range(3):
        for number, ((_, client), _) in enumerate(ways):
            client.write(b"%03d-%d" % (number, round_))
        for number, (_, (_, server)) in enumerate(ways):
            assert server.read(5) == b"%03d-%d" % (number, round_)
    assert {thin.spliced_bytes(source) for (source, _), _ in ways} == {15}


def test_a_flood_does_not_starve_the_others(thin: Thin, harness: Harness) -> None:
    """While one splice always has more to move, another one's short messages get through."""
    (loud, flood), (loud_drain, sea) = harness.pair(), harness.pair()
    (quiet, client), (quiet_drain, server) = harness.pair(), harness.pair()
    thin.splice(loud, loud_drain)
    thin.splice(quiet, quiet_drain)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            flood.write(b"f" * 262_144)
        flood.fin()

    writer = threading.Thread(target=write)
    reader = threading.Thread(target=lambda: read_and_forget(sea))
    writer.start()
    reader.start()
    try:
        harness.until(lambda: thin.spliced_bytes(loud) > 1 << 20, "the flood under way")
        before = thin.spliced_bytes(loud)
        for number in range(100):
            client.write(b"%03d" % number)
            assert server.read(3) == b"%03d" % number
        harness.until(lambda: thin.spliced_bytes(loud) > before, "the flood going on")
    finally:
        done.set()
        writer.join()
        thin.hangup(loud)
        loud_drain.shutdown(socket.SHUT_WR)
        reader.join()


def read_and_forget(peer: Peer) -> None:
    while len(peer.read(65536)) == 65536:
        pass


def test_threads_splice_and_end_at_once(thin: Thin, harness: Harness) -> None:
    """Each its own sockets; nobody's bytes come out elsewhere."""
    ways = [(harness.pair(), harness.pair()) for _ in range(8)]

    def work(number: int) -> None:
        (source, client), (drain, server) = ways[number]
        for turn in range(40):
            text = b"%d:%03d" % (number, turn)
            thin.splice(source, drain)
            client.write(text)
            assert server.read(len(text)) == text
            thin.unsplice(source)
            assert thin.spliced_bytes(source) == len(text)

    in_threads(8, work)


def test_of_many_that_end_one_splice_one_succeeds(thin: Thin, harness: Harness) -> None:
    """F35"""
    for _ in range(20):
        (source, _), (drain, _) = harness.pair(), harness.pair()
        thin.splice(source, drain)
        answers: list[int] = []

        def end(_: int, source: int = source.fileno(), answers: list[int] = answers) -> None:
            try:
                thin.unsplice(source)
                answers.append(0)
            except OSError as error:
                answers.append(error.errno or 0)

        in_threads(4, end)
        assert sorted(answers) == sorted([0, *[thin.none_to_end] * 3])
        harness.close()


def test_of_many_that_want_one_drain_one_gets_it(thin: Thin, harness: Harness) -> None:
    """F22: the others are told, and their sources are as good as before."""
    at_once = thin.differs(
        kernel=False, userspace=True, because="the kernel path's checks can race there (F22)"
    )
    sources = [harness.pair() for _ in range(6)]
    drain, server = harness.pair()
    answers: dict[int, int] = {}

    def take(number: int) -> None:
        try:
            thin.splice(sources[number][0], drain)
            answers[number] = 0
        except OSError as error:
            answers[number] = error.errno or 0

    if at_once:
        in_threads(6, take)
    else:
        for number in range(6):
            take(number)
    assert sorted(answers.values()) == [0, *[errno.EBUSY] * 5]
    for number, (source, client) in enumerate(sources):
        client.write(b"data")
        if answers[number] == 0:
            assert server.read(4) == b"data"
        else:
            assert harness.waiting(source, 4) == b"data"


def test_a_splice_in_each_direction_carries_a_conversation(thin: Thin, harness: Harness) -> None:
    """F9: both directions full of data."""
    (left, client), (right, server) = harness.pair(), harness.pair()
    thin.splice(left, right)
    thin.splice(right, left)
    data = {0: os.urandom(3_000_000), 1: os.urandom(3_000_000)}
    ends = [client, server]

    def work(number: int) -> None:
        end, mine, other = ends[number % 2], data[number % 2], data[1 - number % 2]
        if number < 2:
            end.write(mine)
        else:
            assert end.read(len(other)) == other

    in_threads(4, work)
    assert thin.spliced_bytes(left) == thin.spliced_bytes(right) == 3_000_000


@FORKS
@cell(
    "fork",
    "thin",
    "moving",
    sees="the splice goes on, whatever the child closes",
    counted="all",
)
@pytest.mark.usefixtures("bystander")
def test_a_splice_of_the_parents_goes_on_beside_a_forked_child(
    thin: Thin, harness: Harness
) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)

    def closes() -> bool:
        source.close()
        drain.close()
        return True

    child = forked(closes)
    client.write(b"after")
    assert server.read(5) == b"after"
    assert exit_status(child) == 0
    client.write(b"later")
    assert server.read(5) == b"later"
    assert thin.spliced_bytes(source) == 10
    thin.is_live(source)


@FORKS
def test_a_forked_child_splices(thin: Thin, harness: Harness) -> None:
    """F8: with sockets from before the fork, though the parent has spliced others."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    (busy, _), (busy_drain, _) = harness.pair(), harness.pair()
    thin.splice(busy, busy_drain)

    def moves() -> bool:
        thin.splice(source, drain)
        client.write(b"child")
        moved = server.read(5) == b"child" and thin.spliced_bytes(source) == 5
        thin.unsplice(source)
        return moved

    assert exit_status(forked(moves)) == 0
    thin.is_live(busy)


@FORKS
def test_a_forked_child_sees_splices_as_the_backend_can(thin: Thin, harness: Harness) -> None:
    """F8: a splice belongs to the sockets; only in the kernel do all processes share it."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    client.write(b"12345")
    assert server.read(5) == b"12345"
    expected = thin.differs(
        kernel=5, userspace=0, because="the emulation's splices are those of one process"
    )
    assert exit_status(forked(lambda: thin.spliced_bytes(source) == expected)) == 0
    thin.is_live(source)


def forked(work: Callable[[], bool]) -> int:
    """A child that does the work and exits with 0 where it was True. It runs no test code else."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return child


def exit_status(child: int) -> int:
    return int(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def nothing_happens_for(seconds: float) -> None:
    """The process uses no CPU time to speak of, and its threads don't wake up."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.02 * SLOWNESS
    assert after.ru_nvcsw - before.ru_nvcsw <= 10


def test_idle_splices_cost_nothing(thin: Thin, harness: Harness) -> None:
    """No CPU time and no wake-up while nothing arrives."""
    for _ in range(50):
        (source, client), (drain, server) = harness.pair(), harness.pair()
        thin.splice(source, drain)
        client.write(b"x")
        assert server.read(1) == b"x"
        thin.moved(source, 1)
    nothing_happens_for(2)


def test_a_splice_that_waits_for_a_full_drain_costs_nothing(thin: Thin, harness: Harness) -> None:
    source, client = harness.pair(small_buffers=True)
    drain, _ = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    thin.fill(client)
    nothing_happens_for(1)


def test_a_full_drain_with_unread_data_costs_nothing(thin: Thin, harness: Harness) -> None:
    """What its peer has sent doesn't matter while it is waited for to be writable."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    server.write(b"unread")
    thin.fill(client)
    nothing_happens_for(1)


def test_a_drain_that_was_full_and_has_room_again_costs_nothing(
    thin: Thin, harness: Harness
) -> None:
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    thin.splice(source, drain)
    sent = thin.fill(client)
    assert len(server.read(sent)) == sent
    thin.moved(source, sent)
    nothing_happens_for(1)


def test_a_splice_over_with_data_left_costs_nothing(thin: Thin, harness: Harness) -> None:
    """The bytes left make the source readable, which must not wake anybody over and over."""
    (source, client), (drain, _) = harness.pair(), harness.pair()
    thin.splice(source, drain, max_bytes=1)
    client.write(b"12345")
    thin.moved(source, 1)
    nothing_happens_for(1)
