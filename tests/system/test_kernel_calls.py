"""What each kernel can do, and what is asked of it; without one."""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import asdict

import pytest

from freebsd_splice._platform import raw_splice
from freebsd_splice._platform.end_events import KqueueEndEvents
from freebsd_splice._platform.kernel_interface import capabilities_of

if sys.platform == "win32":
    pytest.skip("Windows has no such kernel", allow_module_level=True)

from freebsd_splice._platform.kernel_calls import SystemKernelCalls


@pytest.mark.parametrize(
    ("system", "release", "can"),
    [
        ("FreeBSD", (14, 3), {"hides_drains", "poisons"}),
        ("FreeBSD", (15, 0), {"hides_drains", "poisons"}),
        ("FreeBSD", (15, 1), {"hides_drains"}),
        ("FreeBSD", (0, 0), {"hides_drains", "poisons"}),  # can't be told: the worse of the two
        ("OpenBSD", (7, 8), {"checks_drains", "keeps_causes", "stalls"}),
    ],
)
def test_what_each_kernel_does(system: str, release: tuple[int, int], can: set[str]) -> None:
    """F10, F21, F22, F25, F38"""
    found = asdict(capabilities_of(system, release))
    assert {name for name, does in found.items() if does} == can


@pytest.mark.parametrize("before", [0, 1])
def test_a_push_leaves_the_callers_option_as_it_was(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """F38: TCP_NOPUSH is set and then cleared, which sends; 0x10 is OpenBSD's number of it."""
    value = [before]
    option = (7, socket.IPPROTO_TCP, 0x10)
    cleared: list[bool] = []

    def read(*asked: int) -> bytes:
        assert asked == (*option, 4)
        return value[0].to_bytes(4, sys.byteorder)

    def write(*asked: int) -> None:
        assert asked[:3] == option
        if value[0] and not asked[3]:
            cleared.append(True)
        value[0] = asked[3]

    monkeypatch.setattr(raw_splice, "read_option", read)
    monkeypatch.setattr(raw_splice, "write_option", write)
    SystemKernelCalls().push(7)
    assert cleared
    assert value == [before]


def test_a_kqueue_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoKqueue:
        @staticmethod
        def kqueue() -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(KqueueEndEvents, "module", NoKqueue)
    with pytest.raises(
        OSError, match="no kqueue for the ends of splices; raise ulimit -n"
    ) as raised:
        SystemKernelCalls().end_events()
    assert raised.value.errno == errno.EMFILE
