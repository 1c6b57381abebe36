"""The one way in which the package starts a thread, and the signals that threads take."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

#: The signals that a thread blocks; on Windows, where threads have no such mask, none.
SignalMask = Iterable[int]


def start(run: Callable[[], object], name: str, *, daemon: bool = True) -> threading.Thread:
    """Call ``run`` in a thread that takes no signals.

    Signals belong to the program's threads: one that landed here would not interrupt the call that
    the main thread sits in, nor wait for its ``sigwait``.  Blocking them also keeps a dead drain's
    SIGPIPE, which os.splice can't be told to leave out, from ending a program that has its default.

    The interpreter waits at its exit for one that is no ``daemon``.  Where this raises, ``run`` is
    never called.  RuntimeError: the system has no thread to give.
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
        # Blocked before there is a thread, which inherits that: there is no moment in which one
        # could arrive there.
        with _masked(_BLOCK, _ALL):
            thread.start()
        wanted = True
    finally:
        # A signal's handler can raise in this thread at any point: nobody would know of the other.
        decided.release()
    return thread


def signal_mask() -> SignalMask:
    """What this thread blocks, for ``with_signal_mask``."""
    if sys.platform == "win32":
        return ()
    return frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def with_signal_mask(mask: SignalMask) -> AbstractContextManager[None]:
    """Have this thread block exactly those signals, for as long as the block lasts."""
    return _masked(_SET, mask)


def check_unpatched() -> None:
    """Raise RuntimeError where gevent has taken from the standard library what threads are made of.

    As greenlets of the main thread, the package's threads would hold up all of it, signals too;
    and gevent's ``poll`` aborts the process when another thread closes what it watches.
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
            f"gevent has patched {', '.join(patched)}, which freebsd_splice's own threads need as "
            f"it was: call monkey.patch_all({without})"
        )


#: Modules that have to be the standard library's own.
_NOT_TO_PATCH = ("threading", "select", "queue")

#: Those that say what is wrong with the very thread: faulthandler wants them where they arise.
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
    # Asked for before anything is changed: changing it can raise what a signal's handler does.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(how, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
