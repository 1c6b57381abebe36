"""How the emulation waits, with each way to wait, and how it knows sockets on other systems."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.harness import Harness, Peer
from freebsd_splice import splice, spliced_bytes, unsplice
from freebsd_splice._platform import tcp
from freebsd_splice._thin import emulation
from freebsd_splice._thin.emulation import postponed, readiness, sockets, thread

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


def running() -> thread.Copier:
    assert emulation._running.made is not None
    return emulation._running.made


# How it waits


class ModelledKqueue:
    """kqueue as far as it is used: one-shot filters, on top of epoll's one-shot events."""

    READ, WRITE, ADD, DELETE, ONESHOT = -1, -2, 1, 2, 0x10

    def __init__(self) -> None:
        self._filters: dict[int, set[int]] = {}
        self._epoll = select.epoll()

    def control(
        self, changes: list[ModelledKevent] | None, most: int, timeout: float | None
    ) -> list[ModelledKevent]:
        for change in changes or []:
            wanted = self._filters.setdefault(change.ident, set())
            if change.flags == self.DELETE:
                if change.filter not in wanted:
                    raise FileNotFoundError(errno.ENOENT, "no such event")
                wanted.discard(change.filter)
            else:
                assert change.flags == self.ADD | self.ONESHOT
                wanted.add(change.filter)
            self._arm(change.ident)
        found = []
        for ident, events in self._epoll.poll(timeout, most) if most else []:
            for filter_, event in ((self.READ, select.EPOLLIN), (self.WRITE, select.EPOLLOUT)):
                fired = events & (event | select.EPOLLHUP | select.EPOLLERR)
                if fired and filter_ in self._filters.get(ident, ()):
                    self._filters[ident].discard(filter_)
                    found.append(ModelledKevent(ident, filter_, 0))
            self._arm(ident)
        return found

    def _arm(self, ident: int) -> None:
        wanted = self._filters[ident]
        events = select.EPOLLONESHOT
        events |= select.EPOLLIN if self.READ in wanted else 0
        events |= select.EPOLLOUT if self.WRITE in wanted else 0
        try:
            if wanted:
                try:
                    self._epoll.modify(ident, events)
                except FileNotFoundError:
                    self._epoll.register(ident, events)
            else:
                self._epoll.unregister(ident)
        except OSError:
            self._filters.pop(ident)

    def close(self) -> None:
        self._epoll.close()


class ModelledKevent:
    def __init__(self, ident: int, filter: int, flags: int) -> None:
        self.ident, self.filter, self.flags = ident, filter, flags


class ModelledSelectModule:
    """The select module of a system with kqueue."""

    kqueue, kevent = ModelledKqueue, ModelledKevent
    KQ_FILTER_READ, KQ_FILTER_WRITE = ModelledKqueue.READ, ModelledKqueue.WRITE
    KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_ONESHOT = 1, 2, 0x10


def kqueue_readiness() -> readiness.KqueueReadiness:
    made = readiness.KqueueReadiness.__new__(readiness.KqueueReadiness)
    made._select = ModelledSelectModule
    made._kqueue = ModelledKqueue()
    return made


WAYS_TO_WAIT: dict[str, Callable[[], readiness.Readiness]] = {
    "kqueue": kqueue_readiness,
    "select": readiness.SelectReadiness,
}
if sys.platform != "win32":
    WAYS_TO_WAIT["poll"] = readiness.PollReadiness
if sys.platform.startswith("linux"):
    WAYS_TO_WAIT["epoll"] = readiness.EpollReadiness


