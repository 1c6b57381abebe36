"""Random traffic through each mover: every byte right, nothing left behind.

The soak tier moves 10 GB through each mover (FREEBSD_SPLICE_SOAK_GIGABYTES changes that), the slow
tier a fraction.  The seed of a failing round is in its message.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from conformance.backends import MOVERS
from conformance.harness import DEADLINE, Harness
from freebsd_splice import Outcome, Reason, Relay, RelayOutcome
from support.leaks import open_descriptors
from support.platforms import RecordingPlatform, runtime

GIGABYTES = float(os.environ.get("FREEBSD_SPLICE_SOAK_GIGABYTES", "10"))
PATTERN = random.Random(0).randbytes((1 << 20) + 7)  # no power of two: shifts show
TILED = memoryview(PATTERN * 3)
AT_ONCE = 8


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize(
    "gigabytes",
    [
        pytest.param(0.5, marks=[pytest.mark.slow, pytest.mark.timeout(600)], id="slow"),
        pytest.param(GIGABYTES, marks=[pytest.mark.soak, pytest.mark.timeout(0)], id="soak"),
    ],
)
def test_random_traffic(mover: str, gigabytes: float) -> None:
    moved, seed = 0, 0
    with runtime(RecordingPlatform(), mover) as made:
        _run_round(seed, mover)
        steady = len(open_descriptors())
        while moved < gigabytes * 1e9:
            seed += 1
            moved += _run_round(seed, mover)
            # The spare pipes of each worker may come and go; nothing else may.
            assert len(open_descriptors()) <= steady + 2 * 16 * made.platform.cpus(), f"seed {seed}"
        threads = [t.name for t in threading.enumerate() if t.name.startswith("freebsd-splice")]
        assert len(threads) <= made.platform.cpus() + 1


def _run_round(seed: int, mover: str) -> int:
    """Some relays at once; the bytes that they have moved."""
    dice = random.Random(seed)
    with ThreadPoolExecutor(4 * AT_ONCE + AT_ONCE) as pool:
        runs = [
            pool.submit(_run_relay, random.Random(dice.random()), mover, pool)
            for _ in range(AT_ONCE)
        ]
        try:
            return sum(run.result(300) for run in runs)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, mover {mover}") from error


def _run_relay(dice: random.Random, mover: str, pool: ThreadPoolExecutor) -> int:
    harness = Harness()
    try:
        left, client = harness.pair(small_buffers=dice.random() < 0.3)
        right, server = harness.pair(small_buffers=dice.random() < 0.3)
        small = dice.random() < 0.4
        sizes = [int(dice.uniform(0, 1 if small else 30) * 1e6) for _ in range(2)]
        relay = Relay(left, right)
        sides = [client._connection, server._connection]
        cut = dice.random() < 0.25
        stop = threading.Event()
        writers, readers = [], []
        for one, other, size in ((0, 1, sizes[0]), (1, 0, sizes[1])):
            seed = dice.random()
            writers.append(pool.submit(_write, random.Random(seed), sides[one], size, stop))
            readers.append(pool.submit(_read, random.Random(seed), sides[other]))
        if cut:
            wanted = int(dice.random() * sum(sizes))
            harness.until(lambda: relay.done or sum(relay.bytes) >= wanted, "bytes to cut after")
            outcome = relay.cancel()
            stop.set()
            # What was not moved is with us or still at the source; the peers now see the end.
            rests = [
                outcome.left_to_right.unsent + _rest(left),
                outcome.right_to_left.unsent + _rest(right),
            ]
            for ours in (left, right):
                ours.close()
            got = [reader.result(200) for reader in readers]
            for count, rest, result in zip(got, rests, _both(outcome), strict=True):
                assert count <= result.bytes  # the closing may have reset what was on its way
                _check(rest, result.bytes)
            for writer in writers:
                writer.result(200)
        else:
            got = [reader.result(200) for reader in readers]
            outcome = relay.wait(DEADLINE)
            assert outcome.reason is Reason.EOF
            assert got == sizes == [result.bytes for result in _both(outcome)]
        assert {result.mover for result in _both(outcome)} == {mover}
        return sum(result.bytes for result in _both(outcome))
    finally:
        harness.close()


def _both(outcome: RelayOutcome) -> list[Outcome]:
    return [outcome.left_to_right, outcome.right_to_left]


def _write(dice: random.Random, side: socket.socket, size: int, stop: threading.Event) -> None:
    position = 0
    try:
        while position < size and not stop.is_set():
            chunk = min(size - position, int(dice.paretovariate(0.4)) % (1 << 20) + 1)
            start = position % len(PATTERN)
            side.sendall(TILED[start : start + chunk])
            position += chunk
            if dice.random() < 0.01:
                time.sleep(dice.random() * 0.01)  # a pause in the traffic, not a wait
        side.shutdown(socket.SHUT_WR)
    except OSError:
        if not stop.is_set():
            raise


def _read(dice: random.Random, side: socket.socket) -> int:
    position = 0
    while True:
        try:
            data = side.recv(int(dice.paretovariate(0.4)) % (1 << 20) + 1)
        except ConnectionResetError:
            return position  # a cut; whether one was due shows in the count
        if not data:
            return position
        _check(data, position)
        position += len(data)
        if dice.random() < 0.005:
            time.sleep(dice.random() * 0.01)


def _check(data: bytes, position: int) -> None:
    for offset in range(0, len(data), len(PATTERN)):
        part = data[offset : offset + len(PATTERN)]
        start = (position + offset) % len(PATTERN)
        assert part == TILED[start : start + len(part)], f"wrong bytes at {position + offset}"


def _rest(source: socket.socket) -> bytes:
    data = bytearray()
    source.setblocking(False)
    try:
        while piece := source.recv(1 << 20):
            data += piece
    except (BlockingIOError, ConnectionResetError):
        pass
    return bytes(data)
