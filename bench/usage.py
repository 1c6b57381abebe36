"""What a process and all its descendants use: CPU, memory, descriptors, context switches."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: The kernel's own workers for SO_SPLICE, by the names that ps(1) shows.
KERNEL_WORKERS = ("so_splice", "[so_splice]", "sosplice", "[sosplice]")


class Usage(NamedTuple):
    """Of a whole tree of processes; None where this system doesn't say."""

    #: User and system seconds, children that have ended included where the system counts them.
    cpu: float
    #: Resident memory, bytes.
    memory: int
    descriptors: int | None
    switches: int | None
    threads: int | None


def usage(pid: int) -> Usage:
    """Of that process and its descendants, those that have ended as well."""
    return _linux(pid) if sys.platform == "linux" else _bsd(pid)


def kernel_memory() -> int | None:
    """Bytes that the kernel has for its own objects, of which sockets are some; None: not known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("Slab:"):
                return int(line.split()[1]) << 10
    return None


def kernel_splicing_cpu() -> float:
    """CPU seconds of the kernel's own splicing threads since the system started; 0 on Linux."""
    if sys.platform == "linux":
        return 0.0
    return sum(row.cpu for row in _ps() if row.command in KERNEL_WORKERS)


if sys.platform == "linux":
    TICKS = os.sysconf("SC_CLK_TCK")

    def _linux(pid: int) -> Usage:
        cpu = 0.0
        memory = descriptors = switches = threads = 0
        for each in _linux_tree(pid):
            directory = Path("/proc", str(each))
            # A process may end meanwhile; its parent's figures have its CPU then.
            with contextlib.suppress(OSError):
                # The name may have spaces and brackets.
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                own, children = (sum(map(int, fields[n : n + 2])) for n in (11, 13))
                # The one counts in ticks, the other leaves out the threads that have ended.
                cpu += max(own / TICKS, _linux_live_threads(directory)) + children / TICKS
                threads += int(fields[17])
                memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                descriptors += len(os.listdir(directory / "fd"))
                switches += sum(_linux_switches(task) for task in (directory / "task").iterdir())
        return Usage(cpu, memory, descriptors, switches, threads)

    def _linux_live_threads(directory: Path) -> float:
        """CPU seconds, to the nanosecond."""
        tasks = (directory / "task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def _linux_tree(pid: int) -> Iterator[int]:
        yield pid
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    yield from _linux_tree(int(child))

    def _linux_switches(task: Path) -> int:
        with contextlib.suppress(OSError):  # it may end meanwhile
            lines = (task / "status").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        return 0

else:

    def _linux(pid: int) -> Usage:
        raise NotImplementedError


class _Row(NamedTuple):
    pid: int
    parent: int
    #: Bytes.
    memory: int
    cpu: float
    command: str


def _ps() -> list[_Row]:
    """All processes, by what ps(1) of FreeBSD, OpenBSD and macOS has in common."""
    threads = "k" if sys.platform.startswith("openbsd") else ""  # the kernel's own as well
    command = ["ps", f"-ax{threads}o", "pid=,ppid=,rss=,time=,comm="]
    rows = []
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        pid, parent, memory, cpu, name = line.split(None, 4)
        rows.append(_Row(int(pid), int(parent), int(memory) << 10, _seconds(cpu), name.strip()))
    return rows


def _seconds(text: str) -> float:
    """Of 1:02.34, 3:01:02 or 1-03:01:02."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part.replace(",", "."))
    return seconds + 86_400 * int(days or 0)


def _bsd(pid: int) -> Usage:
    rows = _ps()
    tree, grown = {pid}, True
    while grown:
        more = {row.pid for row in rows if row.parent in tree} - tree
        tree |= more
        grown = bool(more)
    own = [row for row in rows if row.pid in tree]
    return Usage(
        sum(row.cpu for row in own),
        sum(row.memory for row in own),
        _bsd_descriptors(tree),
        _bsd_switches(tree),
        None,
    )


def _bsd_descriptors(tree: set[int]) -> int | None:
    listers = {"freebsd": ["procstat", "-f"], "openbsd": ["fstat", "-p"]}
    command = next((listers[name] for name in listers if sys.platform.startswith(name)), None)
    if command is None:
        return None
    count = 0
    for pid in tree:
        with contextlib.suppress(OSError):
            run = subprocess.run([*command, str(pid)], capture_output=True, text=True)
            count += max(0, len(run.stdout.splitlines()) - 1)  # the first line is the heading
    return count


def _bsd_switches(tree: set[int]) -> int | None:
    pids = ",".join(map(str, tree))
    run = subprocess.run(["ps", "-o", "nvcsw=,nivcsw=", "-p", pids], capture_output=True, text=True)
    numbers = run.stdout.split()
    return sum(map(int, numbers)) if run.returncode == 0 and numbers else None
