"""The callers' sockets while flows use them: closing, blocking mode, stale numbers, forks."""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import time

import pytest

from conformance.harness import DEADLINE, Harness
from faults.cells import cell
from freebsd_splice import Reason, Relay, Splice
from freebsd_splice._platform.interface import Endpoint, SocketLike
from support.platforms import RecordingPlatform, SteppedPlatform, runtime

posix = pytest.mark.skipif(sys.platform == "win32", reason="descriptors and fork are POSIX's")


def test_a_closed_object_ends_the_flow_within_a_second(harness: Harness) -> None:
    platform = SteppedPlatform()
    with runtime(platform):
        source, _ = harness.pair()
        drain, _ = harness.pair()
        splice = Splice(source, drain)
        platform.advance(0.79)
        source.close()
        closed = platform.time
        while not splice.done:
            platform.advance(0.05)
        assert splice.wait(0).reason is Reason.CLOSED
        assert platform.time - closed <= 1


def test_one_sweep_serves_all_flows_and_stops_with_the_last(harness: Harness) -> None:
    platform = SteppedPlatform()
    with runtime(platform) as made:
        splices = [Splice(harness.pair()[0], harness.pair()[0]) for _ in range(5)]
        assert len(made.timers._heap) == 1
        for splice in splices:
            splice.cancel()
        platform.advance(1)
        assert made.timers._heap == []


def test_a_reused_number_is_never_taken_for_the_closed_socket(harness: Harness) -> None:
    """The flow works on a duplicate; a stranger's socket under the old number stays untouched."""
    platform = SteppedPlatform()
    with runtime(platform):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        old = Splice(source, drain)
        number = source.fileno()
        source.close()
        stranger, strangers_peer = harness.pair()
        if stranger.fileno() != number:
            stranger = harness.keep(_moved_to(stranger, number))
        other_drain, other_receiver = harness.pair()
        new = Splice(stranger, other_drain)  # the sweep has not met the closed one yet
        sender.write(b"old")
        strangers_peer.write(b"new")
        platform.until(lambda: (old.bytes, new.bytes) == (3, 3), "both moved")
        assert receiver.read(3) == b"old"
        assert other_receiver.read(3) == b"new"
        platform.advance(1)
        assert old.wait(0).reason is Reason.CLOSED
        assert not new.done
        strangers_peer.write(b"more")
        platform.until(lambda: new.bytes == 7, "the new splice alive")


def _ignore() -> None: ...


def _moved_to(made: socket.socket, number: int) -> socket.socket:
    os.dup2(made.fileno(), number)
    made.close()
    return socket.socket(fileno=number)


@posix
@pytest.mark.parametrize("timeout", [None, 5.0, 0.0])
def test_the_blocking_mode_comes_back_as_it_was(harness: Harness, timeout: float | None) -> None:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    source.settimeout(timeout)
    before = os.get_blocking(source.fileno())
    with Splice(source, drain):
        assert not os.get_blocking(source.fileno())
    assert os.get_blocking(source.fileno()) is before
    assert source.gettimeout() == timeout


@posix
def test_a_timeout_set_meanwhile_is_respected(harness: Harness) -> None:
    """A Python socket with a timeout counts on O_NONBLOCK underneath."""
    source, _ = harness.pair()
    drain, _ = harness.pair()
    source.setblocking(True)
    with Splice(source, drain):
        source.settimeout(5)
    assert not os.get_blocking(source.fileno())


@posix
def test_a_default_timeout_of_the_program_changes_nothing(harness: Harness) -> None:
    """socket.socket(fileno=...) applies it to the open file, and so to the caller's descriptor."""
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    source.setblocking(True)
    socket.setdefaulttimeout(3)
    try:
        with Splice(source, drain):
            sender.write(b"moves")
            assert receiver.read(5) == b"moves"
    finally:
        socket.setdefaulttimeout(None)
    assert os.get_blocking(source.fileno())


