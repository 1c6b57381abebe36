"""What the kernel path of the thin layer asks and refuses, on the modelled kernels."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from freebsd_splice._platform.kernel_interface import KernelCalls
from freebsd_splice._thin.kernel import ThinKernel
from model.sockets import ModelPeer, ModelSocket
from model.tcp import (
    CLOSE_WAIT,
    CLOSED,
    ESTABLISHED,
    FIN_WAIT,
    LISTEN,
    SYN_RECEIVED,
    SYN_SENT,
    fail,
)
from model.world import World

T = TypeVar("T")


class Rig:
    """The thin calls on a modelled kernel, and four connections of it."""

    def __init__(self, version: str) -> None:
        self.world = World(version)
        self.calls = self.world.calls
        self.thin = ThinKernel(self.calls)
        self._peers: dict[ModelSocket, ModelPeer] = {}
        self.first, self.source, self.drain, self.other = (self._connected() for _ in range(4))

    def _connected(self) -> ModelSocket:
        made, peer = self.world.pair()
        self._peers[made] = peer
        return made

    def splice(self, source: ModelSocket, drain: ModelSocket, max_bytes: int = 0) -> None:
        self.thin.splice(source.fileno(), drain.fileno(), max_bytes, 0.0)

    def spliced_by_somebody(self, source: ModelSocket, drain: ModelSocket) -> None:
        self.calls.set_splice(source.fileno(), drain.fileno(), 0, 0.0)

    def is_spliced(self, source: ModelSocket, drain: ModelSocket) -> bool:
        splice = source.endpoint.splice
        return splice is not None and splice.drain is drain.endpoint

    def arrive(self, source: ModelSocket, data: bytes) -> None:
        """Bytes from its peer, and all that follows from them."""
        assert self._peers[source].write(data) == len(data)
        self.world.quiet()

    def ended(self, source: ModelSocket, drain: ModelSocket) -> None:
        """Splice, and have the splice end by itself: its limit is met."""
        self.splice(source, drain, 5)
        self.arrive(source, b"12345")
        assert source.endpoint.splice is None

    def fill(self, drain: ModelSocket) -> None:
        """Nothing more fits into its send buffer."""
        drain.send(b"x" * drain.endpoint.outgoing.room)

    def empty(self, drain: ModelSocket) -> None:
        """Its peer reads and acknowledges everything."""
        while self.world.deliver(drain.endpoint.outgoing):
            self._peers[drain].read()
        self.world.ack(drain.endpoint.outgoing)

    def reset(self, drain: ModelSocket) -> None:
        """By its peer."""
        self._peers[drain].reset()
        self.world.deliver_reset(drain.endpoint.incoming)


@pytest.fixture
def on() -> Rig:
    return Rig("14.3")


@pytest.fixture
def on_15_1() -> Rig:
    return Rig("15.1")


@contextmanager
def refused(number: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
    with pytest.raises(OSError) as caught:
        yield caught
    assert caught.value.errno == number, caught.value


@contextmanager
def refused_unasked(on: Rig, number: int) -> Iterator[None]:
    """Refused without the kernel being asked to splice."""
    before = on.world.counts["set"]
    with refused(number):
        yield
    assert on.world.counts["set"] == before


def test_the_models_are_kernel_calls() -> None:
    models: list[KernelCalls] = [World("14.3").calls, World("openbsd").calls]
    assert [model.capabilities.checks_drains for model in models] == [False, True]


def test_a_splice_is_one_call_with_its_arguments(on: Rig) -> None:
    on.thin.splice(on.source.fileno(), on.drain.fileno(), 7, 1.5)
    [splice] = on.world.splices
    assert (splice.source, splice.drain) == (on.source.endpoint, on.drain.endpoint)
    assert (splice.max_bytes, splice.idle) == (7, 1.5)
    assert on.world.counts["set"] == 1
    on.thin.unsplice(on.source.fileno())
    assert not on.world.splices


def test_the_count_is_the_kernels(on: Rig) -> None:
    on.splice(on.source, on.drain)
    on.arrive(on.source, b"x" * 99)
    assert on.thin.spliced_bytes(on.source.fileno()) == 99


@pytest.mark.parametrize(
    ("state", "number"),
    [
        (CLOSED, errno.ENOTCONN),
        (LISTEN, errno.EINVAL),
        (SYN_SENT, errno.ENOTCONN),
        (SYN_RECEIVED, errno.ENOTCONN),
        *((state, errno.EPIPE) for state in range(FIN_WAIT, 11)),
    ],
)
def test_a_drain_in_a_wrong_state_is_refused_unasked(on: Rig, state: int, number: int) -> None:
    """F21"""
    on.drain.endpoint.state = state
    with refused_unasked(on, number):
        on.splice(on.source, on.drain)


@pytest.mark.parametrize("state", [ESTABLISHED, CLOSE_WAIT])
def test_a_drain_that_can_be_written_is_spliced(on: Rig, state: int) -> None:
    """F21"""
    on.drain.endpoint.state = state
    on.splice(on.source, on.drain)
    assert on.is_spliced(on.source, on.drain)


def test_a_reset_drain_is_refused_unasked(on: Rig) -> None:
    """F21"""
    on.reset(on.drain)
    with refused_unasked(on, errno.ENOTCONN):
        on.splice(on.source, on.drain)


def test_a_closed_drain_is_refused_as_such(on: Rig) -> None:
    closed = on.drain.fileno()
    on.drain.close()
    with refused_unasked(on, errno.EBADF):
        on.thin.splice(on.source.fileno(), closed, 0, 0.0)


def test_a_drain_that_is_not_tcp_is_left_to_the_kernel(on: Rig) -> None:
    on.drain.endpoint.tcp = False
    with refused(errno.EPROTONOSUPPORT):
        on.splice(on.source, on.drain)
    assert on.world.counts.keys() == {"tcp_state", "set"}, "nothing more is asked about it"
    assert not on.source.endpoint.poisoned


def test_a_drain_with_tls_is_refused_unasked(on: Rig) -> None:
    """F22"""
    on.drain.endpoint.encrypts = True
    with refused_unasked(on, errno.EINVAL):
        on.splice(on.source, on.drain)


def test_a_kernel_without_tls_is_no_obstacle(on: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int) -> int:
        raise fail(errno.ENOPROTOOPT)

    monkeypatch.setattr(on.calls, "transmit_tls_mode", unknown)
    on.splice(on.source, on.drain)


def test_a_busy_drain_is_refused_unasked(on: Rig) -> None:
    """F20, F22: whoever spliced it."""
    on.spliced_by_somebody(on.first, on.drain)
    with refused_unasked(on, errno.EBUSY):
        on.splice(on.source, on.drain)
    assert not on.source.endpoint.poisoned


def test_a_full_drain_that_is_none_is_spliced(on: Rig) -> None:
    """F20: it can't be told, the kernel is asked."""
    on.fill(on.drain)
    on.splice(on.source, on.drain)
    assert on.is_spliced(on.source, on.drain)