@pytest.fixture(params=sorted(WAYS_TO_WAIT))
def waiting_with(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(readiness, "best", WAYS_TO_WAIT[request.param])
    name: str = request.param
    return name


def test_it_moves_and_ends_with_every_way_to_wait(waiting_with: str, way: Way) -> None:
    source, client, drain, server = way
    splice(source, drain)
    for number in range(20):
        moves(source, client, server, b"%02d" % number)
    assert type(running()._readiness).__name__.lower() == f"{waiting_with}readiness"
    unsplice(source)
    client.write(b"left")
    assert server.has_nothing_to_read()


def test_a_full_drain_is_waited_for_with_every_way_to_wait(
    waiting_with: str, harness: Harness
) -> None:
    source, client = harness.pair(small_buffers=True)
    drain, server = harness.pair(small_buffers=True)
    data = os.urandom(300_000)
    splice(source, drain)
    writer = threading.Thread(target=client.write, args=(data,))
    writer.start()
    assert server.read(len(data)) == data
    writer.join()


def test_both_directions_share_a_descriptor_however_it_waits(
    waiting_with: str, harness: Harness
) -> None:
    """One of them waits to write where the other waits to read."""
    left, client = harness.pair(small_buffers=True)
    right, server = harness.pair(small_buffers=True)
    splice(left, right)
    splice(right, left)
    data = os.urandom(150_000)
    writer = threading.Thread(target=client.write, args=(data,))
    writer.start()
    harness.until(lambda: spliced_bytes(left) > 10_000, "the drain filling up")
    for number in range(10):
        moves(right, server, client, b"%02d" % number)
    assert server.read(len(data)) == data
    writer.join()


def test_an_ended_splice_is_watched_no_more_however_it_waits(
    waiting_with: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, client, drain, server = way
    splice(source, drain)
    moves(source, client, server)
    unsplice(source)
    copier, served = running(), []
    serve = copier._serve

    def noted(number: int) -> None:
        served.append(number)
        serve(number)

    monkeypatch.setattr(copier, "_serve", noted)
    client.write(b"left")
    for _ in range(3):
        spliced_bytes(source)
    assert set(served) == {copier._wakened.fileno()}


def test_a_close_ends_with_every_way_to_wait(waiting_with: str, way: Way) -> None:
    """F8"""
    source, client, drain, server = way
    splice(source, drain)
    moves(source, client, server)
    source.close()
    assert client.read_to_end() == b""
    drain.close()
    assert server.read_to_end() == b""


def test_a_closed_duplicate_is_replaced_with_every_way_to_wait(
    waiting_with: str, harness: Harness, way: Way
) -> None:
    """F8"""
    if waiting_with == "kqueue":
        pytest.skip("a kqueue forgets a closed descriptor; its systems have no /proc either")
    source, client, drain, server = way
    splice(source, drain)
    kept = harness.keep(source.dup())
    source.close()
    moves(kept, client, server)


def test_what_cannot_be_watched_is_not_spliced(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a user's limit on epoll watches."""
    source, client, drain, server = way
    splice(drain, source)
    unsplice(drain)
    arm = running()._readiness.arm

    def full(
        descriptor: int, readable: bool, writable: bool, noticed: object = None, moved: bool = False
    ) -> None:
        if descriptor == source.fileno():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        arm(descriptor, readable, writable, noticed, moved)

    with monkeypatch.context() as patch:
        patch.setattr(running()._readiness, "arm", full)
        with pytest.raises(OSError) as caught:
            splice(source, drain)
    assert caught.value.errno == errno.ENOSPC
    over(source)
    splice(source, drain)
    moves(source, client, server)


def test_what_can_be_watched_at_the_second_try_is_spliced(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another thread closes one of two descriptors in between."""
    source, client, drain, server = way
    splice(drain, source)
    unsplice(drain)
    arm, failures = running()._readiness.arm, [errno.EBADF]

    def closed(
        descriptor: int, readable: bool, writable: bool, noticed: object = None, moved: bool = False
    ) -> None:
        if descriptor == source.fileno() and failures:
            raise OSError(failures.pop(), "closed")
        arm(descriptor, readable, writable, noticed, moved)

    monkeypatch.setattr(running()._readiness, "arm", closed)
    splice(source, drain)
    assert not failures
    moves(source, client, server)


@pytest.mark.parametrize("short_of", [errno.ENOMEM, errno.ENOSPC])
def test_what_can_be_watched_later_is_not_ended(
    short_of: int,
    waiting_with: str,
    harness: Harness,
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody would be told of the end, and its peers would wait for ever."""
    source, client, drain, server = way
    splice(source, drain)
    arm, failures = running()._readiness.arm, [short_of] * 5

    def short(
        descriptor: int, readable: bool, writable: bool, noticed: object = None, moved: bool = False
    ) -> None:
        if descriptor == source.fileno() and failures:
            raise OSError(failures.pop(), os.strerror(short_of))
        arm(descriptor, readable, writable, noticed, moved)

    monkeypatch.setattr(running()._readiness, "arm", short)
    for text in (b"first", b"second", b"third"):
        moves(source, client, server, text)
    harness.until(lambda: not failures, "the last failure")
    harness.until(lambda: running()._postponed.seconds() is None, "it is watched again")
    moves(source, client, server)


def test_a_splice_that_is_short_holds_up_no_other(
    waiting_with: str, harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, client, drain, server = way
    other, its_client = harness.pair()
    other_drain, its_server = harness.pair()
    splice(source, drain)
    splice(other, other_drain)
    copier, slept, tries = running(), list[float](), list[object]()
    hold, number = copier._hold, source.fileno()

    def short(borrowed: Any, held: Any) -> bool:
        if held.number == number:
            tries.append(held)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return hold(borrowed, held)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
    with monkeypatch.context() as patch:
        patch.setattr(thread, "time", clock)
        patch.setattr(copier, "_hold", short)
        client.write(b"waits")
        harness.until(lambda: len(tries) > 2, "the third try")
        moves(other, its_client, its_server)
    assert not slept  # the others' thread
    assert server.read(5) == b"waits"
    moves(source, client, server)


def test_unsplice_ends_what_is_short(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    source, client, drain, server = way
    splice(source, drain)
    copier = running()

    def short(*_: object) -> bool:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(copier, "_move_pieces", short)
        client.write(b"left")
        unsplice(source)
    assert copier._postponed.seconds() is None
    over(source)
    assert server.has_nothing_to_read()
    assert source.recv(4) == b"left"


def test_another_turn_is_given_after_a_time_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(postponed, "time", clock)
    turns: postponed.Postponed[str] = postponed.Postponed()
    waited = []
    for _ in range(8):
        turns.put_off("short")
        seconds = turns.seconds()
        assert seconds is not None
        waited.append(seconds)
        clock.now += seconds - 1e-6
        assert turns.due() == []
        clock.now += 2e-6
        assert turns.due() == ["short"]
    assert waited == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5])
    turns.put_off("short", anew=True)
    assert turns.seconds() == pytest.approx(0.01)
    turns.forget("short")
    assert turns.seconds() is None


def test_what_cannot_be_looked_at_is_not_taken_for_closed(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, client, drain, server = way
    splice(source, drain)
    copier = running()
    (known,) = copier._by_source.values()

    def short(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(copier, "_borrow", short)
        assert copier._is_at(known.source)
    moves(source, client, server)


def test_select_refuses_a_number_it_cannot_take() -> None:
    select = readiness.SelectReadiness()
    with pytest.raises(OSError) as caught:
        select.arm(readiness.SelectReadiness.HIGHEST + 1, True, False)
    assert caught.value.errno == errno.EMFILE


def test_who_was_reported_keeps_its_place_in_select(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the thread's own socket, by which it is woken, could lose its place to a new splice."""
    monkeypatch.setattr(readiness, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(readiness.SelectReadiness, "MOST", 2)
    pairs = [socket.socketpair() for _ in range(3)]
    first, second, third = (near.fileno() for near, _ in pairs)
    select = readiness.SelectReadiness()
    for number, (_, far) in zip((first, second), pairs, strict=False):
        far.send(b"x")
        select.arm(number, True, False)
    assert sorted(select.wait()) == sorted((first, second))
    with pytest.raises(OSError, match="takes no more"):
        select.arm(third, True, False)
    select.arm(first, True, False)
    select.disarm(second)
    select.arm(third, True, False)
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.mark.parametrize("kind", ["poll", "select"])
def test_a_wait_that_lacks_memory_reports_nothing(
    kind: str, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised, it would end the thread, and with it all splices."""
    ours, peer = harness.pair()
    waiting = WAYS_TO_WAIT[kind]()
    waiting.arm(ours.fileno(), True, False)
    with monkeypatch.context() as patch:
        patch.setattr(readiness, "select", short_of_memory(99))
        assert waiting.wait() == []
    peer.write(b"x")
    assert waiting.wait() == [ours.fileno()]


def test_what_cannot_be_asked_for_memory_is_not_closed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is, and select(2) says so of all together."""
    waiting = readiness.SelectReadiness()
    ours, (closed, _) = harness.pair()[0], harness.pair()
    number = closed.fileno()
    for each in (ours, closed):
        waiting.arm(each.fileno(), True, False)
    closed.close()
    short = short_of_memory(3, [errno.EBADF])
    monkeypatch.setattr(readiness, "select", short)
    assert waiting.wait() == [number]


def short_of_memory(times: int, before: Sequence[int] = ()) -> SimpleNamespace:
    """Stand for the module ``select`` of a system that lacks memory that often."""
    failures = [*before, *[errno.ENOMEM] * times]

    def fails(*_: object) -> None:
        if failures:
            number = failures.pop(0)
            raise OSError(number, os.strerror(number))

    def asked(*sets: Any) -> Any:
        fails()
        return select.select(*sets)

    poll = SimpleNamespace(register=lambda *_: None, poll=fails)
    return SimpleNamespace(**{**vars(select), "select": asked, "poll": lambda: poll})


# Other systems' ways to know a socket


@pytest.fixture
def without_inodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems whose fstat says nothing of a TCP socket."""
    monkeypatch.setattr(tcp, "HAS_INODES", False)


@pytest.mark.usefixtures("without_inodes")
def test_sockets_are_known_by_their_addresses(harness: Harness, way: Way) -> None:
    source, client, drain, server = way
    splice(source, drain)
    moves(source, client, server)
    moves(harness.keep(source.dup()), client, server)
    with pytest.raises(OSError) as caught:
        splice(source, drain)
    assert caught.value.errno == errno.EBUSY
    unsplice(harness.keep(source.dup()))


@pytest.mark.usefixtures("without_inodes")
def test_a_socket_that_lost_its_peer_is_still_known(harness: Harness, way: Way) -> None:
    """F4: its count is."""
    source, client, drain, server = way
    splice(source, drain)
    moves(source, client, server)
    client.reset()
    harness.until(lambda: harness.readable(source), "the reset")
    over(source)
    assert spliced_bytes(source) == 5
    assert harness.error(source) == errno.ECONNRESET


@pytest.mark.usefixtures("without_inodes")
def test_a_stranger_is_known_by_its_addresses(harness: Harness, way: Way) -> None:
    source, _, drain, server = way
    splice(source, drain)
    number = source.fileno()
    stranger, peer = harness.pair()
    os.dup2(stranger.fileno(), number)
    peer.write(b"private")
    assert harness.waiting(stranger, 7) == b"private"
    over(number)
    assert server.has_nothing_to_read()


def test_states_are_guessed_where_the_system_does_not_tell(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "STATE_OPTION", None)
    source, client, drain, server = way
    listener = harness.keep(socket.create_server(("127.0.0.1", 0)))
    for unfit, number in ((listener, errno.EINVAL), (socket.socket(), errno.ENOTCONN)):
        for pair in ((unfit, drain), (source, unfit)):
            with pytest.raises(OSError) as caught:
                splice(*pair)
            assert caught.value.errno == number
        unfit.close()
    splice(source, drain)
    moves(source, client, server)
    drain.shutdown(socket.SHUT_WR)
    client.write(b"kept")
    assert server.read_to_end() == b""
    over(source)
    assert harness.waiting(source, 4) == b"kept"


class ModelledTlsSocket:
    """A socket for which the kernel does TLS in one direction."""

    def __init__(self, option: int) -> None:
        self._option = option

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        if (level, option) != (282, self._option):
            raise OSError(errno.EBUSY, "no keys for this direction")
        return b"\x04\x03\x33\x00"


@pytest.mark.parametrize("sending", [True, False])
def test_tls_is_seen_in_the_direction_it_is_done(sending: bool) -> None:
    asked: Any = ModelledTlsSocket(1 if sending else 2)
    assert sockets.does_tls(asked, sending=sending)
    assert not sockets.does_tls(asked, sending=not sending)


@pytest.mark.parametrize("sending", [True, False])
def test_a_socket_with_tls_is_refused(
    way: Way, monkeypatch: pytest.MonkeyPatch, sending: bool
) -> None:
    """F9"""

    def does_tls(asked: socket.socket, *, sending: bool, which: bool = sending) -> bool:
        return sending is which

    monkeypatch.setattr(thread, "does_tls", does_tls)
    with pytest.raises(OSError) as caught:
        splice(way[0], way[2])
    assert caught.value.errno == errno.EINVAL


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_close_a_kqueue(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hasn't inherited it: the number may be another file's by then."""
    monkeypatch.setattr(readiness, "best", kqueue_readiness)
    source, client, drain, server = way
    splice(source, drain)
    moves(source, client, server)
    waiting: Any = running()._readiness
    child = os.fork()
    if child == 0:
        os._exit(1 if waiting._kqueue._epoll.closed else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
