"""Which backend is chosen, what is said where there is none, and the raw calls' bytes."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.harness import Harness
from freebsd_splice import Backend, BackendUnavailable, InvalidArgument, _errors, backend
from freebsd_splice._backend import kernel_demanded
from freebsd_splice._platform import raw_splice
from freebsd_splice._platform.borrowed import Borrowed
from freebsd_splice._thin import messages


def _ffi() -> Any:
    return pytest.importorskip("cffi", reason="models the extension by cffi").FFI()


# What the compiler of a 64-bit FreeBSD or OpenBSD finds in its headers (F2).
LAYOUT = """
typedef int64_t off_t;
typedef uint32_t socklen_t;
struct timeval { int64_t tv_sec; long tv_usec; };
struct splice { int sp_fd; off_t sp_max; struct timeval sp_idle; };
int getsockopt(int, int, int, void *, socklen_t *);
"""


class ModelledLibrary:
    """The extension's C functions: setsockopt is noted down, getsockopt answers."""

    SOL_SOCKET = 0xFFFF
    SO_SPLICE = 0x1023

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self.set: list[tuple[int, int, int, bytes]] = []
        self.count = 0
        self.errno = 0

    def setsockopt(self, descriptor: int, level: int, option: int, value: Any, size: int) -> int:
        content = bytes(self._ffi.buffer(value, size))
        self.set.append((descriptor, level, option, content))
        return self._result()

    def getsockopt(self, descriptor: int, level: int, option: int, value: Any, size: Any) -> int:
        assert (level, option, size[0]) == (self.SOL_SOCKET, self.SO_SPLICE, 8)
        value[0] = self.count
        return self._result()

    def _result(self) -> int:
        self._ffi.errno = self.errno
        return -1 if self.errno else 0


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModelledLibrary:
    ffi = _ffi()
    ffi.cdef(LAYOUT)
    library = ModelledLibrary(ffi)
    monkeypatch.setattr(raw_splice, "_extension", SimpleNamespace(ffi=ffi, lib=library))
    return library


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    raw_splice.missing.cache_clear()
    yield
    raw_splice.missing.cache_clear()


@pytest.fixture
def on_freebsd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd15")


# The raw calls


def test_the_option_has_its_number() -> None:
    """F1"""
    assert raw_splice.SO_SPLICE == 0x1023


def test_setting_a_splice_fills_the_struct(extension: ModelledLibrary) -> None:
    """F2: 32 bytes, offsets 0/8/16."""
    raw_splice.set_splice(5, 6, 2**40 + 7, 1.25)
    expected = b"".join(number.to_bytes(8, sys.byteorder) for number in (6, 2**40 + 7, 1, 250_000))
    assert extension.set == [(5, 0xFFFF, 0x1023, expected)]


@pytest.mark.parametrize(
    ("idle", "seconds", "microseconds"),
    [(0.0, 0, 0), (1e-6, 0, 1), (0.1, 0, 100_000), (0.9999999, 1, 0), (2**31 - 1, 2**31 - 1, 0)],
)
def test_idle_is_rounded_to_microseconds(
    extension: ModelledLibrary, idle: float, seconds: int, microseconds: int
) -> None:
    """Never to 1,000,000 of them, which OpenBSD refuses."""
    raw_splice.set_splice(5, 6, 0, idle)
    content = extension.set[0][3]
    assert int.from_bytes(content[16:24], sys.byteorder) == seconds
    assert int.from_bytes(content[24:32], sys.byteorder) == microseconds


def test_ending_is_a_negative_drain(extension: ModelledLibrary) -> None:
    raw_splice.end_splice(5)
    ((descriptor, _, option, content),) = extension.set
    assert (descriptor, option) == (5, 0x1023)
    assert int.from_bytes(content[:4], sys.byteorder, signed=True) < 0


def test_the_count_is_eight_bytes(extension: ModelledLibrary) -> None:
    """F4: a shorter buffer would cut it."""
    extension.count = 2**40 + 1
    assert raw_splice.spliced_count(5) == 2**40 + 1


