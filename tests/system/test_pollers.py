"""Pollers one by one; kqueue, which isn't here, over a small stand-in."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from typing import Any, NamedTuple

import pytest

from conformance.harness import Harness
from freebsd_splice import Reason, Relay, Splice
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._platform.pollers import BasePoller, KqueuePoller, kinds, make_poller
from support.platforms import SteppedPlatform, runtime

READ, WRITE, HANGUP, ERROR = Readiness.READ, Readiness.WRITE, Readiness.HANGUP, Readiness.ERROR


class PollingKqueue:
    """Stands for FreeBSD's select module: kqueue's read and write filters, made from poll(2).

    Level-triggered filters, EV_CLEAR, EV_DELETE, EV_EOF, and NOTE_LOWAT as kqueue(2) has it: a
    write filter whose mark is out of reach fires at the connection's end alone.
    """

    KQ_FILTER_READ, KQ_FILTER_WRITE = -1, -2
    KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_CLEAR, KQ_EV_EOF = 1, 2, 0x20, 0x8000
    KQ_NOTE_LOWAT = 1

    class kevent(NamedTuple):
        ident: int
        filter: int
        flags: int
        fflags: int = 0
        data: int = 0

    class kqueue:
        def __init__(self) -> None:
            self.filters: dict[tuple[int, int], PollingKqueue.kevent] = {}
            self.reported: set[tuple[int, int]] = set()

        def control(
            self, changes: list[PollingKqueue.kevent] | None, most: int, timeout: float | None
        ) -> list[PollingKqueue.kevent]:
            for change in changes or []:
                key = (change.ident, change.filter)
                if change.flags & PollingKqueue.KQ_EV_DELETE:
                    if self.filters.pop(key, None) is None:
                        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                    self.reported.discard(key)
                else:
                    self.filters[key] = change
            return self._ready(most, timeout) if most else []

        def _ready(self, most: int, timeout: float | None) -> list[PollingKqueue.kevent]:
            poll = select.poll()
            for ident in {ident for ident, _ in self.filters}:
                poll.register(ident, self._mask(ident))
            found: list[PollingKqueue.kevent] = []
            for ident, mask in poll.poll(None if timeout is None else timeout * 1000):
                for key, change in self.filters.items():
                    event = self._event(change, mask) if key[0] == ident else None
                    if len(found) == most:
                        return found
                    if event and not (
                        change.flags & PollingKqueue.KQ_EV_CLEAR and key in self.reported
                    ):
                        self.reported.add(key)
                        found.append(event)
            return found

        def _mask(self, ident: int) -> int:
            read = select.POLLIN if (ident, PollingKqueue.KQ_FILTER_READ) in self.filters else 0
            write = self.filters.get((ident, PollingKqueue.KQ_FILTER_WRITE))
            return read | (select.POLLOUT if write and not write.fflags else 0)

        def _event(self, change: PollingKqueue.kevent, mask: int) -> PollingKqueue.kevent | None:
            over = mask & (select.POLLHUP | select.POLLERR)
            if change.filter == PollingKqueue.KQ_FILTER_READ:
                ready = mask & select.POLLIN or over
            else:
                ready = over or (mask & select.POLLOUT and not change.fflags)
            flags = PollingKqueue.KQ_EV_EOF if over else 0
            return PollingKqueue.kevent(change.ident, change.filter, flags) if ready else None

        def close(self) -> None:
            self.filters.clear()


def _make(kind: str, monkeypatch: pytest.MonkeyPatch) -> BasePoller:
    if kind == "kqueue" and kind not in kinds():
        monkeypatch.setattr(KqueuePoller, "module", PollingKqueue)
        return KqueuePoller()
    return make_poller(kind)


@pytest.mark.parametrize("kind", sorted({*kinds(), "kqueue"}))
def test_readiness_is_reported_as_asked(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    poller = _make(kind, monkeypatch)
    ours, peer = harness.pair()
    seen = _seen(poller, ours)
    poller.watch(ours, READ)
    assert seen(0) == Readiness.NONE
    peer.write(b"x")
    assert seen(20) == READ
    assert seen(0) == READ  # as long as it is so
    poller.watch(ours, READ | WRITE)
    assert seen(20) == READ | WRITE
    poller.watch(ours, WRITE)
    assert seen(20) == WRITE
    poller.watch(ours, Readiness.NONE)
    assert seen(0) == Readiness.NONE
    poller.watch(ours, READ)
    assert seen(20) == READ
    poller.forget(ours)
    assert seen(0) == Readiness.NONE
    poller.forget(ours)  # twice is once
    poller.close()


@pytest.mark.parametrize("kind", sorted({*kinds(), "kqueue"} - {"poll", "select"}))
def test_what_is_no_connection_is_listened_to(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A listening socket, and another poller: kqueue(2) refuses EVFILT_WRITE for that one."""
    poller, other = _make(kind, monkeypatch), make_poller()
    listener = harness.listening()
    ours, peer = harness.pair()
    other.watch(ours, READ)
    for watched in (listener.fileno(), other.fileno()):
        poller.listen(watched)
    assert poller.wait(0) == []
    harness.keep(socket.create_connection(listener.getsockname()))
    assert poller.wait(20) == [(listener.fileno(), READ)]
    peer.write(b"x")
    harness.until(lambda: len(poller.wait(20)) == 2, "both are reported")
    listener.accept()[0].close()
    assert poller.wait(20) == [(other.fileno(), READ)]
    if isinstance(poller, KqueuePoller):
        filters = getattr(poller._kqueue, "filters", {})
        assert (other.fileno(), PollingKqueue.KQ_FILTER_WRITE) not in filters
    poller.unlisten(other.fileno())
    assert poller.wait(0) == []
    other.close()
    poller.unlisten(listener.fileno())
    poller.close()


