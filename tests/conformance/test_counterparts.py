"""Cases that the kernels' own test suites ask for and that stand nowhere else here."""

from __future__ import annotations

import os
import random
import select
import sys
from typing import Any

import pytest

from freebsd_splice import Reason, Splice

from .backends import Served, counterpart, not_on
from .harness import DEADLINE, Harness
from .thin import Thin

USERSPACE = ("userspace", "os.splice", "copy")
NO_KERNEL = "there is no splice of the kernel's"


@counterpart("OpenBSD: limits with a sleeping client, relay, server")
@pytest.mark.parametrize("late", ["client", "relay", "server"])
@pytest.mark.parametrize("limit", [1, 10_000, 60_000])
def test_a_limit_holds_whoever_is_late(
    served: Served, harness: Harness, late: str, limit: int
) -> None:
    """F10"""
    source, client = harness.pair()
    drain, server = harness.pair()
    data = random.Random(limit).randbytes(limit + 5)
    if late == "client":
        splice = Splice(source, drain, max_bytes=limit)
        harness.sleep(0.02)
        first = min(limit // 2, 10_000)
        client.write(data[:first])
        harness.sleep(0.02)
        writer = harness.in_background(client.write, data[first:])
    else:
        writer = harness.in_background(client.write, data)
        harness.until(lambda: harness.readable(source), "data waiting")
        splice = Splice(source, drain, max_bytes=limit)
        if late == "server":
            harness.until(lambda: splice.bytes > 0, "a first byte")
            harness.sleep(0.02)
    assert server.read(limit) == data[:limit]
    outcome = splice.wait(DEADLINE)
    assert (outcome.reason, outcome.bytes) == (Reason.LIMIT, limit)
    assert harness.waiting(source, 5) == data[limit:]
    writer.join()


@counterpart("OpenBSD: short splices")
def test_many_short_splices_follow_each_other(served: Served, harness: Harness) -> None:
    """F10"""
    source, client = harness.pair()
    drain, server = harness.pair(small_buffers=True)
    data = random.Random(7).randbytes(30_000)
    writer = harness.in_background(client.write, data)
    got, chance = b"", random.Random(8)
    while len(got) < len(data):
        part = min(chance.choice([1, 7, 300, 3_000]), len(data) - len(got))
        assert Splice(source, drain, max_bytes=part).wait(DEADLINE).reason is Reason.LIMIT
        got += server.read(part)
    assert got == data
    writer.join()


@counterpart("OpenBSD: unsplice")
@not_on("os.splice", "copy", because=NO_KERNEL)
def test_somebody_elses_unsplice_is_told_apart(served: Served, harness: Harness) -> None:
    source, client = harness.pair()
    drain, server = harness.pair()
    splice = Splice(source, drain)
    client.write(b"before")
    assert server.read(6) == b"before"
    harness.unsplice(source)
    outcome = splice.wait(DEADLINE)
    assert (outcome.reason, outcome.bytes) == (Reason.UNSPLICED, 6)
    client.write(b"after")
    assert harness.waiting(source, 5) == b"after"


@counterpart("OpenBSD: reading and writing on spliced sockets", "FreeBSD: non-blocking")
def test_reading_and_writing_spliced_sockets_is_allowed(thin: Thin, harness: Harness) -> None:
    """F28"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    with pytest.raises(BlockingIOError):
        source.recv(1)
    drain.send(b"ours, ")
    assert server.read(6) == b"ours, "
    client.write(b"theirs")
    assert server.read(6) == b"theirs"
    source.send(b"back")
    assert client.read(4) == b"back"
    thin.is_live(source)


@counterpart("OpenBSD: unsplice from a forked process")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@not_on("model", because="it has neither threads nor processes of its own")
@not_on("userspace", because="an emulated splice belongs to the process that made it")
def test_a_forked_process_ends_its_parents_splice(thin: Thin, harness: Harness) -> None:
    """F8"""
    (source, client), (drain, server) = harness.pair(), harness.pair()
    thin.splice(source, drain)
    child = os.fork()
    if child == 0:
        try:
            thin.unsplice(source)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with thin.refused(thin.none_to_end):
        thin.unsplice(source)
    client.write(b"stays")
    assert harness.waiting(source, 5) == b"stays"
    assert server.has_nothing_to_read()


@counterpart("FreeBSD: kevent")
@not_on("model", because="the facts table shows it there, event by event")
@not_on("userspace", because="userspace can't hide readiness (F33)")
def test_kevent_is_silent_while_it_lives_and_fires_at_its_end(thin: Thin, harness: Harness) -> None:
    """F15, F19"""
    kq: Any = select
    (source, client), (drain, server) = harness.pair(), harness.pair()
    queue = kq.kqueue()
    add = kq.KQ_EV_ADD | kq.KQ_EV_CLEAR
    queue.control(
        [
            kq.kevent(source.fileno(), kq.KQ_FILTER_READ, add),
            kq.kevent(drain.fileno(), kq.KQ_FILTER_WRITE, add),
        ],
        2,
        0,
    )
    queue.control(None, 2, 0)
    thin.splice(source, drain)
    client.write(b"12345")
    assert server.read(5) == b"12345"
    assert queue.control(None, 2, 0.1) == []
    thin.unsplice(source)
    fired = queue.control(None, 2, DEADLINE)
    assert [event.filter for event in fired] == [kq.KQ_FILTER_WRITE]
    queue.close()


@counterpart("FreeBSD: capsicum")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@not_on("model", "userspace", because="Capsicum is FreeBSD's kernel's")
@pytest.mark.skipif(not sys.platform.startswith("freebsd"), reason="Capsicum is FreeBSD's")
def test_a_splice_in_capability_mode(thin: Thin, harness: Harness) -> None:
    """F7: descriptors with all rights can be spliced there."""
    import ctypes

    (source, client), (drain, server) = harness.pair(), harness.pair()
    libc = ctypes.CDLL(None)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if libc.cap_enter() == 0:
                thin.splice(source, drain)
                client.write(b"caged")
                status = 0 if server.read(5) == b"caged" else 2
                thin.unsplice(source)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
