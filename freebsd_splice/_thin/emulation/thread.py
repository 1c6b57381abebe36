"""The emulation's thread: its splices, how their bytes are moved, how it waits."""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..._errors import SHORTAGES, refusal
from ..._platform import tcp
from ..._platform.borrowed import Borrowed
from ..._platform.callers_options import (
    lower_read_mark,
    peek_offset,
    restore_read_mark,
    set_peek_offset,
    unread,
)
from ..._platform.shortages import in_spite_of_shortages, raise_if_short
from ..._platform.threads import start as start_thread
from . import readiness
from .postponed import Postponed
from .sockets import (
    PEEK,
    RECEIVE,
    SEND,
    State,
    check_socket,
    does_tls,
    identity,
    is_same,
    look,
    none_to_end,
    own_sockets,
    refuse_to_end,
    tcp_state,
)

__all__ = ["Copier"]

T = TypeVar("T")

PIECE = 65536  # bytes peeked at and sent at a time
TURN = 4 * PIECE  # bytes a splice may move before the others have their turn
#: What says nothing about a socket: the second is a user's limit on epoll's watches.
TRANSIENT = SHORTAGES | {errno.ENOSPC}
SWEEP = 64  # splices remembered before closed ones are looked for
FIRST_TURN = 8 * 1024 * 1024  # bytes within splice(): more than a receive buffer holds (F34)


@dataclass
class _Held:
    """One of the caller's sockets: the descriptor it was last seen at, and its identity."""

    number: int
    socket: Hashable


@dataclass(eq=False)
class _Splice:
    source: _Held
    drain: _Held
    max_bytes: int
    ends_at: float
    moved: int = 0
    over: bool = False
    error: OSError | None = None  # why its socket can't be watched
    armed_at: int | None = None  # the descriptor whose readiness it waits for
    waits_for_drain: bool = False
    moved_now: bool = False  # whether its last turn moved anything
    noticed: Hashable = None  # the socket it waits for, if there is something in its error queue
    owes_mark: int = 0  # the source's SO_RCVLOWAT before, if it was changed

    def allowed(self) -> int:
        """Return how many bytes may be moved at once."""
        return min(PIECE, self.max_bytes - self.moved) if self.max_bytes else PIECE


