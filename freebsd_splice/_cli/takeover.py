"""``--takeover``: a restart that refuses no client and cuts no connection.

The process that starts asks the running one, at a Unix socket, for its listening sockets. Both
accept clients from them until the new one says that it serves; the running one stops then, as
after a signal. The sockets are never closed in between, and that is what matters: a system resets
the connections that wait in the queue of a socket which is closed, even where another socket
listens on the same port (SO_REUSEPORT), and none is listened on anew.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence

from .._errors import why
from ..proxies import Address, ListenError
from ..proxies._addresses import Resolved, show
from ..proxies._connecting import reason_of, set_buffers
from ..proxies._listening import close_listener, listen_on
from ..proxies._log import fields, logger
from ..proxies._unix_sockets import AF_UNIX, adopt_file, listen_at, path_of, peer_user
from .handover import Handover
from .matching import addresses_of, at_address, is_at
from .options import CannotStartError, UsageError
from .passing import SERVING, Passed, take

Sets = list[list[socket.socket]]

#: Seconds in which the running process has to answer.
_PATIENCE = 10.0

#: Processes that may wait for an answer.
_BACKLOG = 16


class Takeover:
    """What a process takes from the one before it, and hands to the one after it.

    Args:
        path: the Unix socket; None: nothing is taken or handed over.
        user: the user as which the running process may go on (``--user``), besides this one's.

    Raises:
        CannotStartError: the running process can't be asked, or doesn't hand its sockets over.
        UsageError: the system passes no descriptors.
    """

    def __init__(self, path: str | None, user: int | None = None) -> None:
        self._path = path
        self._connection: socket.socket | None = None
        self._passed: Passed | None = None
        self._handover: Handover | None = None
        self._control: socket.socket | None = None
        self._taken: list[socket.socket] = []
        if path is None:
            return
        if sys.platform == "win32":
            raise UsageError("--takeover: not on Windows")
        try:
            self._ask(path, user)
        except OSError as error:
            raise CannotStartError(f"--takeover {path}: {_reason(error)}") from error

    def take(self, address: Address, *, backlog: int, buffers: int | None = None) -> Sets:
        """Return the sockets of the running process that listen on an address.

        Sockets of addresses that the running process doesn't listen on are made.

        Args:
            address: what is to be listened on.
            backlog: how many clients may wait to be accepted, where a socket is made.
            buffers: the size, in bytes, that both buffers of accepted sockets begin with.

        Returns:
            The sockets of each worker; nothing where there is no process before this one, or where
            it listens on none of the addresses.

        Raises:
            ListenError: an address can't be listened on.
        """
        if self._passed is None:
            return []
        left = [
            listener
            for each in self._passed.sets
            for listener in each
            if listener not in self._taken
        ]
        try:
            wanted = addresses_of(address)
            own = at_address(left, address)
        except (OSError, UnicodeError):  # to listen there will fail as well, and say why
            return []
        for listener in own:
            set_buffers(listener, buffers)
        self._taken += own
        sets = [[listener for listener in each if listener in own] for each in self._passed.sets]
        taken = [each for each in sets if each]
        if taken:
            _add_missing(taken, wanted, backlog, buffers)
        return taken

    def listen(self, sets: Sequence[Sequence[socket.socket]]) -> None:
        """Listen for the process that comes after this one, with the privileges of the start.

        All sockets that are wanted have been taken before.

        Args:
            sets: the sockets that this process listens on, wherever it has them from.

        Raises:
            CannotStartError: that is not possible.
        """
        if self._path is None:
            return
        if self._passed is not None:
            self._control = self._passed.control
            self._leave_the_others(self._passed, sets)
            return
        try:
            self._control = listen_at(self._path, backlog=_BACKLOG, mode=0o600)
        except OSError as error:
            raise CannotStartError(f"--takeover {self._path}: {_reason(error)}") from error

    def serve(self, sets: Sequence[Sequence[socket.socket]], stop: Callable[[], object]) -> None:
        """Tell the process before this one that it can stop, and wait for the one after it.

        Args:
            sets: the sockets that this process listens on.
            stop: is called, on another thread, once another process has taken them over.

        Raises:
            CannotStartError: descriptors or threads are short. The process before this one goes on.
        """
        if self._control is None:
            return
        try:
            self._handover = Handover(self._control, sets)
            self._handover.start(stop)
        except (OSError, RuntimeError) as error:
            reason = _reason(error) if isinstance(error, OSError) else str(error)
            raise CannotStartError(f"--takeover {self._path}: {reason}") from error
        if self._passed is not None:
            self._relieve(self._passed, sets)

    def replace(self, sets: Sequence[Sequence[socket.socket]]) -> None:
        """Hand these sockets over from now on: the configuration was read again."""
        if self._handover is None:
            return
        try:
            self._handover.replace(sets)
        except OSError as error:
            reason = reason_of(error)
            logger.error(
                "the next process cannot take the listening sockets over: %s",
                reason,
                extra=fields("nothing to hand over", error=reason),
            )

    def close(self) -> None:
        """Hand nothing over any more. A process before this one that was not told goes on."""
        handover, self._handover = self._handover, None
        if handover is not None:
            handover.close()
        elif self._control is not None and self._passed is None:
            close_listener(self._control)

    def leave(self) -> None:
        """Close, in a forked worker, what is the parent's business."""
        if self._handover is not None:
            self._handover.leave()
        for sock in (self._connection, self._control):
            if sock is not None:
                sock.close()

    def _ask(self, path: str, user: int | None) -> None:
        connection = socket.socket(AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_PATIENCE)
            try:
                connection.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):  # there is no process before it
                connection.close()
                return
            _check_user(connection, user)
            self._passed = take(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        logger.info(
            "taking over from process %d",
            self._passed.process,
            extra=fields("taking over", process=self._passed.process),
        )

    def _leave_the_others(self, passed: Passed, sets: Sequence[Sequence[socket.socket]]) -> None:
        own = [listener.getsockname() for each in sets for listener in each]
        for listener in (listener for each in passed.sets for listener in each):
            if listener not in self._taken:
                # A supervisor gives its sockets to each process, to this one as well.
                if listener.getsockname() not in own:
                    where = show(listener.getsockname())
                    logger.warning(
                        "%s is not listened on any more",
                        where,
                        extra=fields("not taken over", address=where),
                    )
                listener.close()

    def _relieve(self, passed: Passed, sets: Sequence[Sequence[socket.socket]]) -> None:
        for listener in [passed.control, *(listener for each in sets for listener in each)]:
            if path_of(listener) is not None:
                _adopt(listener)
        assert self._connection is not None
        with self._connection:
            try:
                self._connection.sendall(SERVING)
            except OSError as error:
                reason = why(error)
                logger.warning(
                    "process %d is gone before it was taken over: %s",
                    passed.process,
                    reason,
                    extra=fields("predecessor gone", process=passed.process, error=reason),
                )
        self._connection = self._passed = None


def _reason(error: OSError) -> str:
    return error.strerror or why(error)


def _check_user(connection: socket.socket, also: int | None) -> None:
    """See to it that the sockets come from who may give them: anybody else could be served then."""
    user = peer_user(connection)
    if sys.platform != "win32" and user not in (None, 0, os.geteuid(), also):
        raise PermissionError(f"the process that listens there is another user's (uid {user})")


def _adopt(listener: socket.socket) -> None:
    try:
        adopt_file(listener)
    except OSError as error:  # somebody has removed it
        logger.warning("%s: %s", show(listener.getsockname()), why(error))


def _add_missing(sets: Sets, wanted: Sequence[Resolved], backlog: int, buffers: int | None) -> None:
    """Listen as well on those addresses that the running process does not listen on."""
    for each in wanted:
        known = [listener for several in sets for listener in several]
        if any(is_at(listener, each) for listener in known):
            continue
        port = each.address[1] or known[0].getsockname()[1]
        try:
            (made,) = listen_on(Address(each.address[0], port), backlog, buffers=buffers)
        except ListenError as error:
            # The machine does not have all addresses of a name.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            raise
        for several in sets:
            several.append(made.dup())
        made.close()


def shared_out(sets: Sets, workers: int) -> Sets:
    """Return the sockets of each worker, of which there can be more or fewer than sets.

    No socket is left out: clients wait in the queue of each. With more workers than sets some
    workers accept from the same sockets.
    """
    return [
        [listener for each in sets[number::workers] for listener in each]
        for number in range(min(workers, len(sets)))
    ]
