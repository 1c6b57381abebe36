"""What is particular to the emulation: what it holds, what it leaves alone, how it waits."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from conformance.harness import Harness, Peer
from freebsd_splice import splice, spliced_bytes, unsplice
from freebsd_splice._platform import tcp
from freebsd_splice._thin import emulation
from freebsd_splice._thin.emulation import readiness, sockets, thread

if not sys.platform.startswith("linux"):
    pytest.skip("looks into Linux's /proc", allow_module_level=True)

Way = tuple[socket.socket, Peer, socket.socket, Peer]


@pytest.fixture(autouse=True)
def in_userspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")
    emulation.shutdown()
    yield
    emulation.shutdown()


@pytest.fixture
def way(harness: Harness) -> Way:
    """A source with its peer, a drain with its peer."""
    return *harness.pair(), *harness.pair()


def moves(source: socket.socket, client: Peer, server: Peer, text: bytes = b"hello") -> None:
    """State that what the client writes comes out at the server."""
    before = spliced_bytes(source)
    client.write(text)
    assert server.read(len(text)) == text
    assert spliced_bytes(source) == before + len(text)


def over(source: socket.socket | int) -> None:
    """State that there is no splice to end."""
    with pytest.raises(OSError) as caught:
        unsplice(source)
    assert caught.value.errno == errno.ENOTCONN


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "emulation" in thread.name]


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def running() -> thread.Copier:
    assert emulation._running.made is not None
    return emulation._running.made


# What it holds


def test_no_duplicate_of_a_socket_is_held_between_moves(way: Way) -> None:
    source, client, drain, server = way
    splice(source, drain)
    moves(source, client, server)
    names = list(descriptors().values())
    for ours in (source, drain):
        assert names.count(os.readlink(f"/proc/self/fd/{ours.fileno()}")) == 1


def test_splices_need_no_descriptor_of_their_own(harness: Harness) -> None:
    ways = [(*harness.pair(), *harness.pair()) for _ in range(30)]
    splice(ways[0][0], ways[0][2])
    before = len(descriptors())
    for source, client, drain, server in ways[1:]:
        splice(source, drain)
        moves(source, client, server)
    assert len(descriptors()) == before


def test_no_thread_runs_where_nothing_was_spliced(way: Way) -> None:
    over(way[0])
    assert spliced_bytes(way[0]) == 0
    with open(os.devnull) as file, pytest.raises(OSError) as caught:
        spliced_bytes(file)
    assert caught.value.errno == errno.ENOTSOCK
    assert threads() == []


def test_shutdown_ends_the_thread_and_closes_every_descriptor(way: Way) -> None:
    source, client, drain, server = way
    before = descriptors()
    splice(source, drain)
    moves(source, client, server)
    assert len(threads()) == 1
    emulation.shutdown()
    assert threads() == []
    assert descriptors() == before
    over(source)


def test_splicing_works_again_after_a_shutdown(way: Way) -> None:
    source, client, drain, server = way
    splice(source, drain)
    emulation.shutdown()
    splice(source, drain)
    moves(source, client, server)


def test_a_shutdown_in_the_middle_of_a_stream_loses_nothing(harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    data = os.urandom(1_000_000)
    splice(source, drain)
    writer = threading.Thread(target=client.write, args=(data,))
    writer.start()
    received = server.read(50_000)
    emulation.shutdown()
    splice(source, drain)
    received += server.read(len(data) - 50_000)
    writer.join()
    assert received == data


def test_what_is_asked_during_a_shutdown_is_answered(way: Way) -> None:
    source, _, drain, _ = way
    for _ in range(50):
        splice(source, drain)
        ender = threading.Thread(target=emulation.shutdown)
        ender.start()
        assert answer_or_errno(source) in (0, errno.ECANCELED)
        ender.join()


def test_what_is_asked_of_a_thread_that_has_stopped_is_refused(way: Way) -> None:
    splice(way[0], way[2])
    copier = running()
    emulation.shutdown()
    with pytest.raises(OSError) as caught:
        copier.ask(lambda stopped: stopped.spliced_bytes(way[0].fileno()))
    assert caught.value.errno == errno.ECANCELED


def answer_or_errno(source: socket.socket) -> int | None:
    try:
        return spliced_bytes(source)
    except OSError as error:
        return error.errno


def test_starting_without_a_descriptor_leaves_nothing_behind(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()

    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(readiness, "best", none_left)
    with pytest.raises(OSError) as caught:
        splice(way[0], way[2])
    assert caught.value.errno == errno.EMFILE
    assert descriptors() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_failed_answers_and_is_replaced(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, client, drain, server = way
    splice(source, drain)
    copier = running()
    monkeypatch.setattr(copier, "_serve", lambda number: 1 / 0)
    client.write(b"kept")
    copier._thread.join(20)
    assert copier.ended
    over(source)
    splice(source, drain)
    assert server.read(4) == b"kept"


def closes_many(harness: Harness) -> None:
    """Make and close so many splices that the closed ones are looked for."""
    for _ in range(3 * thread.SWEEP):
        (source, _), (drain, _) = harness.pair(), harness.pair()
        splice(source, drain)
        source.close()
        drain.close()


@pytest.mark.parametrize("inodes", [True, False])
def test_closed_splices_are_forgotten_in_the_end(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch, inodes: bool
) -> None:
    """And no others."""
    monkeypatch.setattr(tcp, "HAS_INODES", inodes)
    source, client, drain, server = way
    splice(source, drain)
    closes_many(harness)
    assert len(running()._by_source) <= 2 * thread.SWEEP
    assert len(running()._by_drain) <= 2 * thread.SWEEP
    moves(source, client, server)


def test_a_splice_with_another_descriptor_is_not_forgotten(harness: Harness, way: Way) -> None:
    """F8"""
    source, client, drain, server = way
    splice(source, drain)
    kept = harness.keep(source.dup())
    source.close()
    closes_many(harness)
    moves(kept, client, server)


def test_forgetting_a_splice_leaves_its_drain_to_the_next(harness: Harness, way: Way) -> None:
    source, client, drain, server = way
    splice(source, drain, max_bytes=3)
    client.write(b"one")
    assert server.read(3) == b"one"
    next_, _ = harness.pair()
    splice(next_, drain)
    source.close()
    closes_many(harness)
    with pytest.raises(OSError) as caught:
        splice(harness.pair()[0], drain)
    assert caught.value.errno == errno.EBUSY


def test_questions_without_end_do_not_keep_it_from_moving(way: Way) -> None:
    source, client, drain, server = way
    splice(source, drain)
    copier, done = running(), threading.Event()

    def again() -> None:
        if not done.is_set():
            copier._questions.put(again)
            copier._wake()

    again()
    client.write(b"through")
    assert server.read(7) == b"through"
    done.set()


def test_more_than_a_turn_is_moved_within_the_call(harness: Harness, way: Way) -> None:
    """F34"""
    source, client, drain, server = way
    splice(drain, source)  # so that there is a thread to ask
    size = 2 * thread.TURN
    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * size)
    drain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size)
    writer = harness.in_background(client.write, b"x" * size)
    harness.until(lambda: harness.readable(source), "a first byte")
    harness.until(
        lambda: len(source.recv(size, socket.MSG_PEEK)) > thread.TURN, "more than a turn's bytes"
    )
    waiting = len(source.recv(size, socket.MSG_PEEK))

    def splice_and_count(copier: thread.Copier) -> int:
        copier.splice(source.fileno(), drain.fileno(), 0, 0.0)
        return copier.spliced_bytes(source.fileno())

    assert running().ask(splice_and_count) >= waiting
    assert len(server.read(size)) == size
    writer.join()


def test_what_a_source_received_before_its_reset_is_moved(harness: Harness) -> None:
    """F18: behind a full drain, too."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    splice(source, drain)
    while client.write_what_fits():
        pass
    client.reset()
    received = 0

    def ended() -> bool:
        nonlocal received
        received += len(server.read(spliced_bytes(source) - received))
        return not running().ask(lambda copier: copier._waiting)

    harness.until(ended, "everything moved")
    received += len(server.read(spliced_bytes(source) - received))
    assert received == spliced_bytes(source)
    with pytest.raises(ConnectionResetError):
        source.recv(1)


