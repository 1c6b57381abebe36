"""Several processes for one proxy, and one that looks after them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from ..proxies._log import fields, logger

assert sys.platform != "win32"  # which has no fork(2)

#: Serves as the worker of that number, until the descriptor of the parent can be read.
Work = Callable[[int, int], object]

#: A worker that has died sooner than that is started again only then, seconds after its start.
_SHORT_LIFE = 1.0

_FREEBSD_SO_REUSEPORT_LB = 0x00010000


def share_option() -> int | None:
    """What has the system deal out a port's clients among several sockets; None: it can't.

    SO_REUSEPORT_LB on FreeBSD, SO_REUSEPORT on Linux.  Elsewhere the latter gives all clients to
    the socket that came last, and workers accept from one socket instead.
    """
    if sys.platform.startswith("freebsd"):
        return int(getattr(socket, "SO_REUSEPORT_LB", _FREEBSD_SO_REUSEPORT_LB))
    if sys.platform == "linux":
        return socket.SO_REUSEPORT
    return None


def supervise(count: int, work: Work, ready: Callable[[], object]) -> None:
    """Run so many workers until they have ended; one that dies before a signal is replaced.

    SIGINT and SIGTERM are passed on to them; ``ready`` is called once that is so.
    """
    watched = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    # SIGCHLD is discarded, blocked or not, where nobody has asked for it.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ready()
    _Supervisor(count, work).run(watched)


class _Supervisor:
    def __init__(self, count: int, work: Work) -> None:
        self._work = work
        self._missing = list(range(count))
        self._live: dict[int, int] = {}  # process: worker's number
        self._started: dict[int, float] = {}  # by the worker's number
        self._stopping = False
        # Nobody writes to it: that it can be read means that its other end is gone.
        self._parent, self._held = os.pipe()

    def run(self, watched: set[signal.Signals]) -> None:
        self._start_missing()
        while self._live or self._missing:
            number = signal.sigwait(watched)
            if number == signal.SIGCHLD:
                self._reap()
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._stopping = True
                self._missing.clear()
                for process in self._live:
                    os.kill(process, number)
            self._start_missing()

    def _reap(self) -> None:
        while self._live:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            number = self._live.pop(process)
            if not self._stopping:
                ended = os.waitstatus_to_exitcode(status)
                logger.error(
                    "worker %d (process %d) has died: %s",
                    number,
                    process,
                    f"signal {-ended}" if ended < 0 else f"status {ended}",
                    extra=fields("worker died", worker=number, status=ended),
                )
                self._missing.append(number)

    def _start_missing(self) -> None:
        """Those whose time has come; for the others SIGALRM comes."""
        now = time.monotonic()
        for number in list(self._missing):
            wait = self._started.get(number, -_SHORT_LIFE) + _SHORT_LIFE - now
            if wait > 0:
                signal.setitimer(signal.ITIMER_REAL, wait)
            else:
                self._missing.remove(number)
                self._start(number)

    def _start(self, number: int) -> None:
        self._started[number] = time.monotonic()
        process = os.fork()
        if process:
            self._live[process] = number
            return
        status = 1
        try:
            os.close(self._held)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._work(number, self._parent)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)  # what is registered to run at the end is the parent's
