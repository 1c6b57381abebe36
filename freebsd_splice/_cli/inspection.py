"""What a running proxy tells of itself: its numbers, and who is connected.

Where there are several workers, the first process is asked, and asks its workers.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import socket
import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._platform.threads import start as start_thread
from ..proxies._addresses import show
from ..proxies._listening import listen_on
from ..proxies._live import LiveConnections, Watched
from ..proxies._log import fields, logger
from ..proxies._numbers import Numbers, snapshot
from .collecting import answer
from .connections import log_connections
from .listeners import Served
from .options import UsageError

if TYPE_CHECKING:
    from .exposition import Exposition

#: Seconds that the end of a worker waits for the first process to take the last numbers.
_FINISHING = 1.0

#: Scrapers that may wait to be accepted.
_BACKLOG = 16

_MISSING = '--metrics needs prometheus-client and h11: pip install "freebsd-splice[metrics]"'


def check_installed(options: argparse.Namespace) -> None:
    """Check that the libraries are there which the options of a process need.

    Raises:
        UsageError: they aren't.
    """
    if options.metrics is not None:
        try:
            import_module("freebsd_splice._cli.exposition")
        except ImportError as error:
            raise UsageError(f"{_MISSING} ({error})") from error


class Inspection:
    """Observes the servers of a process, and tells what it has seen.

    Args:
        options: the process's: where the metrics are read, if at all.

    Raises:
        UsageError: what serves the metrics isn't installed.
        ListenError: the address can't be listened on.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._numbers = None if options.metrics is None else Watched(Numbers)
        self._live: Watched[Any] = self._numbers or Watched(LiveConnections)
        self._listeners: list[socket.socket] = []
        self._exposition: Exposition | None = None
        self._to_parent: socket.socket | None = None  # in a worker
        self._answering: threading.Thread | None = None
        self._dumping = threading.Lock()
        if options.metrics is not None:
            check_installed(options)
            from .exposition import Exposition

            # At a takeover both processes listen for a moment, until the former one stops.
            share = None if options.takeover is None else getattr(socket, "SO_REUSEPORT", None)
            self._listeners = listen_on(options.metrics, _BACKLOG, share=share)
            self._exposition = Exposition(self._listeners)

    def start(self) -> None:
        """Begin to serve the metrics, from this process.

        Raises:
            OSError: the system can't start another thread.
        """
        if self._exposition is None:
            return
        addresses = [listener.getsockname() for listener in self._listeners]
        try:
            self._exposition.start()  # which closes them at its end, soon if it fails
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"--metrics: {error}") from error
        for address in addresses:
            where = show(address)
            served = fields("metrics", address=where)
            logger.info("metrics: http://%s/metrics", where, extra=served)
            if not ipaddress.ip_address(address[0]).is_loopback:
                logger.warning("everybody who can reach %s can read the metrics", where)

    def close(self) -> None:
        """Serve no metrics any more."""
        if self._exposition is not None:
            self._exposition.close()

    # In the process that has the servers

    def observe(self, served: Served) -> None:
        """Observe a proxy from now on, together with those that have listened where it does."""
        served.server.observer = self._live.at(str(served.planned.options.listen))

    def answer(self) -> None:
        """Answer the requests for numbers: those of the first process, where this is a worker."""
        if self._numbers is None:
            return
        numbers = self._numbers
        try:
            channel = self._channel()
            try:
                self._answering = start_thread(
                    lambda: answer(channel, lambda: snapshot(numbers)), "numbers"
                )
            except RuntimeError:
                channel.close()  # nobody waits for an answer then
                raise
        except (OSError, RuntimeError) as error:  # which is no reason to serve nobody
            logger.error("the numbers of this process can't be read: %s", error)

    def finish(self) -> None:
        """Tell the first process what this worker has counted since it was last asked."""
        if self._to_parent is not None and self._answering is not None:
            with contextlib.suppress(OSError):  # the first process has ended before
                self._to_parent.shutdown(socket.SHUT_RD)
            self._answering.join(_FINISHING)

    def _channel(self) -> socket.socket:
        if self._to_parent is not None:
            return self._to_parent
        assert self._exposition is not None
        ours, theirs = socket.socketpair()
        self._exposition.add_worker(0, ours)
        return theirs

    def log_connections(self) -> None:
        """Have a thread log who is connected; nothing while it is being done already."""
        if self._dumping.acquire(blocking=False):
            try:
                start_thread(self._log_connections, "connections")
            except RuntimeError as error:
                self._dumping.release()
                logger.warning("cannot show the connections: %s", error)

    def _log_connections(self) -> None:
        try:
            log_connections(self._live)
        finally:
            self._dumping.release()

    # In the first process, where it has workers

    def fork(self, number: int) -> int:
        """Fork a worker, and be able to ask it; return what fork(2) returns.

        Raises:
            OSError: processes or descriptors are short.
        """
        if sys.platform == "win32":
            raise OSError(errno.ENOSYS, "no fork on Windows")
        if self._exposition is None:
            return os.fork()
        with contextlib.ExitStack() as both:
            ours, theirs = (both.enter_context(sock) for sock in socket.socketpair())
            process = os.fork()
            both.pop_all()
        if process:
            theirs.close()
            self._exposition.add_worker(number, ours)
        else:
            ours.close()
            self._to_parent = theirs
        return process
