"""Thin calls: what is refused, with which errno, and that a refusal harms nothing."""

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest

from conformance.harness import DEADLINE, LOOPBACK, Harness, silent_listener
from faults.cells import cell
from freebsd_splice import InvalidArgument, splice, spliced_bytes, unsplice
from freebsd_splice._platform import raw_splice

from .backends import not_on
from .thin import Thin

pytestmark = not_on(
    "model",
    because="refused sockets of every kind are real here; on the model the facts table has them",
)


def listening(harness: Harness) -> socket.socket:
    made = harness.keep(socket.create_server((LOOPBACK[socket.AF_INET], 0)))
    made.settimeout(0)
    return made


def connecting(harness: Harness) -> socket.socket:
    """A socket whose SYN is not answered."""
    made = harness.keep(socket.socket())
    made.settimeout(0)
    connected = made.connect_ex(silent_listener(harness.keep).getsockname())
    assert connected in (errno.EINPROGRESS, errno.EWOULDBLOCK)
    return made


@pytest.mark.parametrize(
    "max_bytes", [-1, -(2**63), 2**63, 2**64 + 1], ids=["negative", "lowest", "off_t", "wraps"]
)
def test_a_count_off_t_cannot_hold_is_invalid(thin: Thin, harness: Harness, max_bytes: int) -> None:
    (source, _), (drain, _) = harness.pair(), harness.pair()
    with pytest.raises(InvalidArgument) as caught:
        thin.splice(source, drain, max_bytes=max_bytes)
    assert isinstance(caught.value, ValueError)
    assert caught.value.errno == errno.EINVAL
    assert str(max_bytes) in str(caught.value)


@pytest.mark.parametrize(
    "idle", [-1.0, -1e-9, float("nan"), float("inf"), float("-inf"), 1e-7, 2.0**31, 10**400]
)
def test_an_idle_time_the_kernel_takes_wrongly_is_invalid(
    thin: Thin, harness: Harness, idle: float
) -> None:
    """FreeBSD takes a negative one for its absolute value."""
    (source, _), (drain, _) = harness.pair(), harness.pair()
    with pytest.raises(InvalidArgument) as caught:
        thin.splice(source, drain, idle=idle)
    assert isinstance(caught.value, ValueError)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("idle", [0, 0.0, -0.0, 1e-6, 1, 2**31 - 1])
def test_an_idle_time_in_range_is_accepted(thin: Thin, harness: Harness, idle: float) -> None:
    (source, _), (drain, _) = harness.pair(), harness.pair()
    thin.splice(source, drain, idle=idle)


@pytest.mark.parametrize("max_bytes", [True, 1.0, "1", None])
def test_a_count_that_is_no_int_is_a_type_error(
    thin: Thin, harness: Harness, max_bytes: int
) -> None:
    (source, _), (drain, _) = harness.pair(), harness.pair()
    with pytest.raises(TypeError, match="max_bytes"):
        thin.splice(source, drain, max_bytes=max_bytes)


@pytest.mark.parametrize("idle", [True, "1", None])
def test_an_idle_time_that_is_no_number_is_a_type_error(
    thin: Thin, harness: Harness, idle: float
) -> None:
    (source, _), (drain, _) = harness.pair(), harness.pair()
    with pytest.raises(TypeError, match="idle"):
        thin.splice(source, drain, idle=idle)


@pytest.mark.parametrize("nonsense", [None, "3", 3.0, True, object()])
def test_what_is_no_socket_at_all_is_a_type_error(
    thin: Thin, harness: Harness, nonsense: int
) -> None:
    ours, _ = harness.pair()
    with pytest.raises(TypeError, match="source"):
        thin.splice(nonsense, ours)
    with pytest.raises(TypeError, match="drain"):
        thin.splice(ours, nonsense)
    with pytest.raises(TypeError, match="source"):
        thin.unsplice(nonsense)
    with pytest.raises(TypeError, match="source"):
        thin.spliced_bytes(nonsense)


def test_a_closed_socket_is_a_bad_descriptor(thin: Thin, harness: Harness) -> None:
    (ours, _), (closed, _) = harness.pair(), harness.pair()
    closed.close()
    with thin.refused(errno.EBADF):
        thin.splice(closed, ours)
    with thin.refused(errno.EBADF):
        thin.splice(ours, closed)
    with thin.refused(errno.EBADF):
        thin.unsplice(closed)
    with thin.refused(errno.EBADF):
        thin.spliced_bytes(closed)


def test_a_closed_drain_does_not_end_the_live_splice(thin: Thin, harness: Harness) -> None:
    """To the kernel a negative descriptor means: end it."""
    (source, _), (drain, _), (closed, _) = (harness.pair() for _ in range(3))
    closed.close()
    thin.splice(source, drain)
    with thin.refused(errno.EBADF):
        thin.splice(source, closed)
    thin.is_live(source)