@posix
def test_blocking_mode_comes_back_with_the_last_of_two_flows(harness: Harness) -> None:
    """F24: two splices share the middle socket, one drains into it, one has it as its source."""
    first, _ = harness.pair()
    middle, _ = harness.pair()
    last, _ = harness.pair()
    middle.setblocking(True)
    into = Splice(first, middle)
    out = Splice(middle, last)
    into.cancel()
    assert not os.get_blocking(middle.fileno())
    out.cancel()
    assert os.get_blocking(middle.fileno())


@posix
def test_another_object_of_the_same_socket_is_known(harness: Harness) -> None:
    """F23, F24: one direction each; and the blocking mode comes back with the last."""
    left, client = harness.pair()
    right, server = harness.pair()
    left.setblocking(True)
    other_left, other_right = harness.keep(left.dup()), harness.keep(right.dup())
    forth, back = Splice(left, right), Splice(other_right, other_left)
    for again in (left, other_left):
        with pytest.raises(OSError, match="is the source of a splice"):
            Splice(again, harness.pair()[0])
        with pytest.raises(OSError, match="is the drain of a splice"):
            Splice(harness.pair()[0], again)
    client.write(b"ping")
    assert server.read(4) == b"ping"
    server.write(b"pong")
    assert client.read(4) == b"pong"
    forth.cancel()
    assert not os.get_blocking(left.fileno())
    back.cancel()
    assert os.get_blocking(left.fileno())
    Splice(other_left, right).cancel()


def test_a_dead_connections_name_can_be_a_new_ones(harness: Harness) -> None:
    """Where sockets are told apart by their addresses."""

    class Named(RecordingPlatform):
        dead: Endpoint | None = None

        def identity(self, endpoint: Endpoint) -> object:
            return None if endpoint is self.dead else "the same addresses"

    platform = Named()
    with runtime(platform) as made:
        first, _ = harness.pair()
        shared = made.sockets.acquire(first, source=True, drain=True, on_closed=_ignore)
        second, _ = harness.pair()
        with pytest.raises(OSError, match="busy"):
            made.sockets.acquire(second, source=True, drain=True, on_closed=_ignore)
        platform.dead = shared.endpoint
        other = made.sockets.acquire(second, source=True, drain=True, on_closed=_ignore)
        assert other.endpoint is not shared.endpoint
        for one in (shared, other):
            made.sockets.release(one, source=True, drain=True, on_closed=_ignore)
        assert not made.sockets._connections


@posix
def test_who_has_taken_a_socket_over_keeps_its_mode(harness: Harness) -> None:
    """The end of a splice of the closed object must not make the new one's socket blocking."""
    platform = SteppedPlatform()
    with runtime(platform):
        source, _ = harness.pair()
        drain, _ = harness.pair()
        source.setblocking(True)
        old = Splice(source, drain)
        again = harness.keep(socket.socket(fileno=source.detach()))
        other, _ = harness.pair()
        with Splice(again, other):
            platform.advance(1)
            assert old.wait(0).reason is Reason.CLOSED
            assert not os.get_blocking(again.fileno())


def test_an_object_that_raises_anything_does_not_end_the_sweep(harness: Harness) -> None:
    class Odd:
        def __init__(self, wrapped: socket.socket) -> None:
            self.wrapped = wrapped

        def fileno(self) -> int:
            if self.wrapped.fileno() < 0:
                raise LookupError("closed, in the words of its library")
            return self.wrapped.fileno()

    platform = SteppedPlatform()
    with runtime(platform):
        odd, _ = harness.pair()
        plain, _ = harness.pair()
        first = Splice(Odd(odd), harness.pair()[0])
        second = Splice(plain, harness.pair()[0])
        odd.close()
        platform.advance(1)
        assert first.wait(0).reason is Reason.CLOSED
        plain.close()
        platform.advance(1)
        assert second.wait(0).reason is Reason.CLOSED


def test_one_duplicate_a_socket_is_shared_by_its_flows(harness: Harness) -> None:
    class Counting(RecordingPlatform):
        duplicates = 0

        def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
            self.duplicates += 1
            return super().duplicate(original)

    platform = Counting()
    with runtime(platform):
        left, _ = harness.pair()
        right, _ = harness.pair()
        Relay(left, right).cancel()
        assert platform.duplicates == 2


