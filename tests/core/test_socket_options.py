"""The caller's socket options: no byte is held back by one, and nobody spins (docs/socket_options).

With every poller and mover of the engine, and with every way to wait of the thin emulation.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from conformance.backends import MOVERS
from conformance.harness import DEADLINE, Harness, Peer
from freebsd_splice import Reason, Relay, Splice, splice, spliced_bytes, unsplice
from freebsd_splice._platform.backoff import Backoff
from freebsd_splice._platform.callers_options import is_survived, lower_read_mark, restore_read_mark
from freebsd_splice._platform.pollers import kinds
from freebsd_splice._thin import emulation
from freebsd_splice._thin.emulation import readiness, thread
from support.platforms import SteppedPlatform, WakeUpsPlatform, runtime

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="error queues, SO_PEEK_OFF and TCP_CORK are Linux's"
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SO_RCVLOWAT")

#: Linux's numbers, which the socket module doesn't have.
SO_PEEK_OFF = 42
SO_TIMESTAMPING, SOFTWARE, ON_TRANSMISSION, ON_ACKNOWLEDGEMENT, WITHOUT_PAYLOAD = (
    37,
    16,
    2,
    512,
    2048,
)
SO_ZEROCOPY, MSG_ZEROCOPY, MSG_ERRQUEUE = 60, 0x4000000, 0x2000
TCP_NOTSENT_LOWAT = 25

#: How long nobody may wake up, and how often it may happen all the same: a hundred times less
#: than a loop that spins.
SILENCE, FEW = 0.1, 40

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


# A message in an error queue that nobody reads


def stamp(noticed: socket.socket) -> None:
    """Have the system report when what is sent has left, and when it was acknowledged."""
    wanted = SOFTWARE | ON_TRANSMISSION | ON_ACKNOWLEDGEMENT | WITHOUT_PAYLOAD
    noticed.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, wanted)
    noticed.send(b"notice")


def send_without_copy(noticed: socket.socket) -> None:
    """Have the system report when a buffer is free again."""
    noticed.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    noticed.send(b"notice", MSG_ZEROCOPY)


NOTICES: dict[str, Callable[[socket.socket], None]] = {
    "time stamp": stamp,
    "zero copy": send_without_copy,
}


def put_notice(harness: Harness, how: str, noticed: socket.socket, peer: Peer) -> None:
    NOTICES[how](noticed)
    assert peer.read(6) == b"notice"
    poll = select.poll()
    poll.register(noticed, 0)
    harness.until(lambda: poll.poll(0), "something in the error queue")


def read_notice(noticed: socket.socket) -> None:
    """State that nobody else has taken it."""
    assert noticed.recvmsg(100, 1000, MSG_ERRQUEUE)[1]


@linux
@pytest.mark.parametrize(
    ("how", "where"), [("time stamp", "source"), ("zero copy", "drain"), ("time stamp", "both")]
)
@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("kind", kinds())
def test_a_notice_wakes_nobody_and_holds_nothing_up(
    harness: Harness, way: Way, kind: str, mover: str, how: str, where: str
) -> None:
    port = WakeUpsPlatform(kind)
    with runtime(port, mover):
        left, client, right, server = way
        relay = Relay(left, right)
        if where != "drain":
            put_notice(harness, how, left, client)
        if where != "source":
            put_notice(harness, how, right, server)
        for _ in range(3):
            client.write(b"question")
            assert server.read(8) == b"question"
            server.write(b"answer")
            assert client.read(6) == b"answer"
        before = port.wake_ups
        time.sleep(SILENCE)
        assert port.wake_ups - before <= FEW
        client.write(b"more")
        assert server.read(4) == b"more"
        data = os.urandom(400_000)
        writing = harness.in_background(client.finish, data)
        assert server.read_to_end() == data
        writing.join()
        server.finish(b"the end")
        assert client.read_to_end() == b"the end"
        assert relay.wait(DEADLINE).reason is Reason.EOF
        for noticed in {"source": [left], "drain": [right], "both": [left, right]}[where]:
            read_notice(noticed)


@linux
@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "select"])
def test_a_reset_behind_a_notice_is_seen(harness: Harness, way: Way, kind: str) -> None:
    with runtime(WakeUpsPlatform(kind)):
        source, sender, drain, receiver = way
        made = Splice(source, drain)
        put_notice(harness, "time stamp", drain, receiver)
        sender.write(b"x")
        assert receiver.read(1) == b"x"
        receiver.reset()
        assert made.wait(DEADLINE).reason is Reason.DRAIN_ERROR


@linux
@pytest.mark.parametrize("kind", kinds())
def test_a_full_drain_with_a_notice_is_waited_for(harness: Harness, kind: str) -> None:
    port = WakeUpsPlatform(kind)
    with runtime(port):
        source, sender = harness.pair()
        drain, receiver = harness.pair(small_buffers=True)
        put_notice(harness, "time stamp", drain, receiver)
        data = os.urandom(300_000)
        with Splice(source, drain) as made:
            writing = harness.in_background(sender.write, data)
            harness.until(lambda: made.bytes > 4096, "the drain filling up")
            time.sleep(SILENCE)
            before = port.wake_ups
            time.sleep(SILENCE)
            assert port.wake_ups - before <= FEW
            assert receiver.read(len(data)) == data
            writing.join()


def test_what_is_reported_for_nothing_is_looked_at_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    backoff = Backoff()
    waited = []
    for _ in range(10):
        backoff.was_useless(7)
        backoff.was_useless(7)  # by both of its flows
        assert backoff.left_out() == {7}
        seconds = backoff.bounded(None)
        assert seconds is not None
        waited.append(seconds)
        now[0] += seconds
        assert backoff.left_out() == set()
    assert waited[:3] == pytest.approx([0.001, 0.002, 0.004])
    assert waited[-2:] == pytest.approx([0.25, 0.25])
    assert backoff.bounded(None) is None
    assert backoff.left_out() == set()  # it was of use, for nobody has said otherwise
    backoff.was_useless(7)
    assert backoff.bounded(3) == pytest.approx(0.001)
    assert backoff.bounded(0.0005) == 0.0005
    backoff.forget(7)
    assert backoff.left_out() == set()


# The same in the thin emulation


WAYS_TO_WAIT: dict[str, Callable[[], readiness.Readiness]] = {"select": readiness.SelectReadiness}
if sys.platform != "win32":
    WAYS_TO_WAIT["poll"] = readiness.PollReadiness
if sys.platform.startswith("linux"):
    WAYS_TO_WAIT["epoll"] = readiness.EpollReadiness


@pytest.fixture(params=sorted(WAYS_TO_WAIT))
def waiting_with(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(readiness, "best", WAYS_TO_WAIT[request.param])
    return str(request.param)


def running() -> thread.Copier:
    assert emulation._running.made is not None
    return emulation._running.made


def count_serves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that the emulation's thread is woken for from now on."""
    copier = running()
    served: list[int] = []
    serve = copier._serve

    def noted(number: int) -> None:
        served.append(number)
        serve(number)

    monkeypatch.setattr(copier, "_serve", noted)
    return served


