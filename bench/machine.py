"""The machine that is measured on: what it is, how busy others keep it, which CPUs there are."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Noise:
    """How steady the machine was, by what is looked at between the runs."""

    #: Seconds that one and the same loop took, each time.
    loops: list[float] = field(default_factory=list)
    #: Runnable processes, averaged over a minute: at the start and each time.
    load: list[float] = field(default_factory=list)
    _stolen: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self._stolen = _stolen_and_all()

    def look(self) -> None:
        """Takes about 10 ms."""
        started = time.perf_counter()
        sum(range(400_000))
        self.loops.append(time.perf_counter() - started)
        self.load.append(os.getloadavg()[0])

    def report(self) -> dict[str, float]:
        """``loop spread``: (90th percentile - 10th) / median; ``steal``: of all CPU time."""
        found: dict[str, float] = {}
        if len(self.loops) > 1:
            tenths = statistics.quantiles(self.loops, n=10)
            found["loop spread"] = (tenths[-1] - tenths[0]) / statistics.median(self.loops)
            found["loop worst"] = max(self.loops) / statistics.median(self.loops)
        if self.load:
            found |= {"load at start": self.load[0], "load at most": max(self.load)}
        (stolen, everything), (before, all_before) = _stolen_and_all(), self._stolen
        if everything > all_before:
            found["steal"] = (stolen - before) / (everything - all_before)
        return found


@dataclass(frozen=True)
class Machine:
    """What a reader has to know to compare with another."""

    system: str
    processor: str
    cpus: int
    memory: int
    python: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def machine() -> Machine:
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cpus=len(cpus()) or os.cpu_count() or 1,
        memory=_memory(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
    )


def cpus() -> list[int]:
    """Those that this process may run on, where the system lets one be chosen; else none."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0)) if shutil.which("taskset") else []
    if sys.platform.startswith("freebsd") and shutil.which("cpuset"):
        return list(range(os.cpu_count() or 1))
    return []


def pinned(command: list[str], numbers: list[int] | None) -> list[str]:
    """The command on these CPUs alone; None: wherever the system puts it."""
    if numbers is None:
        return command
    chosen = ",".join(map(str, numbers))
    pin = ["taskset", "-c"] if sys.platform == "linux" else ["cpuset", "-l"]
    return [*pin, chosen, *command]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return _sysctl("hw.model") or platform.processor() or platform.machine()


def _memory() -> int:
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(_sysctl("hw.physmem") or 0)


def _sysctl(name: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True).stdout.strip()
    return ""


def _stolen_and_all() -> tuple[float, float]:
    """Ticks that another guest of the same host had, and all; zeros where the system hides that."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        numbers = [int(number) for number in Path("/proc/stat").read_text().split()[1:9]]
        return numbers[7], sum(numbers)
    return 0.0, 0.0
