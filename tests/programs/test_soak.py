"""All proxies at once, for an hour, under mixed traffic with faults: nothing grows.

Two programs serve all four kinds of proxy. One lives through it all: clients and servers that
reset, stall, half-close, talk nonsense or say nothing, and reloads. The other one has two workers,
of which one is killed again and again, and is replaced by --takeover again and again. After each
round of traffic, with no connection left, the memory, descriptors and threads of the first are
counted; after each such succession, those of the second. What has grown is told from what wavers by
a straight line through the samples: least squares, with its standard error.

FREEBSD_SPLICE_SOAK_SECONDS is how long it lasts. The slopes are printed (pytest -s).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from programs.processes import Served, until
from programs.test_crowd import client_hello
from programs.traffic import Door, Traffic, by_connect, by_hello, by_socks5, plainly
from support.slope import Slope, slope_of

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")
pytest.importorskip("h11")

SECONDS = float(os.environ.get("FREEBSD_SPLICE_SOAK_SECONDS", "3600"))
#: Of traffic between two samples; the connections that are live then end in their own time.
ROUND_SECONDS = 5.0
CLIENTS = 8

#: What may be grown by for each thousand connections of the program that lives through it all:
#: kilobytes, descriptors, threads. 64 bytes a connection are less than any object that stays.
BOUNDS = {"memory": 64.0, "descriptors": 0.1, "threads": 0.1}
#: And for each succession of workers and of whole programs.
BOUNDS_OF_A_SUCCESSION = {"memory": 40.0, "descriptors": 0.05, "threads": 0.05}
#: The first part of the samples, while caches fill and memory is got for the first time.
WARMING_UP = 0.25

PROXIES = """
idle-timeout = 5
handshake-timeout = 3
[[forward]]
listen = "127.0.0.1:0"
target = "127.0.0.1:{target}"
[[connect]]
listen = "127.0.0.1:0"
rules = ["allow 127.0.0.1:{target}", "deny *"]
[[socks5]]
listen = "127.0.0.1:0"
rules = ["allow 127.0.0.1:{target}", "deny *"]
[[sni]]
listen = "127.0.0.1:0"
default = "127.0.0.1:{target}"
"""

HANDED_OVER = "another process has taken the listening sockets over"


class Sample(NamedTuple):
    """What all processes of a program have together; memory is in kilobytes."""

    memory: float
    descriptors: float
    threads: float


class Watched:
    """A program with all proxies, and its samples."""

    def __init__(self, start: Callable[[], Served]) -> None:
        self._start = start
        self.run = start()
        self.doors = self._doors()
        self.connections = self._sockets()  # with no client: those that listen, and its own
        self.work: list[float] = []
        self.samples: list[Sample] = []

    def _doors(self) -> list[Door]:
        opening = [
            ("forward", plainly),
            ("connect", by_connect),
            ("socks5", by_socks5),
            ("sni", by_hello(client_hello())),
        ]
        ports = self.run.ports(4)
        return [Door(name, port, way) for (name, way), port in zip(opening, ports, strict=True)]

    def sample(self, work: float) -> None:
        """Count what it has, once no connection is left: one that stays is a failure."""
        until(lambda: self._sockets() <= self.connections)
        self.work.append(work)
        self.samples.append(
            Sample(
                sum(_memory(pid) for pid in self._processes()),
                sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self._processes()),
                sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self._processes()),
            )
        )

    def slopes(self) -> dict[str, Slope]:
        since = int(len(self.samples) * WARMING_UP)
        return {
            name: slope_of(
                self.work[since:], [getattr(each, name) for each in self.samples[since:]]
            )
            for name in Sample._fields
        }

    def reload(self) -> None:
        times = len(self.run.find(r"INFO reloaded$")) + 1
        self.run.reload(self.run.path.read_text(), times=times)

    def kill_a_worker(self) -> None:
        before = _children(self.run.pid)
        times = len(self.run.find("has died: signal 9")) + 1
        os.kill(random.choice(sorted(before)), signal.SIGKILL)
        self.run.expect("has died: signal 9", times)
        until(lambda: len(_children(self.run.pid)) == len(before))

    def succeed(self) -> None:
        """Start the next program, which takes over, and see the one before end by itself."""
        before, self.run = self.run, self._start()
        before.expect(HANDED_OVER)
        self.run.ports(4)
        assert before.end() == 0, before.text
        before.close()

    def _processes(self) -> list[int]:
        return [self.run.pid, *sorted(_children(self.run.pid))]

    def _sockets(self) -> int:
        """How many TCP sockets it has."""
        return sum(_tcp_sockets(pid) for pid in self._processes())


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process has")
def test_nothing_grows_in_an_hour_of_faults(tmp_path: Path) -> None:
    with ExitStack() as opened:
        traffic = asyncio.run(_soak(opened, tmp_path))
    assert not traffic.wrong, traffic.wrong


async def _soak(opened: ExitStack, directory: Path) -> Traffic:
    async with Traffic() as traffic:

        def start(name: str, *options: str) -> Served:
            text = PROXIES.format(target=traffic.target)
            path = directory / f"{name}.toml"
            return opened.enter_context(closing(Served(path, text, *options)))

        steady = await asyncio.to_thread(Watched, lambda: start("steady"))
        takeover = ("--workers", "2", "--takeover", str(directory / "next"))
        shaken = await asyncio.to_thread(Watched, lambda: start("shaken", *takeover))
        end, seed = time.monotonic() + SECONDS, 0
        while time.monotonic() < end and not traffic.wrong:
            for fault in (shaken.reload, shaken.kill_a_worker, shaken.succeed):
                seed += 1
                # What a killed worker cuts is cut; nothing else may be.
                traffic.may_be_cut = fault == shaken.kill_a_worker
                running = [
                    asyncio.create_task(
                        traffic.run(each.doors, CLIENTS, ROUND_SECONDS, seed + part)
                    )
                    for part, each in enumerate((steady, shaken))
                ]
                await asyncio.sleep(ROUND_SECONDS / 2)  # amid the traffic
                await asyncio.gather(
                    asyncio.to_thread(steady.reload), asyncio.to_thread(fault), *running
                )
                traffic.may_be_cut = False
                await asyncio.to_thread(steady.sample, sum(traffic.done.values()) / 2_000)
            await asyncio.to_thread(shaken.sample, seed / 3)
    _judge("a thousand connections", steady, BOUNDS)
    _judge("a succession", shaken, BOUNDS_OF_A_SUCCESSION)
    print(f"{dict(traffic.done)} connections, {seed // 3} successions")
    assert set(traffic.done) == {door.name for door in steady.doors}
    return traffic


def _judge(unit: str, watched: Watched, bounds: dict[str, float]) -> None:
    slopes = watched.slopes()
    for name, slope in slopes.items():
        last = getattr(watched.samples[-1], name)
        print(f"{name}: {slope.value:+.4f} ± {slope.error:.4f} for {unit}, of {last:.0f}")
    grown = {name: slope for name, slope in slopes.items() if slope.is_above(bounds[name])}
    assert not grown, (grown, watched.samples)


def _children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _memory(pid: int) -> float:
    """Kilobytes of its own: without files' pages, and of those shared with a fork's child in part.

    A library's pages count the less for each process the more processes have it, and would seem to
    grow while other programs on the machine end.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return float(line.split()[1])
    raise AssertionError("no Pss_Anon, which Linux has since 5.3")


def _tcp_sockets(pid: int) -> int:
    ours = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # one that was closed since the folder was listed
            ours.add(os.readlink(link))
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return sum(f"socket:[{line.split()[9]}]" in ours for line in table)


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_a_leak_is_told_from_noise(leak: float) -> None:
    """One of 0.2 of the noise's breadth a sample, over fifty samples."""
    dice = random.Random(7)
    xs = [float(x) for x in range(50)]
    slope = slope_of(xs, [100 + leak * x + dice.uniform(-1, 1) for x in xs])
    assert slope.is_above(0.1) == bool(leak)
    assert abs(slope.value - leak) < 3 * slope.error
    assert 0 < slope.error < 0.02


def test_a_slope_is_that_of_the_least_squares() -> None:
    """Of four points by hand: 1.4, with residuals of 4.2 over 2 degrees of freedom and 5."""
    slope = slope_of([0, 1, 2, 3], [6, 5, 7, 10])
    assert slope.value == pytest.approx(1.4)
    assert slope.error == pytest.approx((4.2 / 2 / 5) ** 0.5)