def test_a_number_that_is_no_open_descriptor_is_a_bad_one(thin: Thin, harness: Harness) -> None:
    ours, _ = harness.pair()
    for number in (2**20, 2**31 - 1, 2**31, 2**80, -1, -5):
        with thin.refused(errno.EBADF):
            thin.splice(ours, number)
        with thin.refused(errno.EBADF):
            thin.splice(number, ours)
        with thin.refused(errno.EBADF):
            thin.unsplice(number)
        with thin.refused(errno.EBADF):
            thin.spliced_bytes(number)


def test_a_file_is_no_socket(thin: Thin, harness: Harness) -> None:
    ours, _ = harness.pair()
    with open(os.devnull) as file:
        with thin.refused(errno.ENOTSOCK):
            thin.splice(ours, file)
        with thin.refused(errno.ENOTSOCK):
            thin.splice(file, ours)
        with thin.refused(errno.ENOTSOCK):
            thin.unsplice(file)
        with thin.refused(errno.ENOTSOCK):
            thin.spliced_bytes(file)


def test_unix_sockets_are_not_spliced(thin: Thin, harness: Harness) -> None:
    ours, _ = harness.pair()
    left, right = map(harness.keep, socket.socketpair())
    with thin.refused(errno.EPROTONOSUPPORT):
        thin.splice(left, ours)
    with thin.refused(errno.EPROTONOSUPPORT):
        thin.splice(ours, right)
    assert thin.spliced_bytes(left) == 0


def test_datagram_sockets_are_not_spliced(thin: Thin, harness: Harness) -> None:
    ours, _ = harness.pair()
    datagrams = harness.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    datagrams.connect((LOOPBACK[socket.AF_INET], 9))
    with thin.refused(errno.EPROTONOSUPPORT):
        thin.splice(datagrams, ours)
    with thin.refused(errno.EPROTONOSUPPORT):
        thin.splice(ours, datagrams)


