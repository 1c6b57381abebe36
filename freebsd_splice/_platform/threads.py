"""How the package starts every thread, and which signals its threads block."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from .._errors import ThreadRefusedError

#: The signals that a thread blocks; none on Windows, where threads have no signal mask.
SignalMask = Iterable[int]


def start(run: Callable[[], object], name: str, *, daemon: bool = True) -> threading.Thread:
    """Call ``run`` on a new thread that takes no signals.

    Signals belong to the program's threads: one delivered here would neither interrupt the main
    thread's system call nor stay pending for its ``sigwait``. Blocking signals also protects a
    program that has SIGPIPE's default action: os.splice can't be told not to raise SIGPIPE for a
    dead drain.

    Args:
        run: the thread's function.
        name: the thread's name.
        daemon: False: at its exit the interpreter waits for the thread.

    Raises:
        ThreadRefusedError: the system can't start another thread.
        RuntimeError: the interpreter is about to exit.

    Whenever this function raises, ``run`` is never called.
    """
    decided = threading.Lock()
    decided.acquire()
    wanted = False

    def enter() -> None:
        with decided:
            pass
        if wanted:
            run()

    thread = threading.Thread(target=enter, name=name, daemon=daemon)
    try:
        # The new thread inherits the mask, so it never has a moment in which it takes a signal.
        with _masked(_BLOCK, _ALL):
            thread.start()
        wanted = True
    except RuntimeError as error:
        if str(error) != _REFUSED:
            raise
        raise ThreadRefusedError(f"{error}: {name}; {_ADVICE}") from error
    finally:
        # A signal's handler can raise in this thread at any point; the caller would then not know
        # of the new thread, so it must not call ``run``.
        decided.release()
    return thread


def signal_mask() -> SignalMask:
    """Return the signals that this thread blocks, for ``with_signal_mask``."""
    if sys.platform == "win32":
        return ()
    return frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def with_signal_mask(mask: SignalMask) -> AbstractContextManager[None]:
    """Block exactly those signals in this thread, inside the ``with`` block."""
    return _masked(_SET, mask)


def check_unpatched() -> None:
    """Raise RuntimeError if gevent has patched modules that the package's threads need.

    As greenlets of the main thread, the package's threads would hold up that thread and its
    signals; and gevent's ``poll`` aborts the process when another thread closes a descriptor that
    it watches.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return
    patched = [name for name in _NOT_TO_PATCH if monkey.is_module_patched(name)]
    if patched:
        without = ", ".join(
            f"{'thread' if name == 'threading' else name}=False" for name in patched
        )
        raise RuntimeError(
            f"gevent has patched {', '.join(patched)}, which freebsd_splice's own threads need "
            f"unpatched: call monkey.patch_all({without})"
        )


#: What CPython says where the system refuses a thread, and what to do about it.
_REFUSED = "can't start new thread"
_ADVICE = "raise ulimit -u (systemd: TasksMax; FreeBSD: kern.threads.max_threads_per_proc)"

#: Modules that must be the standard library's own.
_NOT_TO_PATCH = ("threading", "select", "queue")

#: Signals about a fault of the thread itself: faulthandler needs them in the thread they arise in.
_OF_THE_THREAD = {signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
if sys.platform != "win32":
    _OF_THE_THREAD.add(signal.SIGBUS)
_ALL = signal.valid_signals() - _OF_THE_THREAD

_BLOCK: int = getattr(signal, "SIG_BLOCK", 0)
_SET: int = getattr(signal, "SIG_SETMASK", 0)


@contextmanager
def _masked(how: int, signals: SignalMask) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    # The old mask is read first: while the mask is changed, a signal's handler can raise.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(how, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
