"""Relays that are held: what each of them takes, what all of them cost, and who pays for them."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from functools import partial

from .cases import Case, Metric, Settings, Values
from .peers import DIRECT, Peer, descriptors
from .running import Relaying, echo_target, line_of, load, relaying, settled, started_load, tell
from .usage import Usage, kernel_memory

METRICS = (
    Metric("memory", "KB/relay", more_is_better=False),
    Metric("descriptors", "/relay", more_is_better=False),
    Metric("threads", "/relay", more_is_better=False, shown=False),
    Metric("CPU", "ms/s, all idle", more_is_better=False),
    Metric("CPU, half of them moving", "ms, of a second's messages", more_is_better=False),
    Metric("context switches", "/s, all idle", more_is_better=False),
    Metric("set-up", "µs/relay", more_is_better=False),
    Metric("a connection more", "of one while none is held", more_is_better=False),
    Metric("then a byte each", "µs/relay", more_is_better=False),
    Metric("kernel memory", "KB/relay, all four sockets", more_is_better=False, shown=False),
    Metric("start", "ms, until it listens", more_is_better=False, shown=False),
    Metric("memory without relays", "MB, of all its processes", more_is_better=False, shown=False),
    Metric("relays", "", more_is_better=True, shown=False),
    Metric("workers", "", more_is_better=True, shown=False),
)

#: Of those relays that can have several.
WORKERS = 2

#: How many connections a process of the load holds at most.
HELD_BY_A_PROCESS = 4_500

#: Of each relay, at most: two sockets, and what it needs besides while it moves.
DESCRIPTORS = 3

#: Threads and processes in all, at most: many systems have numbers for 32,768.
TASKS = 10_000

#: What moves: a message of so many bytes on every second connection, each so many seconds.
MESSAGE, EVERY = 256, 2.0


def cases(settings: Settings) -> list[Case]:
    found = []
    seconds = 0.5 if settings.quick else 5 * settings.seconds
    for number in settings.held[:1] if settings.quick else settings.held:
        peers = {
            peer.name: partial(_measure, seconds, number, peer)
            for peer in settings.peers
            if peer.name != DIRECT and _can_hold(peer, number)
        }
        if peers:
            found.append(Case("scale", f"{number} relays", METRICS, peers))
    return found


def _can_hold(peer: Peer, number: int) -> bool:
    # All clients are one address's, which has no more ports.
    processes = _workers(peer) if peer.processes else 1
    most = min((descriptors() - 100) * processes // DESCRIPTORS, 20_000)
    return number <= most and number * peer.tasks <= TASKS


def _workers(peer: Peer) -> int:
    return WORKERS if peer.scales else 1


def _measure(seconds: float, number: int, peer: Peer) -> Values:
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(echo_target())
        started = time.perf_counter()
        relay = stack.enter_context(relaying(peer, target, workers=_workers(peer)))
        start = time.perf_counter() - started
        assert relay.relay is not None
        # What it needs once, for its first connections, is no cost of a relay's.
        alone = load("connections", relay.port, 1, seconds / 5, seconds=seconds)["median"]
        settled(relay)
        before, kernel_before = relay.relay.usage(), kernel_memory()
        crowd = stack.enter_context(held(relay.port, number))
        values = {"set-up": max(answers(crowd, "set up", number)) / number * 1e6}
        settled(relay)
        idle, kernel = relay.relay.usage(), kernel_memory()
        values |= _idle(relay, seconds)
        more = load("connections", relay.port, 1, seconds / 5, seconds=seconds)["median"]
        settled(relay)
        values["CPU, half of them moving"] = _moving(relay, max(seconds, EVERY), crowd, number)
        moved = max(each["seconds"] for each in ask(crowd, "each 1", number))
        ask(crowd, "end", number)
    values["a connection more"] = more / alone
    values["then a byte each"] = moved / number * 1e6
    values |= {"relays": number, "workers": _workers(peer), "start": start * 1e3}
    if kernel is not None and kernel_before is not None:
        values["kernel memory"] = (kernel - kernel_before) / number / 1e3
    values["memory without relays"] = before.memory / 1e6
    values["memory"] = (idle.memory - before.memory) / number / 1e3
    for name in ("descriptors", "threads"):
        now, then = getattr(idle, name), getattr(before, name)
        if now is not None and then is not None:
            values[name] = (now - then) / number
    return values


@contextlib.contextmanager
def held(port: int, number: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes (crowd.py) that hold so many connections to a relay."""
    with contextlib.ExitStack() as stack:
        crowd = []
        for first in range(0, number, HELD_BY_A_PROCESS):
            share = min(HELD_BY_A_PROCESS, number - first)
            process = started_load(port, share, first, program="crowd")
            crowd.append(stack.enter_context(process))
        yield crowd


def ask(crowd: list[subprocess.Popen[str]], line: str, number: int) -> list[dict[str, float]]:
    """Have all processes do something at once, and wait until they have."""
    for process in crowd:
        tell(process, line)
    return [line_of(process, _patience(number)) for process in crowd]


def answers(crowd: list[subprocess.Popen[str]], name: str, number: int) -> list[float]:
    """That figure in the next line of each."""
    return [line_of(process, _patience(number))[name] for process in crowd]


def _patience(number: int) -> float:
    return 60 + number / 20


def _idle(relay: Relaying, seconds: float) -> Values:
    """What it uses in that time."""
    before = _now(relay)
    time.sleep(seconds)
    after = _now(relay)
    elapsed = after[1] - before[1]
    values = {"CPU": (after[0].cpu - before[0].cpu) / elapsed * 1e3}
    if after[0].switches is not None and before[0].switches is not None:
        values["context switches"] = (after[0].switches - before[0].switches) / elapsed
    return values


def _moving(
    relay: Relaying, seconds: float, crowd: list[subprocess.Popen[str]], number: int
) -> float:
    """Milliseconds of CPU for a second's messages, however late a busy machine sends them."""
    before = relay.cpu()
    ask(crowd, f"move {seconds} {EVERY} {MESSAGE}", number)
    return (settled(relay) - before) / seconds * 1e3


def _now(relay: Relaying) -> tuple[Usage, float]:
    assert relay.relay is not None
    return relay.relay.usage(), time.monotonic()
