"""Several worker processes for one proxy, and their parent, which supervises them."""

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
from functools import partial
from typing import NoReturn

from ..proxies._connecting import reason_of
from ..proxies._log import fields, logger
from .heartbeats import Heartbeats
from .signals import RELOADING, SHOWING, STOPPING, WITHOUT_EFFECT, say_without_effect
from .stopping import Stopping

assert sys.platform != "win32"  # which has no fork(2)

#: Serves as the worker of a number, reads from a descriptor what the parent says, and calls a
#: function once it serves.
Work = Callable[[int, int, Callable[[], None]], object]

#: The signals that the parent waits for.
_WATCHED = frozenset(
    {*STOPPING, *RELOADING, *SHOWING, *WITHOUT_EFFECT, signal.SIGCHLD, signal.SIGALRM}
)

#: What the parent writes to each worker at each signal that stops. Workers themselves have these
#: signals blocked: Ctrl-C in a terminal and systemd send theirs to all processes at once, and
#: together with the parent's message those would be two, which cut connections.
_STOP = b"!"

#: What the parent writes to each worker whose place another one takes.
_RETIRE = b"-"

#: What the parent writes to each worker at each signal that shows who is connected.
_SHOW = b"?"

#: What a worker writes to the parent once it serves.
_SERVES = b"+"

#: The shortest time, in seconds, between two starts of the same worker.
_SHORT_LIFE = 1.0

#: The shortest time that the timer is set to, in seconds; 0 would switch it off.
_SHORTEST_WAIT = 0.001

_FREEBSD_SO_REUSEPORT_LB = 0x00010000


def share_option() -> int | None:
    """Return the option that makes the system deal a port's clients out among several sockets.

    That is SO_REUSEPORT_LB on FreeBSD and SO_REUSEPORT on Linux. Elsewhere it is None: there
    SO_REUSEPORT gives all clients to the last socket, and workers accept from one socket instead.
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
    reload: Callable[[], bool] = lambda: False,
    *,
    fork: Callable[[int], int] = lambda number: os.fork(),
    heartbeats: Heartbeats | None = None,
    serving: Callable[[Callable[[], None]], object] = lambda stop: None,
    reloaded: Callable[[], object] = lambda: None,
) -> None:
    """Run ``count`` workers until they have ended; replace one that dies before a signal.

    At each SIGINT or SIGTERM the workers are told to stop. At SIGHUP new workers can take the place
    of all others: those accept clients until all of the new ones serve, and end with their last
    connection.

    Args:
        count: how many workers.
        work: is called in each worker.
        ready: is called once the signals are handled.
        stopping: is called at each such signal, before the workers are told.
        before_fork: is called before each worker's start; the worker begins with what this process
            has in memory.
        reload: is called at SIGHUP; returns whether new workers are needed.
        reloaded: is called once those serve.
        fork: forks the worker of a number, as ``os.fork`` does.
        heartbeats: says which workers are alive; None: nobody asks.
        serving: is called once all of them serve. It is given a function that stops them all once
            another process has taken over, and may be called on any thread.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    for number in _WATCHED:
        # A signal that is ignored, as SIGCHLD is by default, is discarded even while blocked.
        signal.signal(number, lambda *_: None)
    ready()
    supervisor = _Supervisor(
        count, work, stopping, before_fork, reload, fork, heartbeats, serving, reloaded
    )
    supervisor.run()


def obey(
    parent: int,
    stop: Callable[[], object],
    retire: Callable[[], object],
    show: Callable[[], object],
) -> None:
    """Call these, in a worker's loop, whenever the parent says so.

    ``stop`` is called as well once the parent has ended.
    """
    loop = asyncio.get_running_loop()
    calls = {_STOP: stop, _RETIRE: retire, _SHOW: show}
    stopped = False

    def hear() -> None:
        nonlocal stopped
        try:
            said = os.read(parent, 64)
        except ConnectionResetError:  # on Linux, where the parent has ended with a word unread
            said = b""
        for word in said:
            calls[bytes((word,))]()
        if not said:
            loop.remove_reader(parent)
            if not stopped:  # a second call would cut live connections
                stop()
        stopped = stopped or _STOP in said

    loop.add_reader(parent, hear)