@pytest.mark.skipif(sys.platform != "linux", reason="error queues are Linux's")
@pytest.mark.parametrize("kind", kinds())
def test_what_leads_to_nothing_is_reported_seldom(harness: Harness, kind: str) -> None:
    poller = make_poller(kind)
    ours, peer = harness.pair()
    so_timestamping, on_acknowledgement = 37, 1 << 9 | 1 << 4 | 1 << 11
    ours.setsockopt(socket.SOL_SOCKET, so_timestamping, on_acknowledgement)
    ours.send(b"x")
    poller.watch(ours, READ)
    reported = _seen(poller, ours)
    harness.until(lambda: reported(0), "the notice")
    reports = 0
    for _ in range(200):
        poller.quieten(ours)
        reports += bool(reported(0))
    assert reports < 20
    peer.write(b"y")
    harness.until(lambda: reported(0) & READ, "the data, which isn't kept back")
    assert ours.recv(1) == b"y"
    poller.quieten(ours)
    reported(0)
    poller.quieten(ours)
    poller.watch(ours, READ | WRITE)
    assert reported(0) & WRITE  # at once: a new question
    if kind == "epoll":
        assert not reported(0)  # it is still reported at a change alone
    poller.forget(ours)
    poller.close()


@pytest.mark.parametrize("kind", sorted({*kinds(), "kqueue"} - {"select"}))
def test_a_dead_connection_is_reported_unasked(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """F16: the drain of an idle flow."""
    poller = _make(kind, monkeypatch)
    ours, peer = harness.pair()
    poller.watch(ours, Readiness.NONE)
    assert _seen(poller, ours)(0) == Readiness.NONE
    peer.reset()
    assert _seen(poller, ours)(20) & (HANGUP | ERROR)
    poller.forget(ours)
    poller.close()


@pytest.mark.parametrize("kind", sorted({*kinds(), "kqueue"}))
def test_a_wake_up_ends_a_wait_and_is_used_up(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    poller = _make(kind, monkeypatch)
    for _ in range(100_000):
        poller.wake()  # more than its buffer takes
    assert poller.wait(20) == []
    while poller.wait(0):
        pass
    assert not Harness().readable(poller._woken)
    poller.close()


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind in ("poll", "select")])
def test_a_wait_that_lacks_memory_ends(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whoever waits may have timers: a shortage can last for longer than those."""

    def short(timeout: float | None) -> list[tuple[int, Readiness]]:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    poller = make_poller(kind)
    monkeypatch.setattr(poller, "_call", lambda left_out: short)
    assert poller.wait(None) == []
    poller.close()


class ShortOnce:
    """Stands for an epoll or a kqueue that lacks memory for one of its changes, once."""

    def __init__(self, real: Any, after: int) -> None:
        self._real = real
        self._left = after  # changes that are made before it
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def register(self, descriptor: int, mask: int) -> None:
        self._meet()
        self._real.register(descriptor, mask)

    def modify(self, descriptor: int, mask: int) -> None:
        self._meet()
        self._real.modify(descriptor, mask)

    def unregister(self, descriptor: int) -> None:
        self._meet()
        self._real.unregister(descriptor)

    def control(self, changes: list[Any] | None, most: int, timeout: float | None) -> list[Any]:
        for change in changes or []:
            self._meet()
            self._real.control([change], 0, 0)
        return list(self._real.control(None, most, timeout)) if most else []

    def _meet(self) -> None:
        self._left -= 1
        if self._left == -1:
            self.failed = True
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


#: A call of epoll's is one change, and a call of kqueue's up to three.
_SHORT_AT = [("kqueue", 0), ("kqueue", 1), *[("epoll", 0)] * ("epoll" in kinds())]


@pytest.mark.parametrize(("kind", "after"), _SHORT_AT)
def test_a_socket_is_forgotten_in_spite_of_a_shortage(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kind: str, after: int
) -> None:
    """It would be reported for ever, also to whoever has the next socket of that number."""
    poller = _make(kind, monkeypatch)
    ours, peer = harness.pair()
    poller.watch(ours, READ | WRITE)
    short = _short(poller, after)
    poller.forget(ours)
    assert short.failed
    peer.write(b"x")
    harness.until(lambda: harness.readable(ours), "data")
    assert poller.wait(0) == []
    poller.watch(ours, READ)
    assert _seen(poller, ours)(20) == READ
    poller.forget(ours)
    poller.close()


@pytest.mark.parametrize("kind", sorted({*kinds(), "kqueue"} - {"poll", "select"}))
def test_a_listener_is_forgotten_in_spite_of_a_shortage(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    poller = _make(kind, monkeypatch)
    listener = harness.listening()
    harness.keep(socket.create_connection(listener.getsockname()))
    poller.listen(listener.fileno())
    assert poller.wait(20) == [(listener.fileno(), READ)]
    short = _short(poller, 0)
    poller.unlisten(listener.fileno())
    assert short.failed
    assert poller.wait(0) == []
    poller.close()


@pytest.mark.parametrize(("kind", "after"), _SHORT_AT)
@pytest.mark.parametrize(("before", "wanted"), [(READ, WRITE), (WRITE, READ), (None, READ)])
def test_what_lacked_memory_can_be_watched_later(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    after: int,
    before: Readiness | None,
    wanted: Readiness,
) -> None:
    """However many of the changes had been made."""
    poller = _make(kind, monkeypatch)
    ours, peer = harness.pair()
    peer.write(b"x")
    harness.until(lambda: harness.readable(ours), "data")
    if before is not None:
        poller.watch(ours, before)
    short = _short(poller, after)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        poller.watch(ours, wanted)
    assert short.failed
    poller.watch(ours, wanted)
    seen = _seen(poller, ours)
    assert seen(20) == wanted
    poller.forget(ours)
    assert seen(0) == Readiness.NONE
    poller.close()


def test_kqueue_is_not_closed_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """kqueue(2): it isn't inherited; its number may be a stranger's there."""
    closed: list[Any] = []
    monkeypatch.setattr(PollingKqueue.kqueue, "close", closed.append)
    poller = _make("kqueue", monkeypatch)
    if "kqueue" in kinds():
        pytest.skip("a real kqueue is tested by forking")
    poller.abandon()
    assert not closed
    assert poller._woken.fileno() == -1


@pytest.mark.skipif("epoll" not in kinds(), reason="only epoll reports an error for ever")
def test_a_socket_watched_anew_is_reported_while_it_is_ready(harness: Harness) -> None:
    """Its descriptor may have been another's, whose error was quietened."""
    poller = make_poller("epoll")
    ours, peer = harness.pair()
    seen = _seen(poller, ours)
    poller.watch(ours, READ)
    poller.quieten(ours)
    poller.forget(ours)
    poller.watch(ours, READ)
    peer.write(b"x")
    assert seen(20) == READ
    assert seen(0) == READ
    poller.close()


@pytest.mark.skipif(sys.platform == "win32", reason="its pollers refuse no socket")
@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind not in ("poll", "select")])
def test_what_was_refused_can_be_watched_later(harness: Harness, kind: str) -> None:
    """The next socket with that number is another one, and the poller has never had it."""
    poller = make_poller(kind)
    ours, peer = harness.pair()
    number = os.dup(ours.fileno())
    numbered = Numbered(number)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        poller.watch(numbered, READ)
    os.dup2(ours.fileno(), number)
    poller.watch(numbered, READ)
    peer.write(b"x")
    assert poller.wait(20) == [(number, READ)]
    poller.forget(numbered)
    os.close(number)
    poller.close()


