"""A worker whose poller lacks memory for a change: nobody else is to be deaf for it."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.harness import Harness
from freebsd_splice._platform.interface import Endpoint, Readiness
from freebsd_splice._userspace.workers import LocalWorker
from support.platforms import RecordingPlatform

READ = Readiness.READ


class ShortPoller:
    """A poller of this machine whose next change of one socket fails.

    Nothing watches that socket then, as with kqueue, where a change is up to three.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        self.refused: list[Endpoint] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        if endpoint in self.refused:
            self._real.forget(endpoint)
            self._fail(endpoint)
        self._real.watch(endpoint, interest)

    def quieten(self, endpoint: Endpoint) -> None:
        if endpoint in self.refused:
            self._fail(endpoint)
        self._real.quieten(endpoint)

    def _fail(self, endpoint: Endpoint) -> None:
        self.refused.remove(endpoint)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


class Waiting:
    """Stands for a flow, of which only the sockets matter here."""

    takes_messages = queued = reads_until_empty = False

    def __init__(self, source: socket.socket, drain: socket.socket) -> None:
        self.source, self.drain = source, drain
        self.turns = 0
        self.drain_is_dead = False

    def turn(self) -> bool:
        self.turns += 1
        return False

    def drain_failed(self) -> None:
        self.drain_is_dead = True

    def drain_has_failed(self) -> bool:
        return True


@pytest.fixture
def poller() -> Iterator[ShortPoller]:
    made = ShortPoller(RecordingPlatform().poller())
    yield made
    assert not made.refused, "what was to fail was never asked for"


@pytest.fixture
def worker(poller: ShortPoller) -> Iterator[Any]:
    class Platform(RecordingPlatform):
        def poller(self, *, few: bool = False) -> Any:
            return poller

    made = LocalWorker(Platform(), None)
    yield made
    made.close()


def test_a_reader_hears_after_its_sockets_writer_was_refused(
    harness: Harness, poller: ShortPoller, worker: Any
) -> None:
    left, near = harness.pair()
    right, _ = harness.pair()
    up, down = Waiting(left, right), Waiting(right, left)
    worker.expect(up, read=True, write=False)
    poller.refused.append(left)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        worker.expect(down, read=True, write=True)
    worker.release(down)
    near.write(b"x")
    harness.until(lambda: worker.turn(0.1) or up.turns, "the reader's turn")
    worker.release(up)


@pytest.mark.skipif(not hasattr(select, "poll"), reason="select(2) sees no idle drain die")
def test_a_drains_death_is_seen_after_its_reader_was_refused(
    harness: Harness, poller: ShortPoller, worker: Any
) -> None:
    left, _ = harness.pair()
    right, far = harness.pair()
    up, down = Waiting(left, right), Waiting(right, left)
    worker.expect(up, read=True, write=False)
    worker.expect(down, read=True, write=False)
    poller.refused.append(right)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        worker.expect(down, read=False, write=True)
    worker.release(down)
    far.reset()
    harness.until(lambda: worker.turn(0.1) or up.drain_is_dead, "the report of the drain's death")
    worker.release(up)


def test_a_release_outlasts_a_shortage(harness: Harness, poller: ShortPoller, worker: Any) -> None:
    left, near = harness.pair()
    right, _ = harness.pair()
    up, down = Waiting(left, right), Waiting(right, left)
    worker.expect(up, read=True, write=False)
    worker.expect(down, read=True, write=True)
    poller.refused += [left, left, right]
    worker.release(down)
    near.write(b"x")
    harness.until(lambda: worker.turn(0.1) or up.turns, "the reader's turn")
    worker.release(up)


def test_a_useless_report_is_quietened_in_spite_of_a_shortage(
    harness: Harness, poller: ShortPoller, worker: Any
) -> None:
    """Raised, it would end the worker's thread, and with it the flows of all others."""
    left, _ = harness.pair()
    right, _ = harness.pair()
    up = Waiting(left, right)
    worker.expect(up, read=True, write=False)
    poller.refused.append(left)
    worker.quieten(left)
    assert up.reads_until_empty
    worker.release(up)