def test_a_source_spliced_here_is_refused_unasked(on: Rig) -> None:
    """F23: the kernel would reset its count."""
    on.splice(on.source, on.drain)
    on.arrive(on.source, b"x" * 12)
    with refused_unasked(on, errno.EBUSY):
        on.splice(on.source, on.other)
    assert on.thin.spliced_bytes(on.source.fileno()) == 12


def test_a_source_whose_splice_is_over_is_spliced_again(on: Rig) -> None:
    """F20: the drain it had says so."""
    on.ended(on.source, on.drain)
    on.splice(on.source, on.other)
    assert on.is_spliced(on.source, on.other)


def test_a_source_whose_drain_was_reset_is_spliced_again(on: Rig) -> None:
    """F20: a dead drain polls POLLHUP and not POLLOUT, and has room."""
    on.ended(on.source, on.drain)
    on.reset(on.drain)
    on.splice(on.source, on.other)
    assert on.is_spliced(on.source, on.other)


def test_a_source_whose_drain_was_closed_is_spliced_again(
    on: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is closed between one question and the next."""
    on.ended(on.source, on.drain)
    closed = on.drain.fileno()
    on.drain.close()
    monkeypatch.setattr(on.calls, "writable_now", lambda descriptor: descriptor != closed)
    on.splice(on.source, on.other)
    assert on.is_spliced(on.source, on.other)


def test_a_live_splice_behind_a_full_drain_is_busy(on: Rig) -> None:
    """F20: only the kernel can tell; as the source was spliced here, nothing is wrong with it."""
    on.splice(on.source, on.drain)
    on.fill(on.drain)
    with refused(errno.EBUSY) as caught:
        on.splice(on.source, on.drain)
    assert "the source is spliced already" in str(caught.value)
    assert on.is_spliced(on.source, on.drain)


def test_an_ended_splice_is_forgotten(on: Rig) -> None:
    """F23: the drain's next splice says nothing about this source."""
    on.splice(on.source, on.drain)
    on.thin.unsplice(on.source.fileno())
    on.spliced_by_somebody(on.first, on.drain)
    on.splice(on.source, on.other)
    assert on.is_spliced(on.source, on.other)


def test_a_drains_new_source_displaces_the_old_one(on: Rig) -> None:
    """F23: a drain has one source."""
    on.ended(on.first, on.drain)
    on.splice(on.source, on.drain)
    on.splice(on.first, on.other)
    assert on.is_spliced(on.first, on.other)


def test_a_splice_found_over_is_forgotten_too(on: Rig) -> None:
    """An end by hand that comes too late still says what there was."""
    on.ended(on.source, on.drain)
    with refused(errno.ENOTCONN):
        on.thin.unsplice(on.source.fileno())
    on.spliced_by_somebody(on.first, on.drain)
    on.splice(on.source, on.other)


def test_a_socket_is_spliced_to_itself_again_and_again(on: Rig) -> None:
    """F9"""
    on.splice(on.source, on.source, 5)
    with refused_unasked(on, errno.EBUSY):
        on.splice(on.source, on.source)
    on.arrive(on.source, b"12345")
    assert on.source.endpoint.splice is None
    on.fill(on.source)
    on.splice(on.source, on.source)


def test_both_directions_of_a_pair_are_spliced(on: Rig) -> None:
    on.splice(on.source, on.drain)
    on.splice(on.drain, on.source)
    on.thin.unsplice(on.source.fileno())
    with refused_unasked(on, errno.EBUSY):
        on.splice(on.drain, on.other)


def _reset(on: Rig) -> None:
    on.reset(on.drain)


def _begin_tls(on: Rig) -> None:
    on.drain.endpoint.encrypts = True


@pytest.mark.parametrize("happens", [_reset, _begin_tls], ids=["it is reset", "it begins with TLS"])
def test_a_source_poisoned_in_spite_of_the_checks_is_called_so(
    on: Rig, happens: Callable[[Rig], None]
) -> None:
    """F22: something happens to the drain between the checks and the call."""
    on.world.so_splice.before_set = lambda: happens(on)
    with refused(errno.ENOTRECOVERABLE) as caught:
        on.splice(on.source, on.drain)
    assert on.source.endpoint.poisoned
    assert "only closing the source helps" in str(caught.value)


def test_a_refusal_that_poisons_nothing_is_passed_on(on: Rig) -> None:
    """F22: a refusal because of the source, for which the second try has another reason."""

    def unconnected() -> None:
        on.source.endpoint.state = CLOSED
        on.world.so_splice.before_set = decrypting

    def decrypting() -> None:
        on.source.endpoint.state = None
        on.source.endpoint.decrypts = True

    on.world.so_splice.before_set = unconnected
    with refused(errno.ENOTCONN):
        on.splice(on.source, on.drain)
    assert on.world.counts["set"] == 2


def test_a_second_try_that_works_is_a_splice(on: Rig) -> None:
    def unconnected() -> None:
        on.source.endpoint.state = CLOSED
        on.world.so_splice.before_set = connected

    def connected() -> None:
        on.source.endpoint.state = None

    on.world.so_splice.before_set = unconnected
    on.splice(on.source, on.drain)
    with refused_unasked(on, errno.EBUSY):
        on.splice(on.source, on.other)


@pytest.mark.parametrize(
    ("happens", "number"), [(_reset, errno.ENOTCONN), (_begin_tls, errno.EINVAL)]
)
def test_a_kernel_that_poisons_nothing_is_not_tried_twice(
    on_15_1: Rig, happens: Callable[[Rig], None], number: int
) -> None:
    """F22: from FreeBSD 15.1 on."""
    on_15_1.world.so_splice.before_set = lambda: happens(on_15_1)
    with refused(number):
        on_15_1.splice(on_15_1.source, on_15_1.drain)
    assert on_15_1.world.counts["set"] == 1


def test_a_full_drain_others_use_may_have_cost_the_source(on: Rig) -> None:
    """F22: and the message says that it isn't known."""
    on.spliced_by_somebody(on.first, on.drain)
    on.fill(on.drain)
    with refused(errno.ENOTRECOVERABLE) as caught:
        on.splice(on.source, on.drain)
    assert "nothing shows which socket is busy" in str(caught.value)
    assert "only closing the source helps" in str(caught.value)
    assert on.is_spliced(on.first, on.drain)


def test_a_full_drain_in_use_is_merely_busy_since_15_1(on_15_1: Rig) -> None:
    """F22: fixed there."""
    on_15_1.spliced_by_somebody(on_15_1.first, on_15_1.drain)
    on_15_1.fill(on_15_1.drain)
    with refused(errno.EBUSY):
        on_15_1.splice(on_15_1.source, on_15_1.drain)


def test_a_busy_source_is_merely_busy_where_the_drain_is_free(on: Rig) -> None:
    """F22: then it was spliced by somebody else."""
    on.spliced_by_somebody(on.source, on.other)
    with refused(errno.EBUSY):
        on.splice(on.source, on.drain)


def test_a_full_drain_of_another_splice_of_ours_is_not_risked(on: Rig) -> None:
    """F22: the message says what makes it free."""
    on.splice(on.first, on.drain)
    on.fill(on.drain)
    with refused_unasked(on, errno.EBUSY):
        on.splice(on.source, on.drain)
    on.thin.unsplice(on.first.fileno())
    on.splice(on.source, on.drain)


def test_a_full_drain_of_ours_is_asked_about_since_15_1(on_15_1: Rig) -> None:
    on_15_1.ended(on_15_1.first, on_15_1.drain)
    on_15_1.fill(on_15_1.drain)
    on_15_1.splice(on_15_1.source, on_15_1.drain)


def test_openbsd_is_asked_and_nothing_else() -> None:
    on = Rig("openbsd")
    on.splice(on.source, on.drain)
    with refused(errno.EBUSY):
        on.splice(on.source, on.other)
    on.thin.unsplice(on.source.fileno())
    with refused(errno.EPROTO):
        on.thin.unsplice(on.source.fileno())
    assert on.world.counts == {"set": 2, "end": 2}


def test_room_made_between_the_two_looks_shows_no_splice(
    on: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F20: a full drain that nobody uses; an ACK arrives while it is being looked at."""
    for name in ("writable_now", "send_space"):
        monkeypatch.setattr(on.calls, name, _acknowledged_after(on, getattr(on.calls, name)))
    on.ended(on.source, on.drain)
    on.fill(on.drain)
    on.ended(on.source, on.drain)
    on.fill(on.drain)
    on.splice(on.other, on.drain)
    assert on.world.counts["set"] == 3


def _acknowledged_after(on: Rig, ask: Callable[[int], T]) -> Callable[[int], T]:
    def asked(descriptor: int) -> T:
        answer = ask(descriptor)
        on.empty(on.drain)
        return answer

    return asked
