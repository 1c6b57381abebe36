"""What the kernel path asks and refuses, on models of the two kernels."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from freebsd_splice._platform.kernel_interface import KernelCalls
from freebsd_splice._thin.kernel import ThinKernel
from modelled_kernels import (
    CLOSE_WAIT,
    DRAIN,
    ESTABLISHED,
    FIN_WAIT_1,
    FIRST,
    LISTEN,
    OTHER,
    SOURCE,
    SYN_RECEIVED,
    SYN_SENT,
    ModelledFreeBSDCalls,
    ModelledOpenBSDCalls,
    fail,
)


@pytest.fixture
def calls() -> ModelledFreeBSDCalls:
    return ModelledFreeBSDCalls()


@pytest.fixture
def thin(calls: ModelledFreeBSDCalls) -> ThinKernel:
    return ThinKernel(calls)


@contextmanager
def refused(number: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
    with pytest.raises(OSError) as caught:
        yield caught
    assert caught.value.errno == number, caught.value


@contextmanager
def refused_unasked(calls: ModelledFreeBSDCalls, number: int) -> Iterator[None]:
    """Refused without the kernel being asked to splice."""
    before = list(calls.set)
    with refused(number):
        yield
    assert calls.set == before


def test_the_models_are_kernel_calls() -> None:
    models: list[KernelCalls] = [ModelledFreeBSDCalls(), ModelledOpenBSDCalls()]
    assert [model.capabilities.checks_drains for model in models] == [False, True]


def test_a_splice_is_one_call_with_its_arguments(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    thin.splice(SOURCE, DRAIN, 7, 1.5)
    assert calls.set == [(SOURCE, DRAIN, 7, 1.5)]
    thin.unsplice(SOURCE)
    assert calls.sockets[SOURCE].drain is None


def test_the_count_is_the_kernels(thin: ThinKernel, calls: ModelledFreeBSDCalls) -> None:
    calls.sockets[SOURCE].count = 99
    assert thin.spliced_bytes(SOURCE) == 99


@pytest.mark.parametrize(
    ("state", "number"),
    [
        (0, errno.ENOTCONN),
        (LISTEN, errno.EINVAL),
        (SYN_SENT, errno.ENOTCONN),
        (SYN_RECEIVED, errno.ENOTCONN),
        *((state, errno.EPIPE) for state in range(FIN_WAIT_1, 11)),
    ],
)
def test_a_drain_in_a_wrong_state_is_refused_unasked(
    thin: ThinKernel, calls: ModelledFreeBSDCalls, state: int, number: int
) -> None:
    """F21"""
    calls.sockets[DRAIN].state = state
    with refused_unasked(calls, number):
        thin.splice(SOURCE, DRAIN, 0, 0.0)


@pytest.mark.parametrize("state", [ESTABLISHED, CLOSE_WAIT])
def test_a_drain_that_can_be_written_is_spliced(
    thin: ThinKernel, calls: ModelledFreeBSDCalls, state: int
) -> None:
    """F21"""
    calls.sockets[DRAIN].state = state
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert calls.sockets[SOURCE].drain == DRAIN


def test_a_reset_drain_is_refused_unasked(thin: ThinKernel, calls: ModelledFreeBSDCalls) -> None:
    """F21"""
    calls.sockets[DRAIN].reset = True
    with refused_unasked(calls, errno.ENOTCONN):
        thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_closed_drain_is_refused_as_such(thin: ThinKernel, calls: ModelledFreeBSDCalls) -> None:
    del calls.sockets[DRAIN]
    with refused_unasked(calls, errno.EBADF):
        thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_drain_that_is_not_tcp_is_left_to_the_kernel(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    calls.sockets[DRAIN].tcp = False
    with refused(errno.EPROTONOSUPPORT):
        thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert not calls.sockets[SOURCE].poisoned


def test_a_drain_with_tls_is_refused_unasked(thin: ThinKernel, calls: ModelledFreeBSDCalls) -> None:
    """F22"""
    calls.sockets[DRAIN].tls = True
    with refused_unasked(calls, errno.EINVAL):
        thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_kernel_without_tls_is_no_obstacle(
    thin: ThinKernel, calls: ModelledFreeBSDCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(descriptor: int) -> int:
        raise fail(errno.ENOPROTOOPT)

    monkeypatch.setattr(calls, "transmit_tls_mode", unknown)
    thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_busy_drain_is_refused_unasked(thin: ThinKernel, calls: ModelledFreeBSDCalls) -> None:
    """F20, F22: whoever spliced it."""
    calls.set_splice(FIRST, DRAIN, 0, 0.0)
    with refused_unasked(calls, errno.EBUSY):
        thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert not calls.sockets[SOURCE].poisoned


def test_a_full_drain_that_is_none_is_spliced(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F20: it can't be told, the kernel is asked."""
    calls.sockets[DRAIN].full = True
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert calls.sockets[SOURCE].drain == DRAIN


