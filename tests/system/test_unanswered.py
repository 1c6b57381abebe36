"""A shortage is no answer: who asked must not go on as if the socket had said no."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.harness import DEADLINE, Harness
from freebsd_splice import Splice
from freebsd_splice._kernel import checks
from freebsd_splice._platform import callers_options, splice_checks, tcp
from freebsd_splice._platform.interface import Endpoint
from freebsd_splice._platform.kernel_interface import capabilities_of
from freebsd_splice._thin.emulation import sockets
from support.platforms import RecordingPlatform, runtime

Question = Callable[[Any], object]


def _short(*_: object) -> Any:
    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))


def _refuses(*_: object) -> Any:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _asked(answer: Question) -> Any:
    """Stand for a socket, or for the kernel's calls, that answers each question so."""
    names = ("getsockopt", "getpeername", "transmit_tls_mode", "receive_tls_mode")
    return SimpleNamespace(**dict.fromkeys(names, answer), getsockname=lambda: ("::1", 1))


QUESTIONS: dict[str, tuple[Question, object]] = {
    "TLS when sending": (lambda asked: sockets.does_tls(asked, sending=True), False),
    "TLS when receiving": (lambda asked: sockets.does_tls(asked, sending=False), False),
    "TLS of FreeBSD's drain": (lambda asked: splice_checks.encrypts(asked, 3), False),
    "TLS of FreeBSD's source": (lambda asked: splice_checks.decrypts(asked, 3), False),
    "the peer": (tcp.peer_of, None),
    "the mark": (callers_options.lower_read_mark, 0),
    "where peeking begins": (callers_options.peek_offset, -1),
}
OF_LINUX = ["where peeking begins"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_shortage_is_no_answer(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if question in OF_LINUX and sys.platform != "linux":
        pytest.skip("SO_PEEK_OFF is Linux's")
    monkeypatch.setitem(tcp.KERNEL_TLS, sys.platform.rstrip("0123456789"), ((1, 1), (1, 2)))
    ask, refused = QUESTIONS[question]
    with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
        ask(_asked(_short))
    assert ask(_asked(_refuses)) == refused


def test_in_a_shortage_nobody_counts_as_gone() -> None:
    """A client whose target is waited for would be cut."""
    assert tcp.is_connected(_asked(_short))
    assert not tcp.is_connected(_asked(_refuses))


@pytest.mark.parametrize("unasked", ["transmit_tls_mode", "receive_tls_mode"])
def test_a_pair_whose_tls_is_unknown_is_copied(unasked: str, harness: Harness) -> None:
    """F22: the kernel's refusal of a drain could spoil the source."""
    modes = {name: lambda _: 0 for name in ("transmit_tls_mode", "receive_tls_mode")}
    calls: Any = SimpleNamespace(
        capabilities=capabilities_of("FreeBSD", (14, 3)),
        tcp_state=lambda _: 4,
        **{**modes, unasked: _short},
    )
    pair: Any = SimpleNamespace(endpoint=harness.pair()[0], original="a socket")
    why = checks.why_not_spliced(calls, pair, pair)
    assert why is not None
    assert os.strerror(errno.ENOBUFS) in why


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SO_RCVLOWAT")
@pytest.mark.parametrize("name", ["getsockopt", "setsockopt"])
def test_the_mark_is_restored_in_spite_of_a_shortage(name: str, harness: Harness) -> None:
    ours, _ = harness.pair()
    failures = [errno.ENOBUFS]

    def once(*asked: int) -> Any:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return getattr(ours, name)(*asked)

    calls = {"getsockopt": ours.getsockopt, "setsockopt": ours.setsockopt, name: once}
    callers_options.restore_read_mark(SimpleNamespace(**calls), 7)  # type: ignore[arg-type]
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 7


def test_a_source_whose_mark_is_unknown_is_as_before(harness: Harness) -> None:
    class Short(RecordingPlatform):
        failures = 1

        def lower_read_mark(self, endpoint: Endpoint) -> int:
            if self.failures:
                self.failures -= 1
                _short()
            return super().lower_read_mark(endpoint)

    source, sender = harness.pair()
    drain, receiver = harness.pair()
    source.setblocking(True)
    with runtime(Short()) as made:
        with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
            Splice(source, drain)
        assert not made.sockets.in_use
        if sys.platform != "win32":
            assert os.get_blocking(source.fileno())
        splice = Splice(source, drain)
        sender.finish(b"hello")
        assert receiver.read(5) == b"hello"
        splice.wait(DEADLINE)