@linux
@pytest.mark.parametrize("where", ["source", "drain", "both"])
def test_a_notice_neither_ends_nor_spins_a_thin_splice(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch, waiting_with: str, where: str
) -> None:
    left, client, right, server = way
    if where != "drain":
        put_notice(harness, "time stamp", left, client)
    if where != "source":
        put_notice(harness, "zero copy", right, server)
    splice(left, right)
    splice(right, left)
    for _ in range(3):
        client.write(b"question")
        assert server.read(8) == b"question"
        server.write(b"answer")
        assert client.read(6) == b"answer"
    served = count_serves(monkeypatch)
    time.sleep(SILENCE)
    assert len(served) <= FEW
    data = os.urandom(1_000_000)
    writing = harness.in_background(client.write, data)
    assert server.read(len(data)) == data
    writing.join()
    assert spliced_bytes(left) == len(data) + 24
    unsplice(right)
    unsplice(left)
    for noticed in {"source": [left], "drain": [right], "both": [left, right]}[where]:
        read_notice(noticed)


@linux
def test_a_thin_splice_goes_on_behind_a_notice_unwoken(harness: Harness, way: Way) -> None:
    """One change is reported once; what is more than a turn's worth must not wait for another."""
    source, sender, drain, receiver = way
    for buffered in (source, drain):
        option = socket.SO_RCVBUF if buffered is source else socket.SO_SNDBUF
        buffered.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
    put_notice(harness, "time stamp", source, sender)
    splice(source, drain)
    sender.write(b"x")
    assert receiver.read(1) == b"x"
    copier = running()
    written = copier.ask(lambda copier: sender.write_what_fits())  # it stands still meanwhile
    assert len(receiver.read(written)) == written


