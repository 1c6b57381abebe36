"""How the package starts threads, and what a process has once."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import freebsd_splice
from conformance.harness import DEADLINE
from freebsd_splice._errors import ThreadRefusedError
from freebsd_splice._platform import threads

PACKAGE = Path(freebsd_splice.__file__).parent

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal mask")

#: What starts a thread, or has one started.
STARTS = {
    "Thread",
    "Timer",
    "start_new_thread",
    "start_joinable_thread",
    "ThreadPoolExecutor",
    "ProcessPoolExecutor",
    "QueueListener",
    "run_in_executor",
    "to_thread",
    "set_default_executor",
}

#: On one socket pair, splice; then wait for SIGUSR1 as programs do that wait for signals.
WAITS_FOR_A_SIGNAL = """
import os, signal, socket
import freebsd_splice
pairs = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
near = [socket.create_connection(one.getsockname()) for one in pairs]
far = [one.accept()[0] for one in pairs]
for one in near + far:
    one.setblocking(False)
{start}
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
print(signal.sigwait([signal.SIGUSR1]).name)
for one in pairs + near + far:
    one.close()
"""

THIN_UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all()
import socket
from freebsd_splice import splice
with socket.create_server(("127.0.0.1", 0)) as listener:
    with socket.create_connection(listener.getsockname()) as one:
        splice(one, one)
"""


@posix
@pytest.mark.parametrize(
    "start",
    [
        "freebsd_splice.splice(far[0], near[1])",
        "made = freebsd_splice.Splice(far[0], near[1], timeout=1000)",
    ],
)
def test_a_signal_that_is_waited_for_comes_to_who_waits(start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_A_SIGNAL.format(start=start)],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert (done.returncode, done.stdout) == (0, "SIGUSR1\n"), done.stderr


@posix
def test_no_signal_arrives_in_a_thread_from_its_first_moment_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the new thread begins with is what the starting one has at that time."""
    assert sys.platform != "win32"
    begins_with: list[set[int]] = []
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        begins_with.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        original(thread)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(threading.Thread, "start", start)
    threads.start(lambda: None, "test").join(DEADLINE)
    assert begins_with[0] >= {signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD}
    assert not begins_with[0] & {signal.SIGSEGV, signal.SIGBUS}  # faulthandler's
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_where_the_start_is_interrupted_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler can raise when the thread is there already."""
    started: list[threading.Thread] = []
    called: list[int] = []
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        original(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    before = threads.signal_mask()
    with pytest.raises(KeyboardInterrupt):
        threads.start(lambda: called.append(1), "test")
    started[0].join(DEADLINE)
    assert not called
    assert threads.signal_mask() == before


def test_a_refused_thread_is_named_with_what_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "can't start new thread"

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ThreadRefusedError, match=rf"^{said}: a name; raise ulimit -u"):
        threads.start(lambda: None, "a name")
    said = "can't create new thread at interpreter shutdown"  # no limit would help
    with pytest.raises(RuntimeError, match=rf"^{said}$"):
        threads.start(lambda: None, "a name")


def test_no_thread_is_started_in_another_way() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        for name in _names_of_threading(ast.parse(path.read_text()))
        if name in STARTS
    }
    # Annotations apart, which start nothing.
    assert found == {"_platform/threads.py: Thread"}


def test_what_a_forked_child_forgets_is_said_in_one_place() -> None:
    users = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "register_at_fork"
    }
    assert users == {"process.py"}


def _names_of_threading(tree: ast.AST) -> Iterator[str]:
    """Whatever is called, under whichever of its names; and what is handed on to be called."""
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        for annotation in _annotations(node)
        for inner in ast.walk(annotation)
    }
    ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    imported = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    }
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name) and node.id in imported and node.id not in ours:
            yield imported[node.id]


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    for name in ("annotation", "returns"):
        found = getattr(node, name, None)
        if isinstance(found, ast.AST):
            yield found


def test_the_thin_functions_refuse_geventss_patches_with_advice() -> None:
    pytest.importorskip("gevent", reason="gevent isn't installed")
    done = subprocess.run(
        [sys.executable, "-c", THIN_UNDER_GEVENT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "call monkey.patch_all(thread=False, select=False, queue=False)" in done.stderr