def test_a_failing_call_raises_the_errno_it_left(extension: ModelledLibrary) -> None:
    extension.errno = errno.EPIPE
    with pytest.raises(BrokenPipeError) as caught:
        raw_splice.set_splice(5, 6, 0, 0.0)
    assert caught.value.strerror == os.strerror(errno.EPIPE)
    with pytest.raises(BrokenPipeError):
        raw_splice.end_splice(5)
    with pytest.raises(BrokenPipeError):
        raw_splice.spliced_count(5)


def test_an_option_of_a_bare_descriptor_is_set(extension: ModelledLibrary) -> None:
    raw_splice.write_option(5, 6, 0x10, 1)
    assert extension.set == [(5, 6, 0x10, (1).to_bytes(4, sys.byteorder))]
    extension.errno = errno.EPIPE
    with pytest.raises(BrokenPipeError):
        raw_splice.write_option(5, 6, 0x10, 1)


def test_an_option_is_read_from_a_bare_descriptor(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffi = _ffi()
    ffi.cdef(LAYOUT)
    monkeypatch.setattr(raw_splice, "_extension", SimpleNamespace(ffi=ffi, lib=ffi.dlopen(None)))
    ours, _ = harness.pair()
    kind = raw_splice.read_option(ours.fileno(), socket.SOL_SOCKET, socket.SO_TYPE, 4)
    assert int.from_bytes(kind, sys.byteorder) == socket.SOCK_STREAM
    ours.close()
    with pytest.raises(OSError) as caught:
        raw_splice.read_option(ours.fileno(), socket.SOL_SOCKET, socket.SO_TYPE, 4)
    assert caught.value.errno == errno.EBADF


# What is missing


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32", "netbsd10"])
def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert f"{platform} has no SO_SPLICE" in (raw_splice.missing() or "")


@pytest.mark.usefixtures("on_freebsd")
def test_an_extension_that_is_not_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_splice, "_extension", None)
    monkeypatch.setattr(raw_splice, "_why_not_built", "No module named '_so_splice'")
    missing = raw_splice.missing() or ""
    assert "not built" in missing
    assert "No module named '_so_splice'" in missing


@pytest.mark.usefixtures("on_freebsd")
def test_a_kernel_that_refuses_the_option_is_named(
    extension: ModelledLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5"""
    extension.errno = errno.ENOPROTOOPT
    monkeypatch.setattr(raw_splice, "_kernel", lambda: "FreeBSD 14.2-RELEASE releng/14.2 GENERIC")
    missing = raw_splice.missing() or ""
    assert "FreeBSD 14.2-RELEASE" in missing
    assert "14.3" in missing


@pytest.mark.usefixtures("on_freebsd")
def test_nothing_is_missing_where_the_kernel_answers(extension: ModelledLibrary) -> None:
    assert raw_splice.missing() is None


@pytest.mark.usefixtures("on_freebsd")
def test_a_passing_failure_is_not_remembered(extension: ModelledLibrary) -> None:
    """Of a process that is out of descriptors, for one."""
    extension.errno = errno.EMFILE
    with pytest.raises(OSError) as caught:
        raw_splice.missing()
    assert caught.value.errno == errno.EMFILE
    extension.errno = 0
    assert raw_splice.missing() is None


@pytest.mark.usefixtures("on_freebsd")
def test_a_system_without_ipv4_is_asked_through_ipv6(
    extension: ModelledLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a jail that has IPv6 alone."""
    real = socket.socket

    def without_ipv4(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET:
            raise OSError(errno.EPROTONOSUPPORT, "not here")
        return real(family, kind)

    monkeypatch.setattr(socket, "socket", without_ipv4)
    assert raw_splice.missing() is None


# The choice


@pytest.mark.parametrize("value", ["auto", "", None])
def test_auto_takes_the_kernel_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("FREEBSD_SPLICE_BACKEND", raising=False)
    else:
        monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", value)
    monkeypatch.setattr(raw_splice, "missing", lambda: None)
    assert backend().name == "kernel"
    monkeypatch.setattr(raw_splice, "missing", lambda: "no such thing here")
    assert backend() == Backend("userspace", "no such thing here")


def test_userspace_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")
    monkeypatch.setattr(raw_splice, "missing", lambda: None)
    assert backend() == Backend("userspace", "FREEBSD_SPLICE_BACKEND=userspace")


def test_a_kernel_that_is_not_there_is_an_error_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "kernel")
    monkeypatch.setattr(raw_splice, "missing", lambda: "no such thing here")
    with pytest.raises(BackendUnavailable, match="no such thing here") as caught:
        backend()
    assert caught.value.errno == errno.ENOPROTOOPT


def test_an_unknown_value_names_the_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "Kernel")
    with pytest.raises(ValueError, match="auto, kernel or userspace"):
        backend()


