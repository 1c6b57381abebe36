"""Ten thousand relays at once: every byte right, no work for idle ones, new clients served."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from freebsd_splice._cli.workers import share_option
from programs.processes import Program, Proxy
from support.descriptors import enough_descriptors
from support.slowness import SLOWNESS

if TYPE_CHECKING:
    from bench import running, scale, usage
else:
    reason = "the clients are the benchmark's, which is not part of the package"
    running = pytest.importorskip("bench.running", reason=reason)
    scale = pytest.importorskip("bench.scale", reason=reason)
    usage = pytest.importorskip("bench.usage", reason=reason)

ROOT = Path(__file__).parents[2]

RELAYS, WORKERS, TARGETS = 10_000, 2, 3

#: The system deals clients out by chance: 5,000 for each worker, and never 6,000. Two descriptors
#: for each, and those that it keeps free to accept. Where workers accept from one socket, one of
#: them may have nearly all.
DESCRIPTORS = 2 * (6_000 if share_option() is not None else RELAYS) + 200

#: A message of a relay that moves, in bytes, and how often each such relay has one.
MESSAGE, TIMES = 12_000, 2

#: Bytes for each relay at most, the system's sockets left aside.
MEMORY = 16_000

#: Sockets of the whole system: of the client, of the proxy two, and of the target.
SOCKETS = 4 * RELAYS + 5_000

IDLE_SECONDS = 5.0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_relays_at_once(
    program: Callable[..., Program],
    proxy: Callable[..., Proxy],
) -> None:
    """Half of them move. What depends on the machine is printed (pytest -rP)."""
    _needs_files(SOCKETS)
    with enough_descriptors(DESCRIPTORS):
        front = _start(program, proxy)
        alone = _accept_latency(front)
        before = usage.usage(front.pid)
        with scale.held(front.port, RELAYS) as crowd:
            scale.answers(crowd, "set up", RELAYS)
            memory = (usage.usage(front.pid).memory - before.memory) / RELAYS
            print(f"memory: {memory / 1e3:.1f} KB for each relay")
            assert memory < MEMORY
            _nothing_is_done_for_idle_relays(front)
            moved = scale.ask(crowd, f"move {TIMES} 1 {MESSAGE}", RELAYS)
            assert sum(each["messages"] for each in moved) == RELAYS // 2 * TIMES
            latency = _accept_latency(front) / alone
            print(f"accept latency: {latency:.2f} of that without relays")
            all_of_them = scale.ask(crowd, "each 64", RELAYS)
            ended = scale.ask(crowd, "end", RELAYS)
            assert sum(each["ended"] for each in ended) == RELAYS
    sent = RELAYS * 8 + sum(each["bytes"] for each in (*moved, *all_of_them))
    _the_log_has_each_byte(front, sent)


def _needs_files(count: int) -> None:
    """Skip where the whole system may have fewer; Linux has a limit by memory, far above."""
    if sys.platform == "linux":
        return
    command = ["sysctl", "-n", "kern.maxfiles"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if found.isdecimal() and int(found) < count:
        pytest.skip(f"kern.maxfiles is {found} here, not {count}")


def _start(program: Callable[..., Program], proxy: Callable[..., Proxy]) -> Proxy:
    path = {"PYTHONPATH": str(ROOT)}
    targets = [
        program("-m", "bench.programs.target", "0", environment=path) for _ in range(TARGETS)
    ]
    ports = [target.expect(r"listening on port (\d+)$")[0][1] for target in targets]
    return proxy(
        "forward",
        *("--workers", str(WORKERS)),
        *("--max-connections", str(RELAYS + 100), "--max-per-client", str(RELAYS + 100)),
        "127.0.0.1:0",
        *(f"127.0.0.1:{port}" for port in ports),
    )


def _accept_latency(front: Proxy) -> float:
    """Seconds from a connect to the answer through a new relay: the median."""
    return float(running.load("connections", front.port, 1, 1.0, seconds=60)["median"])


def _nothing_is_done_for_idle_relays(front: Proxy) -> None:
    """Who looks at all relays has to wake up for it: once a second at most, in each worker."""
    before = usage.usage(front.pid)
    time.sleep(IDLE_SECONDS)
    after = usage.usage(front.pid)
    assert after.cpu - before.cpu < 0.05 * IDLE_SECONDS * SLOWNESS
    if after.switches is not None and before.switches is not None:
        assert after.switches - before.switches < WORKERS * IDLE_SECONDS + 5


def _the_log_has_each_byte(front: Proxy, sent: float) -> None:
    """Of those that were held; the others had a message of 100 bytes."""
    assert front.stop() == 0
    found = front.find(r"(\d+) bytes up, (\d+) bytes down, eof, ")
    pairs = [(int(each[1]), int(each[2])) for each in found]
    held = [pair for pair in pairs if pair != (100, 100)]
    assert len(held) == RELAYS
    assert sum(up for up, _ in held) == sent
    assert sum(down for _, down in held) == sent
    assert not front.find("accepting pauses|WARNING|ERROR|Traceback")