def test_a_drain_reset_during_a_turn_keeps_its_error(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: after its state was looked at, before anything is sent."""
    source, client, drain, server = way
    splice(source, drain)

    def look(source: socket.socket, drain: socket.socket) -> sockets.Look:
        server.reset()
        return sockets.look(source, drain)

    monkeypatch.setattr(thread, "look", look)
    client.write(b"kept")
    harness.until(lambda: running().ask(lambda copier: not copier._waiting), "the end")
    assert harness.error(drain) == errno.ECONNRESET
    assert harness.waiting(source, 4) == b"kept"


def test_a_read_between_look_and_move_ends_nothing(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F28: nor does it wait for more, whatever timeout new socket objects have."""
    source, client, drain, server = way
    socket.setdefaulttimeout(60)
    try:
        splice(source, drain)
    finally:
        socket.setdefaulttimeout(None)
    stolen: list[bytes] = []

    def look(borrowed: socket.socket, drain: socket.socket) -> sockets.Look:
        seen = sockets.look(borrowed, drain)
        if seen.readable and not stolen:
            stolen.append(source.recv(6))
        return seen

    monkeypatch.setattr(thread, "look", look)
    client.write(b"stolen")
    harness.until(lambda: stolen == [b"stolen"], "the theft")
    moves(source, client, server)


def test_it_waits_at_one_descriptor_at_a_time(harness: Harness, way: Way) -> None:
    source, _, drain, _ = way
    splice(source, drain)
    kept = harness.keep(source.dup())
    source.close()
    with pytest.raises(OSError) as caught:
        splice(kept, kept)
    assert caught.value.errno == errno.EBUSY
    assert running().ask(lambda copier: list(copier._waiting)) == [kept.fileno()]


# What it leaves alone


def test_a_stranger_with_the_sources_number_is_not_read(harness: Harness, way: Way) -> None:
    source, client, drain, server = way
    splice(source, drain)
    number = source.fileno()
    stranger, peer = harness.pair()
    os.dup2(stranger.fileno(), number)
    peer.write(b"private")
    assert harness.waiting(stranger, 7) == b"private"
    assert spliced_bytes(number) == 0
    over(number)
    assert server.has_nothing_to_read()
    assert client.read_to_end() == b""


def test_a_stranger_with_the_drains_number_gets_nothing(harness: Harness, way: Way) -> None:
    source, client, drain, _ = way
    splice(source, drain)
    stranger, peer = harness.pair()
    os.dup2(stranger.fileno(), drain.fileno())
    client.write(b"private")
    assert harness.waiting(source, 7) == b"private"
    over(source)
    assert peer.has_nothing_to_read()


def test_a_splice_moves_to_another_descriptor_and_off_its_number(
    harness: Harness, way: Way
) -> None:
    """F8: the old number is spliced anew, both splices are served."""
    source, client, drain, server = way
    splice(source, drain)
    kept = harness.keep(source.dup())
    number = source.fileno()
    stranger, peer = harness.pair()
    os.dup2(stranger.fileno(), number)
    other, far = harness.pair()
    splice(number, other)
    moves(kept, client, server, b"first")
    peer.write(b"second")
    assert far.read(6) == b"second"
    moves(kept, client, server, b"third")
    unsplice(number)
    moves(kept, client, server, b"fourth")
    unsplice(kept)


def test_another_descriptor_is_found_without_proc(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8: or without a descriptor left to look into it."""
    monkeypatch.setattr(sockets, "OWN_DESCRIPTORS", "/nonexistent")
    source, client, drain, server = way
    splice(source, drain)
    kept = harness.keep(source.dup())
    source.close()
    moves(kept, client, server)


def test_a_source_that_moves_while_it_waits_is_served(harness: Harness) -> None:
    """F8: both descriptors it was made with are closed while the drain is full."""
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    splice(source, drain)
    data = os.urandom(200_000)
    writer = threading.Thread(target=client.write, args=(data,))
    writer.start()
    harness.until(lambda: spliced_bytes(source) > 10_000, "the drain filling up")
    kept = [harness.keep(source.dup()), harness.keep(drain.dup())]
    source.close()
    drain.close()
    assert server.read(len(data)) == data
    writer.join()
    assert spliced_bytes(kept[0]) == len(data)


def test_what_a_move_borrows_is_not_taken_for_the_callers(harness: Harness, way: Way) -> None:
    """An echo looks for another descriptor of its drain while its source is borrowed."""
    splice(way[0], way[2])  # so that what it borrows with has lower numbers than what follows
    ours, peer = harness.pair()
    duplicate = harness.keep(ours.dup())
    splice(ours, duplicate)
    duplicate.close()
    moves(ours, peer, peer)
    (echo,) = (made for made in running()._by_source.values() if made.moved)
    assert echo.drain.number == ours.fileno()


# Processes

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(work: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@FORKS
def test_a_forked_child_keeps_none_of_its_descriptors(way: Way) -> None:
    source, client, drain, server = way
    before = set(descriptors())
    splice(source, drain)
    moves(source, client, server)
    assert set(descriptors()) > before
    assert in_child(lambda: set(descriptors()) == before)
    moves(source, client, server)


@FORKS
def test_a_child_forked_in_mid_stream_disturbs_nothing(harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair()
    data = os.urandom(3_000_000)
    splice(source, drain)
    writer = threading.Thread(target=client.write, args=(data,))
    writer.start()
    received = b""
    for _ in range(10):
        received += server.read(len(data) // 10)
        assert in_child(lambda: spliced_bytes(source) == 0)
    writer.join()
    assert received == data
