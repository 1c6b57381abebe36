"""Interference by other threads, programs and peers."""

from __future__ import annotations

import errno
import threading

from freebsd_splice import Reason, Splice, _runtime

from ..rig import Rig
from . import scenario


@scenario()
def the_sockets_are_non_blocking_before_the_kernel_hears_of_them(on: Rig) -> None:
    """F24: a blocking call on a spliced socket halts other splices."""
    on.source.setblocking(True)
    on.drain.setblocking(True)
    on.splice().cancel()
    assert not on.world.blocking_while_spliced
    assert not on.source.endpoint.non_blocking
    assert not on.drain.endpoint.non_blocking


@scenario()
def an_end_waits_for_a_set_under_way(on: Rig) -> None:
    """F35: an end in the middle of the call would answer ENOTCONN, and the splice would live."""
    threads: list[threading.Thread] = []
    ended = threading.Event()

    def end_it() -> None:
        runtime = _runtime.current()
        [splice] = runtime._live

        def cancel() -> None:
            splice.end_for_shutdown()  # afterwards this thread asks nothing of the world
            ended.set()

        threads.append(threading.Thread(target=cancel))
        threads[0].start()
        # Without the lock the end is made at once; with it, after this call has returned.
        ended.wait(0.2)

    on.kernel.during_set = end_it
    splice = Splice(on.source, on.drain)
    threads[0].join(20)
    assert not threads[0].is_alive()
    assert splice.done
    assert not on.world.splices, "a splice is still alive that nobody knows of"


@scenario()
def a_reset_between_the_check_and_the_call(on: Rig) -> None:
    """F22: before 15.1 this spoils the source, and the error says so."""

    def reset() -> None:
        on.receiver.reset()
        on.world.deliver_reset(on.receiver.outgoing)

    on.arrive(b"data")
    on.kernel.before_set = reset
    splice = on.splice()
    outcome = on.ended(splice, Reason.DRAIN_ERROR, 0)
    assert outcome.error is not None
    if on.world.version == "14.3":
        assert outcome.error.errno == errno.ENOTRECOVERABLE
        assert "only closing the source helps" in str(outcome.error)
    else:
        assert isinstance(outcome.error, ConnectionResetError)
        assert on.source.recv(9) == b"data"
