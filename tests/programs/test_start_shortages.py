"""Programs that lack something at their start: one line says what, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from programs.processes import Proxy

StartProxy = Callable[..., Proxy]

_NO_DESCRIPTOR = """
import errno, os
from freebsd_splice._platform import system
def fail(kind):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
system.make_poller = fail
"""

_NO_THREAD = """
import threading
start = threading.Thread.start
def fail(thread):
    if thread.name.startswith("freebsd-splice-"):
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = fail
"""


@pytest.mark.parametrize(
    ("patch", "advice"),
    [(_NO_DESCRIPTOR, "raise ulimit -n"), (_NO_THREAD, "raise ulimit -u")],
    ids=["no descriptor", "no thread"],
)
def test_a_program_that_cannot_begin_says_what_to_raise(
    patch: str, advice: str, userspace: None, proxy: StartProxy
) -> None:
    run = proxy("forward", "127.0.0.1:0", "127.0.0.1:9", patch=patch)
    assert run.end() == 1
    assert run.lines[-1].startswith("freebsd-splice: ")
    assert run.lines[-1].count(advice) == 1
    assert not [line for line in run.lines if "Traceback" in line]


_FAILS_LATER = """
import errno
from freebsd_splice.proxies import ListenError, ProxyServer
async def fail(server, listener):
    raise {error}
ProxyServer._accept = fail
"""


@pytest.mark.parametrize(
    ("error", "is_told_plainly"),
    [('ListenError(errno.EINVAL, "it failed later")', True), ('OSError("it failed later")', False)],
    ids=["listens no more", "a defect"],
)
def test_a_defect_is_not_told_as_a_failure_to_start(
    error: str, is_told_plainly: bool, proxy: StartProxy
) -> None:
    """Only a traceback says where it is."""
    patch = _FAILS_LATER.format(error=error)
    run = proxy("forward", "127.0.0.1:0", "127.0.0.1:9", patch=patch)
    assert run.end() == 1
    assert ("freebsd-splice: it failed later" in run.lines) == is_told_plainly
    assert any("Traceback" in line for line in run.lines) == (not is_told_plainly)