def test_objects_with_a_fileno_serve_and_their_closing_is_seen(harness: Harness) -> None:
    class Wrapper:
        def __init__(self, wrapped: socket.socket) -> None:
            self.wrapped = wrapped

        def fileno(self) -> int:
            if self.wrapped.fileno() < 0:
                raise ValueError("I/O operation on closed file")
            return self.wrapped.fileno()

    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(Wrapper(source), Wrapper(drain))
    sender.write(b"wrapped")
    assert receiver.read(7) == b"wrapped"
    with pytest.raises(OSError, match="source of a splice"):
        Splice(source, drain)  # the same socket, by another object
    source.close()
    assert splice.wait(DEADLINE).reason is Reason.CLOSED


def test_descriptors_and_tls_are_refused_with_the_reason(harness: Harness) -> None:
    source, _ = harness.pair()
    drain, _ = harness.pair()
    with pytest.raises(TypeError, match="a socket object is needed, not"):
        Splice(source.fileno(), drain)  # type: ignore[arg-type]
    context = ssl.create_default_context()
    tls = harness.keep(
        context.wrap_socket(source, server_hostname="host", do_handshake_on_connect=False)
    )
    with pytest.raises(TypeError, match="speaks TLS"):
        Splice(drain, tls)


@posix
def test_a_forked_child_has_no_flows_and_the_parents_go_on(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    notice = splice.fileno()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        said = b"none"
        try:
            os.fstat(notice)
            said = b"open"
        except OSError:
            for call in (splice.cancel, lambda: splice.bytes):
                try:
                    call()
                    said = b"done"
                except RuntimeError as error:
                    said = str(error).encode()
        finally:
            os.write(writing, said)
            os._exit(0)
    os.close(writing)
    try:
        answer = os.read(reading, 4096)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    assert b"goes on in the process that made it" in answer
    sender.write(b"still here")
    assert receiver.read(10) == b"still here"
    assert splice.cancel().reason is Reason.CANCELLED


@posix
@cell(
    "fork",
    "Splice",
    "closing",
    sees="the child's copies keep no connection open",
)
@pytest.mark.usefixtures("bystander")
def test_a_forked_child_keeps_no_connection_open(harness: Harness) -> None:
    """Its copies of our duplicates would keep a FIN from being sent."""
    source, _sender = harness.pair()
    drain, receiver = harness.pair()
    splice = Splice(source, drain)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        source.close()
        drain.close()
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        splice.cancel()
        drain.close()
        assert receiver.read_to_end() == b""
    finally:
        os.close(writing)
        os.waitpid(child, 0)


@posix
@cell(
    "fork",
    "Splice",
    "any",
    sees="the child can splice anew",
)
@pytest.mark.usefixtures("bystander")
def test_a_forked_child_can_splice_on_its_own(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    Splice(source, drain).cancel()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            with Splice(source, drain, max_bytes=5) as splice:
                splice.wait(DEADLINE)
            status = 0
        finally:
            os._exit(status)
    sender.write(b"child")
    assert receiver.read(5) == b"child"
    assert os.waitpid(child, 0)[1] == 0


def test_nobody_waits_for_a_splice_that_ends_in_its_constructor(harness: Harness) -> None:
    source, sender = harness.pair()
    drain, _ = harness.pair()
    sender.fin()
    for _ in range(200):
        assert Splice(source, drain, timeout=3600).wait(DEADLINE).reason is Reason.EOF


def test_an_event_loop_can_wait_for_many(harness: Harness) -> None:
    drains = [harness.pair() for _ in range(10)]
    made = [(Splice(harness.pair()[0], drain), receiver) for drain, receiver in drains]
    poll = select.poll() if hasattr(select, "poll") else None
    if poll is None:
        pytest.skip("no poll(2) here")
    for splice, _ in made:
        poll.register(splice.fileno(), select.POLLIN)
    made[3][1].reset()
    deadline = time.monotonic() + DEADLINE
    assert [fd for fd, _ in poll.poll((deadline - time.monotonic()) * 1000)] == [
        made[3][0].fileno()
    ]
    for splice, _ in made:
        with splice:
            pass
