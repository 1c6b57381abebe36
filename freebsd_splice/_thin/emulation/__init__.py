"""SO_SPLICE in userspace: the thin calls where the kernel has none.

The contract is FreeBSD's (``docs/so_splice.md``): errno, counts (F4), an exact limit with later
bytes left readable (F10), ``idle`` as a time limit (F11), an EOF that ends the splice and isn't
passed on (F12), an ``unsplice`` with nothing in flight afterwards (F35), waiting data moved within
the call (F34). A byte leaves the source only once the drain has taken it: it is peeked at, sent,
and only then discarded.

One thread moves all bytes and answers the callers' questions; it sleeps in epoll or kqueue while
there is nothing to move. It keeps none of the callers' sockets open: for each move it borrows the
caller's own descriptor for a moment and makes sure that it is still the same socket. So a
``close()`` closes, and ends the splice as in the kernel (F8), and a descriptor that has since been
given to another socket is never touched.

Differences from the kernel:

- poll, select and epoll report a spliced source as readable and a drain as writable; the kernels
  hide that (F15, F25), which an emulation can't do (F33).
- A splice belongs to this process. It ends when this process closes its last descriptor of either
  socket, even if another process has one, and other processes don't see the splice; a forked child
  has no splices and no counts. Only on Linux can the descriptors of a socket be found: elsewhere a
  splice ends with the descriptors it was made with.
- A read from the source while it is spliced interleaves as in the kernel (F28), but a read by
  another thread at the very moment of a move takes bytes that have just been sent.
- A reset that arrives between the poll and the send no longer shows in SO_ERROR (F16).
- Windows and other systems without TCP_INFO: a drain that was shut down for writing isn't refused;
  it ends the splice at the first byte, which stays at the source.
- Systems that have only ``poll(2)`` or ``select(2)``: a close ends the splice up to half a second
  later.
- SO_RCVLOWAT of the source reads 1 while it is spliced, so that no byte waits for others. It is
  restored at the end, unless no descriptor of the socket is left in this process by then.

FreeBSD's early end and lost EOF (F13, F14) are not imitated.
"""

from __future__ import annotations

import atexit
import socket
from collections.abc import Callable
from typing import TypeVar

from ..._platform.borrowed import Borrowed
from ..._platform.process import PerProcess
from .sockets import check_socket, refuse_to_end
from .thread import Copier

__all__ = ["shutdown", "splice", "spliced_bytes", "unsplice"]

T = TypeVar("T")


def splice(source: int, drain: int, max_bytes: int, idle: float) -> None:
    """Splice the descriptor source to the descriptor drain; 0 bytes, 0 seconds: no limit."""
    _running.get().ask(lambda copier: copier.splice(source, drain, max_bytes, idle))


def unsplice(source: int) -> None:
    """End source's splice."""
    _ask_or_answer(source, lambda copier: copier.unsplice(source), refuse_to_end)


def spliced_bytes(source: int) -> int:
    """Return the bytes moved by source's splice, or by its last one."""
    return _ask_or_answer(source, lambda copier: copier.spliced_bytes(source), lambda asked: 0)


def shutdown() -> None:
    """End all splices and the thread, and close every descriptor of the emulation."""
    copier = _running.replace(None)
    if copier is not None:
        copier.stop()


_running = PerProcess(Copier, leave=Copier.drop, alive=lambda copier: not copier.ended)
atexit.register(shutdown)


def _ask_or_answer(
    source: int, question: Callable[[Copier], T], answer: Callable[[socket.socket], T]
) -> T:
    """Ask the thread. If none is running there is no splice: answer here, without starting one."""
    copier = _running.made
    if copier is not None and not copier.ended:
        return copier.ask(question)
    borrowed = Borrowed()
    try:
        borrowed.take(source)
        check_socket(borrowed.socket)
        return answer(borrowed.socket)
    finally:
        borrowed.close()