class Numbered:
    """An endpoint of that descriptor, whatever it stands for."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


def test_a_relay_runs_on_kqueue(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KqueuePoller, "module", PollingKqueue)
    monkeypatch.setattr("freebsd_splice._platform.system.make_poller", lambda kind: KqueuePoller())
    data = bytes(range(256)) * 2000
    platform = SteppedPlatform()
    with runtime(platform):
        left, client = harness.pair()
        right, server = harness.pair(small_buffers=True)
        relay = Relay(left, right)
        writer = harness.in_background(client.finish, data)
        got = bytearray()
        while len(got) < len(data):
            platform.until(lambda: not server.has_nothing_to_read(), "something to read")
            got += server._connection.recv(100_000)
        assert got == data
        writer.join()
        server.finish(b"answer")
        platform.until(lambda: relay.done, "the end")
        assert client.read_to_end() == b"answer"
        assert relay.wait().reason is Reason.EOF


def test_an_idle_drains_death_is_seen_by_kqueue(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16"""
    monkeypatch.setattr(KqueuePoller, "module", PollingKqueue)
    monkeypatch.setattr("freebsd_splice._platform.system.make_poller", lambda kind: KqueuePoller())
    platform = SteppedPlatform()
    with runtime(platform):
        source, _ = harness.pair()
        drain, receiver = harness.pair()
        splice = Splice(source, drain)
        platform.step()
        receiver.reset()
        platform.until(lambda: splice.done, "the end")
        assert splice.wait().reason is Reason.DRAIN_ERROR


def _short(poller: BasePoller, after: int) -> ShortOnce:
    """Let the poller's system lack memory for one change, after so many more."""
    name = "_kqueue" if isinstance(poller, KqueuePoller) else "_epoll"
    short = ShortOnce(getattr(poller, name), after)
    setattr(poller, name, short)
    return short


def _seen(poller: BasePoller, ours: socket.socket) -> Any:
    def look(timeout: float) -> Readiness:
        found = Readiness.NONE
        for descriptor, ready in poller.wait(timeout):
            assert descriptor == ours.fileno()
            found |= ready
        return found

    return look
