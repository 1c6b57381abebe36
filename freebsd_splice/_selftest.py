"""``freebsd-splice selftest``: does it hold on this machine, in plain words."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from . import _facts, _thin
from ._backend import backend
from ._selftest_transfers import Plan, TransferError, hostilities, play


def selftest(transfers: int, first_seed: int, say: Callable[[str], object]) -> bool:
    """Play the facts table and that many hostile transfers; whether all was as it should be."""
    chosen = backend()
    say(f"Backend: {chosen.name} ({chosen.reason}).")
    facts = _play_facts(chosen.name == "kernel", say)
    began = time.monotonic()
    failures, played = _play_transfers(chosen.name == "kernel", transfers, first_seed)
    for failure in failures:
        say(f"WRONG: {failure}")
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(played.items()))
    say(f"Hostile transfers: {transfers} in {time.monotonic() - began:.1f} s ({kinds}).")
    say(_verdict(chosen.name, facts["differs"], len(failures)))
    return not failures and not facts["differs"]


def _play_facts(kernel: bool, say: Callable[[str], object]) -> Counter[str]:
    """On the kernel all that can be seen of it; in userspace what the thin functions promise."""
    lines: list[str] = []
    counts = _facts.run(lines.append, _facts.KernelStage if kernel else EmulationStage)
    shown = False
    for line in lines:  # a row that holds needs no line here
        shown = line.startswith("differs") or (shown and line.startswith(" "))
        if shown:
            say(line)
    say(f"Facts: {counts['ok']} hold, {counts['differs']} differ.")
    return counts


class EmulationStage(_facts.KernelStage):
    """This machine's sockets, and the thin functions in place of the kernel's call.

    Events and poll(2) can't be as they are in a kernel (F33); what the calls say and what becomes
    of the bytes is the same.
    """

    system, release = "FreeBSD", (15, 1)

    def plays(self, row: _facts.Row) -> _facts.Row | None:
        if row.raw:
            return None
        return dataclasses.replace(row, events=None, source=None, drain=None, errors=None)

    def seen_count(self) -> int:
        return _thin.spliced_bytes(self.source)

    def _open_kqueue(self) -> Any:
        return None

    def _set(self, source: int, drain: int, max: int = 0, idle: float = 0.0) -> None:
        _thin.splice(source, drain, max_bytes=max, idle=idle)

    def _end(self, source: int) -> None:
        _thin.unsplice(source)


def _play_transfers(kernel: bool, count: int, first_seed: int) -> tuple[list[str], Counter[str]]:
    failures: list[str] = []
    played: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + count):
        plan = Plan(seed, hostilities(kernel))
        try:
            outcome = play(plan)
            if (outcome.backend == "kernel") != kernel:
                raise TransferError(f"served by {outcome.backend}: {outcome.fallback}")
        except (TransferError, OSError) as error:
            failures.append(f"{plan}: {error}")
        played[plan.hostility] += 1
    return failures, played


def _verdict(backend_name: str, differing: int, wrong: int) -> str:
    machine = f"{platform.system()} {platform.release()}"
    if wrong:
        return (
            f"DON'T TRUST IT HERE: {wrong} transfers went wrong. Please report the lines above, "
            "with what 'freebsd-splice info' says."
        )
    if differing:
        return (
            f"No transfer lost a byte, but {differing} facts differ: this is not the system that "
            "the package knows. Please report the lines above."
        )
    moved = "SO_SPLICE" if backend_name == "kernel" else "userspace"
    return (
        f"All is well on {machine}: every byte arrived once and in order through {moved}, and "
        "every end was reported with its true reason."
    )