@pytest.mark.parametrize("value", ["auto", "userspace", "", None, "kernel"])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_the_kernel_is_demanded_by_one_value_alone(
    monkeypatch: pytest.MonkeyPatch, value: str | None, is_replaced: bool
) -> None:
    """Another mapping can stand for ``os.environ``, whose own dict is looked into."""
    if is_replaced:
        monkeypatch.setattr(os, "environ", dict(os.environ))
    if value is None:
        monkeypatch.delenv("FREEBSD_SPLICE_BACKEND", raising=False)
    else:
        monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", value)
    assert kernel_demanded() == (value == "kernel")


# The errors


@pytest.mark.parametrize("kind", [InvalidArgument, BackendUnavailable])
def test_the_exceptions_survive_pickling(kind: type[OSError]) -> None:
    error = pickle.loads(pickle.dumps(kind(errno.EINVAL, "text")))
    assert type(error) is kind
    assert (error.errno, error.strerror) == (errno.EINVAL, "text")


def test_a_socket_is_described_by_its_addresses(harness: Harness) -> None:
    ours, peer = harness.pair(socket.AF_INET6)
    near, far = ours.getsockname()[1], peer.address[1]
    assert messages.describe(ours.fileno()) == f"fd {ours.fileno()}, [::1]:{near} -> [::1]:{far}"


def test_whatever_is_there_is_described(harness: Harness) -> None:
    unconnected = harness.keep(socket.socket())
    assert messages.describe(unconnected.fileno()).endswith("0.0.0.0:0, not connected")
    assert messages.describe(-1) == "fd -1, closed"
    assert messages.describe(2**20) == f"fd {2**20}, closed"
    assert messages.describe(2**70) == f"fd {2**70}, closed"
    left, _ = map(harness.keep, socket.socketpair())
    assert messages.describe(left.fileno()) == f"fd {left.fileno()}, unnamed -> unnamed"
    with open(os.devnull) as file:
        assert messages.describe(file.fileno()).endswith(os.strerror(errno.ENOTSOCK))


def test_describing_works_without_a_descriptor_left(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> Borrowed:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(messages, "Borrowed", none_left)
    assert messages.describe(7) == "fd 7"


def test_describing_changes_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where every new socket object gets a timeout."""
    if sys.platform == "win32":
        pytest.skip("Windows doesn't tell")
    ours, _ = harness.pair()
    ours.setblocking(True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        assert "->" in messages.describe(ours.fileno())
    finally:
        socket.setdefaulttimeout(before)
    assert os.get_blocking(ours.fileno())


def test_an_error_is_of_the_class_that_belongs_to_its_errno() -> None:
    reset = _errors.refusal(errno.ECONNRESET, "dial again")
    assert isinstance(reset, ConnectionResetError)
    assert reset.strerror == f"{os.strerror(errno.ECONNRESET)}: dial again"
    named = messages.call_error("splice", reset, source=2**20)
    assert isinstance(named, ConnectionResetError)
    assert named.strerror == f"splice(source=<fd {2**20}, closed>): {reset.strerror}"


def test_a_bare_error_of_the_kernel_is_given_advice() -> None:
    named = messages.call_error("splice", OSError(errno.EBUSY, os.strerror(errno.EBUSY)))
    assert "unsplice(source)" in str(named)
