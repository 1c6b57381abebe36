"""Several processes for one proxy, and one that looks after them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from ..proxies._connecting import reason_of
from ..proxies._log import fields, logger
from .signals import STOPPING, WITHOUT_EFFECT, say_without_effect

assert sys.platform != "win32"  # which has no fork(2)

#: Serves as the worker of that number, and hears of the parent from that descriptor.
Work = Callable[[int, int], object]

#: What the parent waits for.
_WATCHED = frozenset({*STOPPING, *WITHOUT_EFFECT, signal.SIGCHLD, signal.SIGALRM})

#: What it writes to each worker at each signal that stops.  Workers themselves have all of these
#: signals blocked: Ctrl-C in a terminal and systemd send theirs to all processes at once, and with
#: the parent's word that would be two, which cuts connections.
_STOP = b"!"

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

    At each SIGINT or SIGTERM they are told to stop.  ``ready`` is called once that is so,
    ``stopping`` at every such signal, before they hear of it, and ``before_fork`` before each
    worker's start, as it begins with what this process knows.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    for number in _WATCHED:
        # A signal that is ignored, as SIGCHLD is by default, is discarded, blocked or not.
        signal.signal(number, lambda *_: None)
    ready()
    _Supervisor(count, work, stopping, before_fork).run()


def obey(parent: int, stop: Callable[[], object]) -> None:
    """In a worker's loop: ``stop`` whenever the parent says so, and once it has ended."""
    loop = asyncio.get_running_loop()
    stopped = False

    def hear() -> None:
        nonlocal stopped
        said = os.read(parent, 64)
        for _ in said:
            stop()
        if not said:
            loop.remove_reader(parent)
            if not stopped:  # a second time would cut what is live
                stop()
        stopped = True

    loop.add_reader(parent, hear)


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
        #: By the worker's number; that they are closed is how a worker knows of this one's end.
        self._pipes: dict[int, int] = {}

    def run(self) -> None:
        self._start_missing()
        while self._live or self._missing:
            number = signal.sigwait(_WATCHED)
            if number == signal.SIGCHLD:
                self._reap()
            elif number in STOPPING:
                self._stop()
            elif number in WITHOUT_EFFECT:
                say_without_effect(number)
            self._start_missing()

    def _stop(self) -> None:
        self._stopping = True
        self._missing.clear()
        self._tell_stopping()
        for pipe in self._pipes.values():
            with contextlib.suppress(OSError):  # it has just ended, or has not read the last 65,536
                os.write(pipe, _STOP)

    def _reap(self) -> None:
        while self._live:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            # Others' children become ours where we were exec'ed by their parent, or are process 1.
            number = self._live.pop(process, None)
            if number is None:
                continue
            os.close(self._pipes.pop(number))
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
            hears, says = os.pipe()
            try:
                process = os.fork()
            except OSError:
                os.close(hears)
                os.close(says)
                raise
        except OSError as error:  # too many processes or descriptors, too little memory: may pass
            reason = reason_of(error)
            cannot = fields("worker not started", worker=number, error=reason)
            logger.error("cannot start worker %d: %s", number, reason, extra=cannot)
            self._missing.append(number)
            return
        self._pipes[number] = says
        if not process:
            self._be_worker(number, hears)
        os.close(hears)
        os.set_blocking(says, False)
        self._live[process] = number

    def _be_worker(self, number: int, hears: int) -> NoReturn:
        status = 1
        try:
            for says in self._pipes.values():
                os.close(says)  # or the others' workers would not hear of the parent's end
            # What the parent waits for stays blocked here: it is for the parent alone.
            self._work(number, hears)
            status = 0
        except BaseException:
            failed = fields("worker failed", worker=number)
            logger.exception("worker %d has failed", number, extra=failed)
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()  # what is logged is on its way
            os._exit(status)  # what is registered to run at the end is the parent's
