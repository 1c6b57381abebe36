"""The process that is going to be replaced: it hands its listening sockets to the next one."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial

from .._errors import SHORTAGES, why
from .._platform.threads import start as start_thread
from ..proxies._listening import close_listener
from ..proxies._log import fields, logger
from ..proxies._pausing import RETRY_AFTER
from ..proxies._unix_sockets import keep_files, peer_user
from .passing import SERVING, give

#: Seconds in which the next process has to take what it is sent.
_PATIENCE = 10.0


class Handover:
    """Waits on a thread for the next process, gives it the sockets, and says when it serves.

    Until the next process says that it serves, this one goes on as ever: both accept clients from
    the same sockets then. Nothing has to be timed: if the next process dies, its connection ends.

    Args:
        control: the listening Unix socket at which the next process asks.
        sets: the listening sockets of each worker.
    """

    def __init__(self, control: socket.socket, sets: Sequence[Sequence[socket.socket]]) -> None:
        self._control = control
        # The server closes its own on another thread, and a number may be another file's then.
        self._sets = _duplicates(sets)
        self._lock = threading.Lock()  # over what is given at a time
        self._connection: socket.socket | None = None
        self._hears, self._wakes = os.pipe()
        self._thread: threading.Thread | None = None

    def start(self, handed_over: Callable[[], object]) -> None:
        """Begin to wait.

        Args:
            handed_over: is called, on the thread, once the next process serves.
        """
        self._control.setblocking(False)
        self._thread = start_thread(partial(self._run, handed_over), "takeover")

    def replace(self, sets: Sequence[Sequence[socket.socket]]) -> None:
        """Hand these sockets over from now on: the configuration was read again.

        Those before are let go of. A socket that nobody accepts from must not go on listening.

        Raises:
            OSError: descriptors are short. The next process is given none then.
        """
        with self._lock:
            before, self._sets = self._sets, []
        _close_all(before)
        made = _duplicates(sets)
        with self._lock:
            self._sets = made

    def close(self) -> None:
        """Hand nothing over any more: this process stops for another reason."""
        os.write(self._wakes, b"!")
        if self._thread is not None:
            self._thread.join()
        # If it was handed over, the file belongs to the next process (see ``keep_files``).
        close_listener(self._control)
        self.leave()

    def leave(self) -> None:
        """Close all descriptors, also in a forked worker, where there is no thread."""
        self._control.close()
        _close_all(self._sets)
        if self._connection is not None:
            self._connection.close()
        for descriptor in (self._hears, self._wakes):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._hears = self._wakes = -1

    def _run(self, handed_over: Callable[[], object]) -> None:
        while self._is_asked(self._control):
            try:
                self._connection, _ = self._control.accept()
            except OSError as error:
                if error.errno in SHORTAGES and not self._pause():
                    return
                continue  # or the process that has asked is gone again
            with self._connection:
                is_over = self._serve(self._connection)
            self._connection = None
            if is_over:
                handed_over()
                return

    def _is_asked(self, sock: socket.socket) -> bool:
        """Wait until the socket can be read; False: this process stops."""
        if sys.platform == "win32":
            return False
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        waiting.register(self._hears, select.POLLIN)
        return all(descriptor != self._hears for descriptor, _ in waiting.poll())

    def _pause(self) -> bool:
        """Wait until there may be descriptors again; False: this process stops."""
        if sys.platform == "win32":
            return False
        waiting = select.poll()
        waiting.register(self._hears, select.POLLIN)
        return not waiting.poll(RETRY_AFTER * 1000)

    def _serve(self, connection: socket.socket) -> bool:
        """Give the sockets to a process; return whether it serves with them."""
        user = peer_user(connection)
        if sys.platform != "win32" and user not in (None, 0, os.geteuid()):
            logger.warning(
                "user %d may not take the listening sockets over",
                user,
                extra=fields("takeover refused", user=user),
            )
            return False
        connection.settimeout(_PATIENCE)
        try:
            with self._lock:
                give(connection, self._control, self._sets)
            if not self._is_asked(connection):
                return False
            is_serving = connection.recv(len(SERVING)) == SERVING
            reason = "it has ended before it was ready"
        except OSError as error:
            is_serving, reason = False, why(error)
        if not is_serving:
            logger.warning(
                "the next process does not take over: %s; this one goes on",
                reason,
                extra=fields("takeover failed", error=reason),
            )
            return False
        keep_files()
        logger.info("another process has taken the listening sockets over", extra=_HANDED_OVER)
        return True


def _duplicates(sets: Sequence[Sequence[socket.socket]]) -> list[list[socket.socket]]:
    return [[listener.dup() for listener in each] for each in sets]


def _close_all(sets: Sequence[Sequence[socket.socket]]) -> None:
    for listener in (listener for each in sets for listener in each):
        listener.close()


_HANDED_OVER = fields("handed over")
