"""Several processes for one proxy, and one that looks after them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from ..proxies._log import fields, logger

assert sys.platform != "win32"  # which has no fork(2)

#: Serves as the worker of that number, until the descriptor of the parent can be read.
Work = Callable[[int, int], object]

#: What the parent tells its workers to stop with.  SIGINT and SIGTERM are for the parent alone, and
#: workers ignore them: Ctrl-C in a terminal and systemd send theirs to all processes at once, and
#: with the parent's that would be two, which cuts connections.
STOP = signal.SIGUSR1

#: What the parent waits for.
_WATCHED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM})

#: A worker that has died sooner than that is started again only then, seconds after its start.
_SHORT_LIFE = 1.0

#: The shortest time that SIGALRM is asked for, in seconds: 0 would be never.
_SHORTEST_WAIT = 0.001

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


def supervise(
    count: int,
    work: Work,
    ready: Callable[[], object],
    stopping: Callable[[], object],
    before_fork: Callable[[], object] = lambda: None,
) -> None:
    """Run so many workers until they have ended; one that dies before a signal is replaced.

    At each SIGINT or SIGTERM they are sent STOP, which a worker begins with blocked.  ``ready`` is
    called once that is so, ``stopping`` at every signal, before they hear of it, and
    ``before_fork`` before each worker's start, as it begins with what this process knows.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_WATCHED, STOP})
    # SIGCHLD is discarded, blocked or not, where nobody has asked for it.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ready()
    _Supervisor(count, work, stopping, before_fork).run()


def obey(parent: int, stop: Callable[[], object]) -> None:
    """In a worker's loop: ``stop`` at every STOP, and at the parent's end."""
    loop = asyncio.get_running_loop()

    def orphaned() -> None:
        loop.remove_reader(parent)
        stop()

    loop.add_reader(parent, orphaned)
    loop.add_signal_handler(STOP, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (STOP,))


class _Supervisor:
    def __init__(
        self,
        count: int,
        work: Work,
        stopping: Callable[[], object],
        before_fork: Callable[[], object],
    ) -> None:
        self._work = work
        self._tell_stopping = stopping
        self._before_fork = before_fork
        self._missing = list(range(count))
        self._live: dict[int, int] = {}  # process: worker's number
        self._started: dict[int, float] = {}  # by the worker's number
        self._stopping = False
        # Nobody writes to it: that it can be read means that its other end is gone.
        self._parent, self._held = os.pipe()

    def run(self) -> None:
        self._start_missing()
        while self._live or self._missing:
            number = signal.sigwait(_WATCHED)
            if number == signal.SIGCHLD:
                self._reap()
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._stop()
            self._start_missing()

    def _stop(self) -> None:
        self._stopping = True
        self._missing.clear()
        self._tell_stopping()
        for process in self._live:
            os.kill(process, STOP)

    def _reap(self) -> None:
        while self._live:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            # Others' children become ours where we were exec'ed by their parent, or are process 1.
            number = self._live.pop(process, None)
            if number is not None and not self._stopping:
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
        for number in [number for number in self._missing if self._due(number) <= now]:
            self._missing.remove(number)
            self._start(number)
        if self._missing:
            wait = min(map(self._due, self._missing)) - time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(wait, _SHORTEST_WAIT))

    def _due(self, number: int) -> float:
        return self._started.get(number, -_SHORT_LIFE) + _SHORT_LIFE

    def _start(self, number: int) -> None:
        self._started[number] = time.monotonic()
        self._before_fork()
        try:
            process = os.fork()
        except OSError as error:  # too many processes, too little memory: it may pass
            cannot = fields("worker not started", worker=number, error=error.strerror)
            logger.error("cannot start worker %d: %s", number, error.strerror, extra=cannot)
            self._missing.append(number)
            return
        if process:
            self._live[process] = number
        else:
            self._be_worker(number)

    def _be_worker(self, number: int) -> None:
        status = 1
        try:
            os.close(self._held)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for meant_for_parent in (signal.SIGINT, signal.SIGTERM):
                signal.signal(meant_for_parent, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            self._work(number, self._parent)
            status = 0
        except BaseException:
            failed = fields("worker failed", worker=number)
            logger.exception("worker %d has failed", number, extra=failed)
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)  # what is registered to run at the end is the parent's