class Copier:
    """The thread and all its state. Other threads call only ``ask`` and ``stop``."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self._wakened, self._waker = socket.socketpair()
            undo.callback(self._wakened.close)
            undo.callback(self._waker.close)
            self._wakened.setblocking(False)
            self._waker.setblocking(False)
            self._source = Borrowed()  # stands for a source during a move
            undo.callback(self._source.close)
            self._drain = Borrowed()
            undo.callback(self._drain.close)
            self._readiness = readiness.best()
            undo.callback(self._readiness.close)
            self._readiness.arm(self._wakened.fileno(), True, False)
            self._waking = threading.RLock()  # a signal handler may call in the middle
            self._buffer = memoryview(bytearray(PIECE))
            self._questions: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
            self._stopping = False
            self.ended = False
            self._by_source: dict[Hashable, _Splice] = {}  # ended ones too, for their counts (F4)
            self._by_drain: dict[Hashable, _Splice] = {}
            self._waiting: dict[int, set[_Splice]] = {}  # by the descriptor they are armed at
            self._postponed: Postponed[_Splice] = Postponed()
            self._sweep_at = SWEEP
            self._thread = start_thread(self._run, "freebsd_splice emulation")
            undo.pop_all()

    def ask(self, question: Callable[[Copier], T]) -> T:
        """Run ``question`` on the thread, as soon as its current turn is over; return the answer.

        As one thread alone moves bytes, no signal handler's exception can come between a send and
        its discard, and no other call between a check and the action that it allows.
        """
        answer: Future[T] = Future()

        def answer_it() -> None:
            if self.ended:
                answer.set_exception(OSError(errno.ECANCELED, "the emulation was shut down"))
                return
            try:
                answer.set_result(question(self))
            except BaseException as error:
                answer.set_exception(error)

        self._questions.put(answer_it)
        self._wake()
        if self.ended:  # the thread may have emptied its queue for the last time just before
            self._answer_questions()
        return answer.result()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake()
        self._thread.join()

    def drop(self) -> None:
        """Close the copies of a forked child, which has no such thread."""
        self._close(in_child=True)

    # The questions

    def splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
        """Splice, unless one of the sockets is unfit or busy.

        Raises:
            OSError: see ``freebsd_splice.splice``.
        """
        started = time.monotonic()
        self._sweep()
        held_source, source_state = self._inspect(self._source, source, sending=False)
        held_drain, drain_state = self._inspect(self._drain, drain, sending=True)
        _check_source(source_state)
        _check_drain(drain_state)
        for busy in (self._find(held_source), self._by_drain.get(held_drain.socket)):
            if busy is not None:
                self._turn(busy)  # it may have ended unnoticed
                if not busy.over:
                    raise refusal(
                        errno.EBUSY,
                        "the source is spliced already, or the drain is the drain of another"
                        " splice; unsplice(source) ends a splice",
                    )
        made = _Splice(held_source, held_drain, max_bytes, started + idle if idle else float("inf"))
        with self._borrow(self._source, source) as borrowed:
            made.owes_mark = lower_read_mark(borrowed)
        former = self._find(held_source)
        if former is not None:
            del self._by_source[former.source.socket]
        self._by_source[held_source.socket] = made
        self._by_drain[held_drain.socket] = made
        self._turn(made, FIRST_TURN)
        if made.error is not None:
            self._end(made)
            raise made.error

    def unsplice(self, source: int) -> None:
        """End the source's splice; raise OSError (ENOTCONN) if it has already ended."""
        with self._borrow(self._source, source) as borrowed:
            found = self._find(_Held(source, identity(borrowed)))
            if found is None:
                refuse_to_end(borrowed)
        self._turn(found)
        if found.over:
            raise none_to_end()
        self._end(found)

    def spliced_bytes(self, source: int) -> int:
        """Return the bytes that source's splice, or its last one, has moved."""
        with self._borrow(self._source, source) as borrowed:
            check_socket(borrowed)
            found = self._find(_Held(source, identity(borrowed)))
        return found.moved if found is not None else 0

    # Finding the callers' sockets

    @contextlib.contextmanager
    def _borrow(self, borrowed: Borrowed, number: int) -> Iterator[socket.socket]:
        borrowed.take(number)
        try:
            yield borrowed.socket
        finally:
            borrowed.give_back()

    def _inspect(self, borrowed: Borrowed, number: int, *, sending: bool) -> tuple[_Held, State]:
        with self._borrow(borrowed, number) as asked:
            state = tcp_state(asked)
            if does_tls(asked, sending=sending):
                raise refusal(errno.EINVAL, "the kernel does TLS for this socket (KTLS)")
            return _Held(number, identity(asked)), state

    def _find(self, wanted: _Held) -> _Splice | None:
        """Return the splice of a source.

        Without inodes a broken connection is known by its descriptor's number.
        """
        found = self._by_source.get(wanted.socket)
        if found is None and not tcp.HAS_INODES:
            for other in self._by_source.values():
                held = other.source
                if held.number == wanted.number and is_same(held.socket, wanted.socket):
                    return other
        return found

    def _hold(self, borrowed: Borrowed, held: _Held) -> bool:
        """Borrow a socket from any of its descriptors; False if this process has none left."""
        for number in self._numbers(held):
            try:
                borrowed.take(number)
                if is_same(held.socket, identity(borrowed.socket)):
                    held.number = number
                    return True
            except OSError as error:  # the number is closed
                raise_if_short(error)
        borrowed.give_back()
        return False

    def _numbers(self, held: _Held) -> Iterator[int]:
        yield held.number
        for number, other in own_sockets():
            if other == held.socket and number not in self._own_numbers():
                yield number

    def _own_numbers(self) -> tuple[int, int]:
        """Return the descriptors that the thread borrows with, which aren't the caller's."""
        return self._source.socket.fileno(), self._drain.socket.fileno()

    def _is_at(self, held: _Held) -> bool:
        try:
            with self._borrow(self._source, held.number) as asked:
                return is_same(held.socket, identity(asked))
        except OSError as error:
            return error.errno in SHORTAGES  # which say nothing about the socket

    def _sweep(self) -> None:
        """Forget the splices whose source is closed, each time their number may have doubled."""
        if len(self._by_source) < self._sweep_at:
            return
        open_here = {held for _, held in own_sockets()}
        for key, known in list(self._by_source.items()):
            if key not in open_here and not self._is_at(known.source):
                self._end(known)
                del self._by_source[key]
        self._sweep_at = max(SWEEP, 2 * len(self._by_source))

    # Moving

    def _turn(self, splice: _Splice, most: int = TURN) -> None:
        """Move what can be moved now; then wait for what is missing, or end."""
        for _ in range(2):  # a descriptor closed in between: once more with another one
            if splice.over:
                return
            splice.error = None
            try:
                goes_on = self._move(splice, splice.moved + most)
            except OSError:  # a shortage's
                self._postponed.put_off(splice, anew=splice.moved_now)
                return
            if not goes_on:
                self._end(splice)
                return
            try:
                self._arm(splice)
            except OSError as error:
                splice.error = error
            else:
                self._postponed.forget(splice)
                return
        if splice.error is not None and splice.error.errno in TRANSIENT:
            # Nobody would hear that it has ended, and its peers would wait.
            self._postponed.put_off(splice, anew=splice.moved_now)
        else:
            self._end(splice)

    def _move(self, splice: _Splice, stop_at: int) -> bool:
        """Move until nothing is left to move or stop_at is reached; False: the splice has ended.

        Raises:
            OSError: one of SHORTAGES, which say nothing about the sockets.
        """
        splice.moved_now = False
        if time.monotonic() >= splice.ends_at:
            return False
        try:
            return (
                self._hold(self._source, splice.source)
                and self._hold(self._drain, splice.drain)
                and self._move_pieces(splice, stop_at)
            )
        except BlockingIOError:  # somebody else read or wrote in between
            return True
        except OSError as error:
            raise_if_short(error)
            return False
        finally:
            self._source.give_back()
            self._drain.give_back()

    def _move_pieces(self, splice: _Splice, stop_at: int) -> bool:
        """Move bytes, peeking from the first one on even if the caller has set SO_PEEK_OFF."""
        source, before = self._source.socket, splice.moved
        offset = peek_offset(source)
        if offset >= 0:
            set_peek_offset(source, -1)
        try:
            return self._move_from_start(splice, stop_at)
        finally:
            moved = splice.moved - before
            splice.moved_now = moved > 0
            if offset >= 0:  # as it would be had the caller read these bytes
                set_peek_offset(source, max(0, offset - moved))

    def _move_from_start(self, splice: _Splice, stop_at: int) -> bool:
        source, drain = self._source.socket, self._drain.socket
        splice.waits_for_drain = False
        splice.noticed = None
        if tcp_state(drain) is not State.OPEN:
            return False
        while splice.moved < stop_at:
            seen = look(source, drain)
            if seen.drain_broken or (seen.source_broken and not unread(source)):
                return False
            if not (seen.readable or seen.source_broken):
                splice.noticed = splice.source.socket if seen.source_notices else None
                return True
            size = source.recv_into(self._buffer[: splice.allowed()], 0, PEEK)
            if size == 0:
                return False
            if not seen.writable:
                splice.waits_for_drain = True
                splice.noticed = splice.drain.socket if seen.drain_notices else None
                return True
            sent = drain.send(self._buffer[:size], SEND)
            splice.moved += sent
            self._discard(source, sent)
            if splice.moved == splice.max_bytes:
                return False
        return True

    def _discard(self, source: socket.socket, size: int) -> None:
        while size:
            # These bytes were sent: whatever stayed here would be sent a second time.
            got = in_spite_of_shortages(partial(source.recv_into, self._buffer[:size], 0, RECEIVE))
            if got == 0:
                return
            size -= got

    def _end(self, splice: _Splice) -> None:
        splice.over = True
        self._postponed.forget(splice)
        self._disarm(splice)
        self._give_mark_back(splice)
        if self._by_drain.get(splice.drain.socket) is splice:
            del self._by_drain[splice.drain.socket]

    def _give_mark_back(self, splice: _Splice) -> None:
        hold = partial(self._hold, self._source, splice.source)
        if splice.owes_mark and in_spite_of_shortages(hold):
            restore_read_mark(self._source.socket, splice.owes_mark)
            self._source.give_back()
        splice.owes_mark = 0

    # Waiting

    def _arm(self, splice: _Splice) -> None:
        held = splice.drain if splice.waits_for_drain else splice.source
        if splice.armed_at is not None and splice.armed_at != held.number:
            self._disarm(splice)
        splice.armed_at = held.number
        self._waiting.setdefault(held.number, set()).add(splice)
        try:
            self._arm_all(held.number)
        except OSError:
            self._disarm(splice)
            raise

    def _disarm(self, splice: _Splice) -> None:
        number, splice.armed_at = splice.armed_at, None
        if number is None:
            return
        self._waiting[number].discard(splice)
        if not self._waiting[number]:  # otherwise the others are woken once without need
            del self._waiting[number]
            self._readiness.disarm(number)

    def _arm_all(self, number: int) -> None:
        """Register a descriptor once for all splices that read or write there."""
        waiting = self._waiting[number]
        noticed = {splice.noticed for splice in waiting}
        self._readiness.arm(
            number,
            any(not splice.waits_for_drain for splice in waiting),
            any(splice.waits_for_drain for splice in waiting),
            # A splice that has more to move, or was changed meanwhile, must be served at once.
            next(iter(noticed)) if None not in noticed else None,
            any(splice.moved_now for splice in waiting),
        )

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                for number in self._readiness.wait(self._postponed.seconds()):
                    self._serve(number)
                    self._answer_questions()
                for splice in self._postponed.due():
                    self._turn(splice)
                    self._answer_questions()
        finally:
            for splice in self._by_source.values():
                self._give_mark_back(splice)
            with self._waking:
                self.ended = True
                self._close()
            self._answer_questions()

    def _serve(self, number: int) -> None:
        if number == self._wakened.fileno():
            with contextlib.suppress(BlockingIOError):
                in_spite_of_shortages(partial(self._wakened.recv, 4096))
            in_spite_of_shortages(partial(self._readiness.arm, number, True, False))
            return
        waiting = self._waiting.pop(number, set())
        for splice in waiting:
            splice.armed_at = None
        for splice in waiting:
            self._turn(splice)

    def _answer_questions(self) -> None:
        with contextlib.suppress(queue.Empty):
            for _ in range(self._questions.qsize()):  # later ones wait, or this might never end
                self._questions.get_nowait()()

    def _wake(self) -> None:
        with self._waking, contextlib.suppress(BlockingIOError):  # full: the thread is awake anyway
            if not self.ended:
                in_spite_of_shortages(partial(self._waker.send, b"!"))

    def _close(self, in_child: bool = False) -> None:
        self._readiness.close(in_child)
        for owned in (self._source, self._drain, self._wakened, self._waker):
            owned.close()


def _check_source(state: State) -> None:
    if state is State.LISTENING:
        raise refusal(errno.EINVAL, "the source is a listening socket")
    if state is State.CLOSED:
        raise refusal(errno.ENOTCONN, "the source isn't connected")


def _check_drain(state: State) -> None:
    """Refuse the drains that the thin calls refuse on a kernel, which would destroy bytes (F21)."""
    if state is State.LISTENING:
        raise refusal(errno.EINVAL, "the drain is a listening socket")
    if state is State.CLOSED:
        raise refusal(errno.ENOTCONN, "the drain isn't connected")
    if state is State.CONNECTING:
        raise refusal(errno.ENOTCONN, "the drain is still connecting; wait until it is writable")
    if state is State.SHUT_DOWN:
        raise refusal(errno.EPIPE, "the drain was shut down for writing")