@pytest.mark.skipif(
    not sys.platform.startswith("openbsd") or raw_splice.missing() is not None,
    reason="OpenBSD's kernel alone joins UDP sockets",
)
def test_udp_sockets_are_joined_by_openbsd(harness: Harness) -> None:
    """Datagrams stay datagrams, and are counted by their bytes."""
    ours, theirs = [], []
    for _ in range(2):
        near, far = (harness.keep(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
        near.bind(("127.0.0.1", 0))
        far.bind(("127.0.0.1", 0))
        near.connect(far.getsockname())
        far.connect(near.getsockname())
        near.setblocking(False)
        far.settimeout(DEADLINE)
        ours.append(near)
        theirs.append(far)
    splice(ours[0], ours[1])
    for datagram in (b"one", b"two and more"):
        theirs[0].send(datagram)
        assert theirs[1].recv(100) == datagram
    assert spliced_bytes(ours[0]) == len(b"onetwo and more")
    unsplice(ours[0])


def test_unconnected_sockets_are_refused(thin: Thin, harness: Harness) -> None:
    ours, _ = harness.pair()
    unconnected = harness.keep(socket.socket())
    with thin.refused(errno.ENOTCONN):
        thin.splice(unconnected, ours)
    with thin.refused(errno.ENOTCONN):
        thin.splice(ours, unconnected)
    with thin.refused(thin.none_to_end):
        thin.unsplice(unconnected)
    assert thin.spliced_bytes(unconnected) == 0


def test_listening_sockets_are_refused(thin: Thin, harness: Harness) -> None:
    ours, _ = harness.pair()
    listener = listening(harness)
    expected = errno.EOPNOTSUPP if sys.platform.startswith("openbsd") else errno.EINVAL
    expected = thin.differs(
        kernel=expected, userspace=errno.EINVAL, because="the emulation says what FreeBSD says"
    )
    with thin.refused(expected):
        thin.splice(listener, ours)
    with thin.refused(expected):
        thin.splice(ours, listener)
    with thin.refused(thin.none_to_end, errno.EINVAL):
        thin.unsplice(listener)
    assert thin.spliced_bytes(listener) == 0


def test_ending_says_einval_on_a_listening_socket(thin: Thin, harness: Harness) -> None:
    """Whether or not there are splices elsewhere."""
    (source, _), (drain, _) = harness.pair(), harness.pair()
    listener = listening(harness)
    expected = thin.none_to_end if thin.none_to_end != errno.ENOTCONN else errno.EINVAL
    with thin.refused(expected):
        thin.unsplice(listener)
    thin.splice(source, drain)
    with thin.refused(expected):
        thin.unsplice(listener)


def test_a_connecting_drain_is_refused_and_nothing_is_lost(thin: Thin, harness: Harness) -> None:
    """F21"""
    source, client = harness.pair()
    drain = connecting(harness)
    client.write(b"kept")
    with thin.drain_refused(source, errno.ENOTCONN):
        thin.splice(source, drain)
    assert harness.waiting(source, 4) == b"kept"


def test_a_drain_shut_down_for_writing_is_refused_without_loss(
    thin: Thin, harness: Harness
) -> None:
    """F21"""
    (source, client), (drain, _) = harness.pair(), harness.pair()
    drain.shutdown(socket.SHUT_WR)
    client.write(b"kept")
    with thin.drain_refused(source, errno.EPIPE):
        thin.splice(source, drain)
    assert harness.waiting(source, 4) == b"kept"


def test_a_drain_whose_peer_has_sent_fin_is_a_good_drain(thin: Thin, harness: Harness) -> None:
    """F21: CLOSE_WAIT is a state to write in."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    server.fin()
    thin.hangup(drain)
    thin.splice(source, drain)
    client.write(b"answer")
    assert server.read(6) == b"answer"


@cell(
    "the peer resets",
    "thin",
    "initial",
    sees="of the drain's: `splice` raises OSError, and the drain keeps its error",
    counted="what waits at the source stays there",
)
@pytest.mark.usefixtures("bystander")
def test_a_reset_drain_is_refused_and_its_error_kept(thin: Thin, harness: Harness) -> None:
    """F21: and what waits at the source."""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    server.reset()
    thin.hangup(drain)
    client.write(b"kept")
    with thin.refused(errno.ENOTCONN):
        thin.splice(source, drain)
    assert harness.waiting(source, 4) == b"kept"
    assert harness.error(drain) == errno.ECONNRESET


@cell(
    "the peer resets",
    "thin",
    "initial",
    sees="`splice` raises OSError, and nothing was spliced",
)
@pytest.mark.usefixtures("bystander")
def test_a_reset_source_is_refused(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, _) = harness.pair(), harness.pair()
    client.reset()
    thin.hangup(source)
    with thin.refused(errno.ENOTCONN):
        thin.splice(source, drain)
    assert harness.error(source) == errno.ECONNRESET


def test_a_source_at_its_end_is_accepted_and_the_splice_over(thin: Thin, harness: Harness) -> None:
    """F20"""
    (source, client), (drain, _) = harness.pair(), harness.pair()
    client.fin()
    thin.hangup(source)
    thin.splice(source, drain)
    thin.is_over(source, drain)


def test_a_spliced_source_is_busy_and_its_splice_unharmed(thin: Thin, harness: Harness) -> None:
    """F23: count and limit stay what they are."""
    (source, client), (drain, server), (other, _) = (harness.pair() for _ in range(3))
    thin.splice(source, drain, max_bytes=10)
    client.write(b"12345678")
    assert server.read(8) == b"12345678"
    for target in (drain, other, source):
        with thin.refused(errno.EBUSY):
            thin.splice(source, target)
    assert thin.spliced_bytes(source) == 8
    client.write(b"90abc")
    assert server.read(2) == b"90"
    thin.is_over(source, drain)
    assert harness.waiting(source, 3) == b"abc"


def test_a_drain_in_use_is_busy_and_the_source_unharmed(thin: Thin, harness: Harness) -> None:
    """F22: the refused source can still be read and spliced."""
    (first, _), (source, client), (drain, _) = (harness.pair() for _ in range(3))
    other, server = harness.pair()
    thin.splice(first, drain)
    with thin.refused(errno.EBUSY):
        thin.splice(source, drain)
    client.write(b"read")
    assert harness.waiting(source, 4) == b"read"
    thin.splice(source, other)
    client.write(b"moved")
    assert server.read(5) == b"moved"
    thin.is_live(first)


def test_a_busy_socket_is_busy_by_any_of_its_descriptors(thin: Thin, harness: Harness) -> None:
    """F8"""
    (source, _), (drain, _), (other, _) = (harness.pair() for _ in range(3))
    thin.splice(source, drain)
    with thin.refused(errno.EBUSY):
        thin.splice(harness.keep(source.dup()), other)
    with thin.refused(errno.EBUSY):
        thin.splice(other, harness.keep(drain.dup()))
    thin.unsplice(harness.keep(source.dup()))


def test_there_is_nothing_to_end_twice(thin: Thin, harness: Harness) -> None:
    (source, _), (drain, _) = harness.pair(), harness.pair()
    with thin.refused(thin.none_to_end):
        thin.unsplice(source)
    thin.splice(source, drain)
    thin.unsplice(source)
    with thin.refused(thin.none_to_end):
        thin.unsplice(source)


def test_a_drain_is_not_what_is_ended(thin: Thin, harness: Harness) -> None:
    (source, _), (drain, _) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    with thin.refused(thin.none_to_end):
        thin.unsplice(drain)
    thin.is_live(source)


def test_an_error_names_the_call_and_both_sockets(thin: Thin, harness: Harness) -> None:
    (source, client), (drain, server) = harness.pair(), harness.pair(socket.AF_INET6)
    thin.splice(source, drain)
    with thin.refused(errno.EBUSY) as caught:
        thin.splice(source, drain)
    message = str(caught.value)
    assert f"splice(source=<fd {source.fileno()}, {address(source.getsockname())}" in message
    assert f"-> {address(client.address)}>, drain=<fd {drain.fileno()}, [::1]:" in message
    assert f"-> [::1]:{server.address[1]}>): {os.strerror(errno.EBUSY)}: " in message


def address(name: tuple[object, ...]) -> str:
    return f"{name[0]}:{name[1]}"
