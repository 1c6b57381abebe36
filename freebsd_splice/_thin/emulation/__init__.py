"""SO_SPLICE in userspace: the thin calls where the kernel has none.

The contract is FreeBSD's (``docs/so_splice.md``): errno, counts (F4), an exact limit with the rest
left readable (F10), ``idle`` as a time limit (F11), EOF that ends and isn't passed on (F12), an end
by hand with nothing in flight (F35), waiting data moved within the call (F34). A byte leaves the
source only once the drain has taken it: it is peeked at, sent, and only then discarded.

One thread does all of it, the callers' questions included; it sleeps in epoll or kqueue while
there is nothing to move. It keeps nothing of the caller's open: for each move it borrows the
caller's own descriptor for a moment and makes sure that it is still the same socket. So a
``close()`` closes, and ends the splice as in the kernel (F8), and a descriptor that belongs to
another socket by now is never touched.

What can't be kept:

- A spliced source is reported readable by poll, select and epoll, and a drain writable; the
  kernels hide that (F15, F25, F33).
- A splice belongs to this process. It ends when the last descriptor of either socket *here* is
  closed, even if another process has one, and other processes don't see it; a forked child has no
  splices and no counts. Only Linux can tell the descriptors of a socket: elsewhere a splice ends
  with the descriptors it was made with.
- Reading from the source while it is spliced interleaves as in the kernel (F28), but a read in
  another thread at the very moment of a move takes bytes that have just been sent.
- A reset that arrives between the look and the send shows in SO_ERROR no more (F16).
- Windows and other systems without TCP_INFO: a drain that was shut down for writing isn't refused,
  it ends the splice with the first byte, which stays at the source.
- ``select(2)``, ``poll(2)`` (systems without epoll and kqueue): a close takes up to half a second.
- SO_RCVLOWAT of the source reads 1 while it is spliced, so that no byte waits for others, and is
  given back at the end; where by then no descriptor of the socket is left here, it isn't.

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
    """Splice the descriptor source to drain; 0 bytes and 0 seconds mean no limit."""
    _running.get().ask(lambda copier: copier.splice(source, drain, max_bytes, idle))


def unsplice(source: int) -> None:
    """End source's splice."""
    _ask_or_answer(source, lambda copier: copier.unsplice(source), refuse_to_end)


def spliced_bytes(source: int) -> int:
    """Bytes moved by source's splice or its last one."""
    return _ask_or_answer(source, lambda copier: copier.spliced_bytes(source), lambda asked: 0)


def shutdown() -> None:
    """End all splices and the thread, and close every descriptor the emulation has."""
    copier = _running.replace(None)
    if copier is not None:
        copier.stop()


_running = PerProcess(Copier, leave=Copier.drop, alive=lambda copier: not copier.ended)
atexit.register(shutdown)


def _ask_or_answer(
    source: int, question: Callable[[Copier], T], answer: Callable[[socket.socket], T]
) -> T:
    """Ask the thread; where none runs there is no splice, and no need for one."""
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