def test_a_source_spliced_here_is_refused_unasked(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F23: the kernel would reset its count."""
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    calls.sockets[SOURCE].count = 12
    with refused_unasked(calls, errno.EBUSY):
        thin.splice(SOURCE, OTHER, 0, 0.0)
    assert calls.sockets[SOURCE].count == 12


def test_a_source_whose_splice_is_over_is_spliced_again(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F20: the drain it had says so."""
    thin.splice(SOURCE, DRAIN, 5, 0.0)
    calls.end_by_itself(SOURCE)
    thin.splice(SOURCE, OTHER, 0, 0.0)
    assert calls.sockets[SOURCE].drain == OTHER


def test_a_source_whose_drain_was_reset_is_spliced_again(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F20: a dead drain polls POLLHUP and not POLLOUT, and has room."""
    thin.splice(SOURCE, DRAIN, 5, 0.0)
    calls.end_by_itself(SOURCE)
    calls.sockets[DRAIN].reset = True
    thin.splice(SOURCE, OTHER, 0, 0.0)
    assert calls.sockets[SOURCE].drain == OTHER


def test_a_source_whose_drain_was_closed_is_spliced_again(
    thin: ThinKernel, calls: ModelledFreeBSDCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is closed between one question and the next."""
    thin.splice(SOURCE, DRAIN, 5, 0.0)
    calls.end_by_itself(SOURCE)
    del calls.sockets[DRAIN]
    monkeypatch.setattr(calls, "writable_now", lambda descriptor: descriptor != DRAIN)
    thin.splice(SOURCE, OTHER, 0, 0.0)
    assert calls.sockets[SOURCE].drain == OTHER


def test_a_live_splice_behind_a_full_drain_is_busy(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F20: only the kernel can tell; as the source was spliced here, nothing is wrong with it."""
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    calls.sockets[DRAIN].full = True
    with refused(errno.EBUSY):
        thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert calls.sockets[SOURCE].drain == DRAIN


def test_an_ended_splice_is_forgotten(thin: ThinKernel, calls: ModelledFreeBSDCalls) -> None:
    """F23: the drain's next splice says nothing about this source."""
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    thin.unsplice(SOURCE)
    calls.set_splice(FIRST, DRAIN, 0, 0.0)
    thin.splice(SOURCE, OTHER, 0, 0.0)
    assert calls.sockets[SOURCE].drain == OTHER


def test_a_drains_new_source_displaces_the_old_one(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F23: a drain has one source."""
    thin.splice(FIRST, DRAIN, 5, 0.0)
    calls.end_by_itself(FIRST)
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    thin.splice(FIRST, OTHER, 0, 0.0)
    assert calls.sockets[FIRST].drain == OTHER


def test_a_splice_found_over_is_forgotten_too(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """An end by hand that comes too late still says what there was."""
    thin.splice(SOURCE, DRAIN, 5, 0.0)
    calls.end_by_itself(SOURCE)
    with refused(errno.ENOTCONN):
        thin.unsplice(SOURCE)
    calls.set_splice(FIRST, DRAIN, 0, 0.0)
    thin.splice(SOURCE, OTHER, 0, 0.0)


def test_a_socket_is_spliced_to_itself_again_and_again(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F9"""
    thin.splice(SOURCE, SOURCE, 0, 0.0)
    with refused_unasked(calls, errno.EBUSY):
        thin.splice(SOURCE, SOURCE, 0, 0.0)
    calls.end_by_itself(SOURCE)
    calls.sockets[SOURCE].full = True
    thin.splice(SOURCE, SOURCE, 0, 0.0)


def test_both_directions_of_a_pair_are_spliced(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    thin.splice(DRAIN, SOURCE, 0, 0.0)
    thin.unsplice(SOURCE)
    with refused_unasked(calls, errno.EBUSY):
        thin.splice(DRAIN, OTHER, 0, 0.0)


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EINVAL])
def test_a_source_poisoned_in_spite_of_the_checks_is_called_so(
    thin: ThinKernel, calls: ModelledFreeBSDCalls, number: int
) -> None:
    """F22: the drain was reset between the checks and the call."""
    calls.fails_first = [number]
    with refused(errno.ENOTRECOVERABLE) as caught:
        thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert "only closing the source helps" in str(caught.value)


def test_a_refusal_that_poisons_nothing_is_passed_on(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F22: a refusal because of the source."""
    calls.spares_source = True
    calls.fails_first = [errno.ENOTCONN, errno.EINVAL]
    with refused(errno.ENOTCONN):
        thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_second_try_that_works_is_a_splice(thin: ThinKernel, calls: ModelledFreeBSDCalls) -> None:
    calls.spares_source = True
    calls.fails_first = [errno.ENOTCONN]
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    with refused_unasked(calls, errno.EBUSY):
        thin.splice(SOURCE, OTHER, 0, 0.0)


@pytest.mark.parametrize("number", [errno.ENXIO, errno.ENOTCONN])
def test_a_kernel_that_poisons_nothing_is_not_tried_twice(
    thin: ThinKernel, calls: ModelledFreeBSDCalls, number: int
) -> None:
    """F22: from FreeBSD 15.1 on."""
    calls.release = (15, 1)
    calls.fails_first = [number]
    with refused(number):
        thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert len(calls.set) == 1


def test_a_full_drain_in_somebody_elses_use_may_have_cost_the_source(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F22: and the message says that it isn't known."""
    calls.set_splice(FIRST, DRAIN, 0, 0.0)
    calls.sockets[DRAIN].full = True
    with refused(errno.ENOTRECOVERABLE) as caught:
        thin.splice(SOURCE, DRAIN, 0, 0.0)
    assert "it can't be told" in str(caught.value)
    assert "only closing the source helps" in str(caught.value)
    assert calls.sockets[FIRST].drain == DRAIN


def test_a_full_drain_in_use_is_merely_busy_since_15_1(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F22: fixed there."""
    calls.release = (15, 1)
    calls.set_splice(FIRST, DRAIN, 0, 0.0)
    calls.sockets[DRAIN].full = True
    with refused(errno.EBUSY):
        thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_busy_source_is_merely_busy_where_the_drain_was_known_to_be_free(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F22: then it was spliced by somebody else."""
    calls.set_splice(SOURCE, OTHER, 0, 0.0)
    with refused(errno.EBUSY):
        thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_full_drain_used_by_another_splice_of_ours_is_not_risked(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    """F22: the message says what makes it free."""
    thin.splice(FIRST, DRAIN, 0, 0.0)
    calls.sockets[DRAIN].full = True
    with refused_unasked(calls, errno.EBUSY):
        thin.splice(SOURCE, DRAIN, 0, 0.0)
    thin.unsplice(FIRST)
    thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_a_full_drain_used_by_another_splice_of_ours_is_asked_about_since_15_1(
    thin: ThinKernel, calls: ModelledFreeBSDCalls
) -> None:
    calls.release = (15, 1)
    thin.splice(FIRST, DRAIN, 5, 0.0)
    calls.end_by_itself(FIRST)
    calls.sockets[DRAIN].full = True
    thin.splice(SOURCE, DRAIN, 0, 0.0)


def test_openbsd_is_asked_and_nothing_else() -> None:
    calls = ModelledOpenBSDCalls()
    thin = ThinKernel(calls)
    thin.splice(SOURCE, DRAIN, 7, 1.5)
    assert calls.set == [(SOURCE, DRAIN, 7, 1.5)]
    with refused(errno.EBUSY):
        thin.splice(SOURCE, OTHER, 0, 0.0)
    thin.unsplice(SOURCE)
    with refused(errno.ENOTCONN):
        thin.unsplice(SOURCE)


def test_room_that_comes_between_the_two_looks_is_no_sign_of_a_splice() -> None:
    """F20: a full drain that nobody uses; an ACK arrives while it is being looked at."""

    class Acknowledged(ModelledFreeBSDCalls):
        def writable_now(self, descriptor: int) -> bool:
            answer = super().writable_now(descriptor)
            self.sockets[DRAIN].full = False
            return answer

        def send_space(self, descriptor: int) -> int:
            answer = super().send_space(descriptor)
            self.sockets[DRAIN].full = False
            return answer

    calls = Acknowledged()
    thin = ThinKernel(calls)
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    calls.end_by_itself(SOURCE)
    calls.sockets[DRAIN].full = True
    thin.splice(SOURCE, DRAIN, 0, 0.0)
    calls.end_by_itself(SOURCE)
    calls.sockets[DRAIN].full = True
    thin.splice(OTHER, DRAIN, 0, 0.0)
    assert len(calls.set) == 3