@linux
def test_an_ended_thin_splice_with_a_notice_is_watched_no_more(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch, waiting_with: str
) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    put_notice(harness, "time stamp", source, sender)
    splice(source, drain)
    sender.write(b"x")
    assert receiver.read(1) == b"x"
    written = sender.write_what_fits()
    copier = running()
    harness.until(lambda: copier.ask(_waits_for_drain), "the drain full, and waited for")
    unsplice(source)
    read_what_arrives(harness, source, written - spliced_bytes(source) + 1)
    served = count_serves(monkeypatch)
    for _ in range(3):
        sender.write(b"left")
        read_what_arrives(harness, source, 4)
        spliced_bytes(source)
    assert set(served) <= {copier._wakened.fileno()}


def read_what_arrives(harness: Harness, ours: socket.socket, size: int) -> None:
    """For select(2), a socket with a notice is always readable."""
    left = [size]

    def complete() -> bool:
        with suppress(BlockingIOError):
            left[0] -= len(ours.recv(left[0]))
        return not left[0]

    harness.until(complete, f"{size} bytes")


def _waits_for_drain(copier: thread.Copier) -> bool:
    return any(splice.waits_for_drain for splice in copier._by_drain.values())


@linux
def test_a_full_drain_with_a_notice_spins_no_thin_splice(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, waiting_with: str
) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair(small_buffers=True)
    put_notice(harness, "time stamp", drain, receiver)
    splice(source, drain)
    data = os.urandom(300_000)
    writing = harness.in_background(sender.write, data)
    copier = running()
    harness.until(lambda: copier.ask(_waits_for_drain), "the drain full, and waited for")
    time.sleep(SILENCE)
    served = count_serves(monkeypatch)
    time.sleep(SILENCE)
    assert len(served) <= FEW
    assert receiver.read(len(data)) == data
    writing.join()


@linux
def test_what_a_thin_splice_moves_starts_the_short_waits_anew(
    harness: Harness, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "best", readiness.PollReadiness)
    source, sender, drain, receiver = way
    put_notice(harness, "time stamp", source, sender)
    splice(source, drain)
    anew: list[bool] = []
    was_useless = Backoff.was_useless

    def noted(self: Backoff, descriptor: int, **given: bool) -> None:
        anew.append(given["anew"])
        was_useless(self, descriptor, **given)

    monkeypatch.setattr(Backoff, "was_useless", noted)
    sender.write(b"x")
    assert receiver.read(1) == b"x"
    # More of the longer ones may have come before this thread looks.
    harness.until(
        lambda: (True, False) in pairwise(anew), "a wait begun anew, and one that is longer"
    )


def test_of_two_splices_at_a_descriptor_one_is_served_at_once(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, drain, _ = way
    splice(source, drain)
    splice(drain, source)
    copier = running()
    armed: list[tuple[object, ...]] = []

    def arm(*given: object) -> None:
        armed.append(given)

    def ask(copier: thread.Copier) -> None:
        [one] = copier._waiting[source.fileno()]
        [other] = copier._waiting[drain.fileno()]
        copier._waiting[source.fileno()].add(other)
        with monkeypatch.context() as patch:
            patch.setattr(copier._readiness, "arm", arm)
            one.noticed, other.noticed = None, other.source.socket
            copier._arm_all(source.fileno())
            one.noticed = other.noticed
            copier._arm_all(source.fileno())
        copier._waiting[source.fileno()].discard(other)

    copier.ask(ask)
    assert [noticed is None for _, _, _, noticed, _ in armed] == [True, False]


@pytest.mark.parametrize("way_to_wait", [way for way in WAYS_TO_WAIT if way != "epoll"])
def test_what_is_armed_for_another_socket_is_looked_at_at_once(
    harness: Harness, way_to_wait: str
) -> None:
    readiness: Any = WAYS_TO_WAIT[way_to_wait]()
    ours, _ = harness.pair()
    readiness.arm(ours.fileno(), True, False, "one socket")
    assert readiness._backoff.left_out() == {ours.fileno()}
    readiness.disarm(ours.fileno())
    readiness.arm(ours.fileno(), True, False)
    assert readiness._backoff.left_out() == set()


@linux
def test_a_reset_behind_a_notice_ends_a_thin_splice(
    harness: Harness, way: Way, waiting_with: str
) -> None:
    source, sender, drain, _ = way
    put_notice(harness, "time stamp", source, sender)
    splice(source, drain)
    copier = running()
    sender.reset()
    harness.until(lambda: not copier._by_drain, "the end")
    assert harness.error(source)


# SO_RCVLOWAT: how many bytes make a socket readable


@posix
@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("kind", kinds())
def test_bytes_below_the_low_water_mark_are_delivered(
    harness: Harness, way: Way, kind: str, mover: str
) -> None:
    left, client, right, server = way
    for marked, mark in ((left, 100), (right, 1000)):
        marked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
    with runtime(WakeUpsPlatform(kind), mover):
        relay = Relay(left, right)
        for _ in range(3):  # the first may be there before it is waited for
            client.write(b"x" * 50)
            assert server.read(50) == b"x" * 50
            server.write(b"short")
            assert client.read(5) == b"short"
        client.finish(b"last")
        assert server.read_to_end() == b"last"
        server.fin()
        assert relay.wait(DEADLINE).reason is Reason.EOF
    assert mark_of(left) == 100
    assert mark_of(right) == 1000


@posix
def test_the_low_water_mark_comes_back_as_it_was(harness: Harness, way: Way) -> None:
    left, _, right, _ = way
    port = SteppedPlatform()
    with runtime(port):
        left.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        there = Splice(left, right)
        back = Splice(right, left)
        assert (mark_of(left), mark_of(right)) == (1, 1)
        there.cancel()
        assert (mark_of(left), mark_of(right)) == (100, 1)
        right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 7)  # meanwhile
        back.cancel()
        assert mark_of(right) == 7