class _Supervisor:
    def __init__(
        self,
        count: int,
        work: Work,
        stopping: Callable[[], object],
        before_fork: Callable[[], object],
        reload: Callable[[], bool] = lambda: False,
        fork: Callable[[int], int] = lambda number: os.fork(),
        heartbeats: Heartbeats | None = None,
        serving: Callable[[Callable[[], None]], object] = lambda stop: None,
        reloaded: Callable[[], object] = lambda: None,
    ) -> None:
        self._process = os.getpid()
        self._count = count
        self._heartbeats = heartbeats
        self._tell_serving = serving
        self._tell_reloaded = reloaded
        self._is_reloading = False
        self._is_known_to_serve = False
        self._is_handed_over = False
        self._rule = Stopping(self._stop)
        self._work = work
        self._fork = fork
        self._tell_stopping = stopping
        self._before_fork = before_fork
        self._reload = reload
        self._missing = list(range(count))
        self._live: dict[int, int] = {}  # process: worker's number
        self._started: dict[int, float] = {}  # by the worker's number
        self._stopping = False
        #: Those of the live processes that have said so.
        self._serving: set[int] = set()
        #: By the worker's number. Their closing tells the workers that the parent has ended.
        self._channels: dict[int, socket.socket] = {}
        #: The workers whose places others take, by their processes: their numbers and channels.
        self._retired: dict[int, tuple[int, socket.socket]] = {}
        #: Those of them that accept clients until all the others serve.
        self._retiring: set[int] = set()

    def run(self) -> None:
        self._start_missing()
        while self._live or self._missing or self._retired:
            number = signal.sigwait(_WATCHED)
            if number == signal.SIGCHLD:
                self._reap()
            elif number in STOPPING:
                self._rule.signalled()
            elif number in RELOADING:
                if not self._stopping and self._reload():
                    self._replace_all()
            elif number in SHOWING:
                for channel in self._all_channels():
                    self._tell(channel, _SHOW)
            elif number in WITHOUT_EFFECT:
                say_without_effect(number)
            if self._is_handed_over:
                self._rule.handed_over()
            if self._heartbeats is not None:
                self._heartbeats.look(self._live.values())
            self._start_missing()
            self._hear()
            if not self._stopping and not self._missing and self._serving >= set(self._live):
                self._all_serve()

    def stop_soon(self) -> None:
        """Stop, from any thread: another process has taken over."""
        self._is_handed_over = True
        os.kill(os.getpid(), signal.SIGALRM)  # wakes this process, and is nobody else's

    def _hear(self) -> None:
        """Note which of the workers serve by now."""
        for process, number in self._live.items():
            if process not in self._serving:
                with contextlib.suppress(OSError):  # it has not said so yet, or has just ended
                    if self._channels[number].recv(1):
                        self._serving.add(process)

    def _all_serve(self) -> None:
        if not self._is_known_to_serve:
            self._is_known_to_serve = True
            self._tell_serving(self.stop_soon)
        self._retire()
        if self._is_reloading:
            self._is_reloading = False
            self._tell_reloaded()

    def _stop(self) -> None:
        self._stopping = True
        self._missing.clear()
        self._tell_stopping()
        for channel in self._all_channels():
            self._tell(channel, _STOP)

    def _replace_all(self) -> None:
        """Have new workers start, and the others finish once all of the new ones serve."""
        served_meanwhile = {self._retired[process][0] for process in self._retiring}
        for process, number in self._live.items():
            self._retired[process] = number, self._channels.pop(number)
            if process in self._serving or number not in served_meanwhile:
                self._retiring.add(process)
            else:
                self._tell(self._retired[process][1], _RETIRE)
        self._is_reloading = True
        self._live.clear()
        self._serving.clear()
        self._missing = list(range(self._count))
        self._started.clear()

    def _retire(self) -> None:
        """Have the workers whose places are taken accept no more clients."""
        for process in self._retiring:
            self._tell(self._retired[process][1], _RETIRE)
        self._retiring.clear()

    def _all_channels(self) -> list[socket.socket]:
        return [*self._channels.values(), *(channel for _, channel in self._retired.values())]

    def _tell(self, channel: socket.socket, word: bytes) -> None:
        # The worker has just ended, or has not read hundreds of messages.
        with contextlib.suppress(OSError):
            channel.send(word)

    def _reap(self) -> None:
        while self._live or self._retired:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            ended = os.waitstatus_to_exitcode(status)
            if process in self._retired:
                number, channel = self._retired.pop(process)
                self._retiring.discard(process)
                channel.close()
                if ended and not self._stopping:
                    _say_died(number, process, ended)
                continue
            # A program that was exec'ed by another one, or is process 1, has other children too.
            if process not in self._live:
                continue
            number = self._live.pop(process)
            self._serving.discard(process)
            self._channels.pop(number).close()
            if not self._stopping:
                _say_died(number, process, ended)
                self._missing.append(number)

    def _start_missing(self) -> None:
        """Start the workers whose time has come, and set a timer for the others."""
        now = time.monotonic()
        for number in [number for number in self._missing if self._due(number) <= now]:
            self._missing.remove(number)
            self._start(number)
        times = [*map(self._due, self._missing)]
        if self._heartbeats is not None:
            times += self._heartbeats.times()
        if times:
            wait = min(times) - time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(wait, _SHORTEST_WAIT))

    def _due(self, number: int) -> float:
        return self._started.get(number, -_SHORT_LIFE) + _SHORT_LIFE

    def _start(self, number: int) -> None:
        self._started[number] = time.monotonic()
        if self._heartbeats is not None:
            self._heartbeats.starts(number)
        self._before_fork()
        try:
            ours, theirs = socket.socketpair()
            try:
                process = self._fork(number)
            except OSError:
                ours.close()
                theirs.close()
                raise
        except OSError as error:  # processes, descriptors or memory are short, which may pass
            reason = reason_of(error)
            cannot = fields("worker not started", worker=number, error=reason)
            logger.error("cannot start worker %d: %s", number, reason, extra=cannot)
            self._missing.append(number)
            return
        self._channels[number] = ours
        if not process:
            self._be_worker(number, theirs.detach())
        theirs.close()
        ours.setblocking(False)
        self._live[process] = number

    def _be_worker(self, number: int, parent: int) -> NoReturn:
        status = 1
        try:
            for channel in self._all_channels():
                channel.close()  # else the other workers would not notice the parent's end
            # The signals that the parent waits for stay blocked here: they are for it alone.
            self._work(number, parent, partial(self._say_serving, parent))
            status = 0
        except BaseException:
            failed = fields("worker failed", worker=number)
            logger.exception("worker %d has failed", number, extra=failed)
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()  # write the last lines of the log
            os._exit(status)  # without the parent's exit handlers

    def _say_serving(self, parent: int) -> None:
        """Say, in a worker, that it serves, and wake the parent."""
        with contextlib.suppress(OSError):  # the parent has ended
            os.write(parent, _SERVES)
            if os.getppid() == self._process:
                os.kill(self._process, signal.SIGALRM)


def _say_died(number: int, process: int, ended: int) -> None:
    logger.error(
        "worker %d (process %d) has died: %s",
        number,
        process,
        f"signal {-ended}" if ended < 0 else f"status {ended}",
        extra=fields("worker died", worker=number, status=ended),
    )