@posix
def test_bytes_below_the_low_water_mark_pass_a_thin_splice(
    harness: Harness, way: Way, waiting_with: str
) -> None:
    source, sender, drain, receiver = way
    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
    splice(source, drain)
    assert mark_of(source) == 1
    for _ in range(3):
        sender.write(b"x" * 50)
        assert receiver.read(50) == b"x" * 50
    unsplice(source)
    assert mark_of(source) == 100
    splice(source, drain)
    sender.finish(b"last")
    assert receiver.read(4) == b"last"
    harness.until(lambda: mark_of(source) == 100, "the mark given back at the end")
    other, _ = harness.pair()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
    splice(other, drain)
    assert mark_of(other) == 1
    emulation.shutdown()
    assert mark_of(other) == 100


def test_a_system_without_low_water_marks_is_left_alone() -> None:
    class Windows:
        def getsockopt(self, level: int, option: int) -> int:
            raise OSError(10042, "no such option")

    asked: Any = Windows()
    assert lower_read_mark(asked) == 0
    restore_read_mark(asked, 5)


def mark_of(asked: socket.socket) -> int:
    return asked.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


# SO_PEEK_OFF: where MSG_PEEK begins


def peek_from(asked: socket.socket, offset: int) -> None:
    try:
        asked.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
    except OSError:
        pytest.skip("Linux before 6.9: no SO_PEEK_OFF for TCP")


@linux
@pytest.mark.parametrize("family", ["TCP", "Unix"])
@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("kind", kinds())
def test_bytes_before_the_peek_offset_are_delivered(
    harness: Harness, kind: str, mover: str, family: str
) -> None:
    """MSG_PEEK says "nothing" in front of them, and then EOF."""
    if family == "TCP":
        source, sender = harness.pair()
    else:
        source, far = socket.socketpair()
        source, sender = harness.keep(source), Peer(harness.keep(far))
    drain, receiver = harness.pair()
    peek_from(source, 100)
    port = WakeUpsPlatform(kind)
    with runtime(port, mover):
        made = Splice(source, drain)
        for number in range(3):
            sender.write(b"%d" % number * 50)
            assert receiver.read(50) == b"%d" % number * 50
            peek_from(source, 100)  # each byte that was read counts it down
        before = port.wake_ups
        time.sleep(0.05)
        assert port.wake_ups - before <= FEW
        sender.finish(b"last")
        assert receiver.read(4) == b"last"
        outcome = made.wait(DEADLINE)
        assert (outcome.reason, outcome.bytes) == (Reason.EOF, 154)


@linux
def test_bytes_before_the_peek_offset_are_not_taken_for_an_eof(harness: Harness, way: Way) -> None:
    source, sender, drain, receiver = way
    peek_from(source, 100)
    sender.finish(b"x" * 50)
    harness.until(lambda: harness.hangs_up(source), "the FIN")
    port = SteppedPlatform()
    with runtime(port):
        made = Splice(source, drain)
        port.until(lambda: made.done, "the end")
        assert receiver.read(50) == b"x" * 50
        assert (made.wait(0).reason, made.wait(0).bytes) == (Reason.EOF, 50)


@linux
def test_a_thin_splice_keeps_the_order_whatever_the_peek_offset(
    harness: Harness, way: Way, waiting_with: str
) -> None:
    source, sender, drain, receiver = way
    peek_from(source, 100)
    splice(source, drain)
    data = os.urandom(80)
    sender.write(data[:50])
    assert receiver.read(50) == data[:50]
    sender.write(data[50:])
    assert receiver.read(30) == data[50:]
    unsplice(source)  # behind its turn
    assert source.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 20


# ICMP messages that a connection survives, which SO_ERROR tells of all the same

MESSAGES = """
import errno, fcntl, select, socket, struct, sys
from freebsd_splice import Splice

def control(name):  # lo is down in a new network
    return struct.pack("16sh14x", name, 1)

with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, control(b"lo"))

def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF

def tell_unreachable(told, sniffer):
    '''ICMP, "host unreachable", about the last byte that the socket has sent.'''
    told.send(b"sent")
    while True:
        packet = sniffer.recv(65535)
        start = (packet[0] & 15) * 4
        source, _, sequence = struct.unpack("!HHI", packet[start : start + 8])
        if source == told.getsockname()[1] and packet.endswith(b"sent"):
            break
    about = packet[:start] + packet[start : start + 4] + struct.pack("!I", sequence + 4)
    message = bytearray(struct.pack("!BBHI", 3, 1, 0, 0) + about)
    message[2:4] = struct.pack("!H", checksum(bytes(message)))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as router:
        router.sendto(bytes(message), ("127.0.0.1", 0))

sniffer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for wanted in (False, True):
    sender, source = pair()
    drain, receiver = pair()
    if wanted:
        drain.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    splice = Splice(source, drain)
    tell_unreachable(drain, sniffer)
    if not wanted:
        sender.shutdown(socket.SHUT_WR)
    outcome = splice.wait(25)
    print(outcome.reason.name, outcome.error and errno.errorcode[outcome.error.errno])
    drain.sendall(b"lives")
    assert receiver.recv(9, socket.MSG_WAITALL) == b"sentlives"
"""


@linux
def test_an_unreachable_host_ends_a_splice_only_if_asked_for() -> None:
    """IP_RECVERR"""
    if shutil.which("unshare") is None:
        pytest.skip("a network of its own is made by unshare(1)")
    path = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", MESSAGES],
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE,
        env=os.environ | {"PYTHONPATH": path},
    )
    if "unshare" in run.stderr:
        pytest.skip(f"an ordinary user can make no network of its own here: {run.stderr}")
    assert run.stdout.split("\n") == ["EOF None", "DRAIN_ERROR EHOSTUNREACH", ""], run.stderr


@linux
@pytest.mark.parametrize(
    ("state", "error", "survived"),
    [(1, errno.EHOSTUNREACH, True), (7, errno.EHOSTUNREACH, False), (1, errno.EBADMSG, False)],
)
def test_an_error_told_by_a_message_is_survived(state: int, error: int, survived: bool) -> None:
    class Asked:
        def getsockopt(self, level: int, option: int, size: int = 0) -> bytes | int:
            return bytes([state]) if size else 0

    asked: Any = Asked()
    assert is_survived(asked, error) is survived


# Options that change nothing but the pace


@linux
@pytest.mark.parametrize(
    ("level", "option", "value"),
    [
        (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, 1),
        (socket.IPPROTO_TCP, 3, 1),
    ],
    ids=["TCP_NOTSENT_LOWAT", "SO_SNDBUF", "TCP_CORK"],
)
@pytest.mark.parametrize("mover", MOVERS)
def test_a_drain_that_takes_little_at_once_gets_all(
    harness: Harness, way: Way, mover: str, level: int, option: int, value: int
) -> None:
    source, sender, drain, receiver = way
    drain.setsockopt(level, option, value)
    data = os.urandom(199_999)
    port = WakeUpsPlatform()
    with runtime(port, mover):
        made = Splice(source, drain)
        writing = harness.in_background(sender.finish, data)
        assert receiver.read(len(data)) == data
        writing.join()
        assert made.wait(DEADLINE).reason is Reason.EOF
        assert port.wake_ups < 2000
