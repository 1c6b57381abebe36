"""``freebsd-splice selftest``: whether the package keeps its promises on this machine."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TextIO

from .. import _thin
from .._backend import backend
from . import facts
from .transfers import Plan, TransferError, hostilities, play

#: How many transfers are made, and the seconds for everything, unless the user asks for others.
TRANSFERS, SECONDS = 300, 30.0
#: The facts' share of that time. They have to wait for things that don't happen.
FACTS_SHARE = 2 / 3


def selftest(
    transfers: int,
    first_seed: int,
    say: Callable[[str], object],
    *,
    seconds: float | None = SECONDS,
    terminal: TextIO | None = None,
) -> bool:
    """Check the facts and make hostile transfers; return whether everything was as it should be.

    Args:
        transfers: how many transfers.
        first_seed: the seed of the first transfer; the next has the next number.
        say: is called with each line of the report.
        seconds: once they have passed, nothing more is begun; None: no such limit.
        terminal: shows the progress, where it is a terminal.

    Raises:
        OSError, ValueError: there is no backend to test.
    """
    chosen = backend()
    say(f"Backend: {chosen.name} ({chosen.reason}).")
    began = time.monotonic()
    allowed = float("inf") if seconds is None else seconds
    show = _Counter(terminal)
    try:
        facts = _run_facts(chosen.name == "kernel", say, began + allowed * FACTS_SHARE, show)
        wrong = _play_transfers(
            chosen.name == "kernel", transfers, first_seed, say, began + allowed, show
        )
    finally:
        show.clear()
    say(_verdict(chosen.name, facts["differs"], wrong))
    return not wrong and not facts["differs"]


class _Counter:
    """A line on a terminal that is overwritten; in pipes and files it doesn't appear."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._width = 0

    def __call__(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write("\r" + text.ljust(self._width))
            self._stream.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Remove the line; call it before anything else is written there."""
        if self._width:
            self("")
            self("")


def _run_facts(
    kernel: bool, say: Callable[[str], object], until: float, show: _Counter
) -> Counter[str]:
    """Check the facts: on the kernel all of them, in userspace what the thin functions promise."""
    stopped = ""

    def goes_on(number: int, of: int) -> bool:
        nonlocal stopped
        show(f"fact {number} of {of}")
        if time.monotonic() < until:
            return True
        stopped = f", {number - 1} of {of} checked in the time allowed"
        return False

    lines: list[str] = []
    counts = facts.run_facts(lines.append, facts.KernelRig if kernel else EmulationRig, goes_on)
    show.clear()
    shown = False
    for line in lines:  # only facts that differ are shown
        shown = line.startswith("differs") or (shown and line.startswith(" "))
        if shown:
            say(line)
    say(f"Facts: {counts['ok']} hold, {counts['differs']} differ{stopped}.")
    return counts


class EmulationRig(facts.KernelRig):
    """Real sockets of this machine, with the thin functions in place of the kernel's call.

    The answers of the calls and the fate of the bytes are the same as with the kernel. Events and
    poll(2) differ: in userspace the readiness of a spliced socket can't be hidden (F33).
    """

    system, release = "FreeBSD", (15, 1)

    def shows(self, fact: facts.Fact) -> facts.Fact | None:
        if fact.raw:
            return None
        return dataclasses.replace(fact, events=None, source=None, drain=None, errors=None)

    def seen_count(self) -> int:
        return _thin.spliced_bytes(self.source)

    def _open_kqueue(self) -> Any:
        return None

    def _set(self, source: int, drain: int, max: int = 0, idle: float = 0.0) -> None:
        _thin.splice(source, drain, max_bytes=max, idle=idle)

    def _end(self, source: int) -> None:
        _thin.unsplice(source)


def _play_transfers(
    kernel: bool,
    count: int,
    first_seed: int,
    say: Callable[[str], object],
    until: float,
    show: _Counter,
) -> int:
    """Make the transfers, at least one; return how many went wrong."""
    failures: list[str] = []
    played: Counter[str] = Counter()
    began = time.monotonic()
    for number in range(1, count + 1):
        if played and time.monotonic() >= until:
            break
        show(f"transfer {number} of {count}")
        plan = Plan(first_seed + number - 1, hostilities(kernel))
        try:
            outcome = play(plan)
            if (outcome.backend == "kernel") != kernel:
                raise TransferError(f"served by {outcome.backend}: {outcome.fallback}")
        except (TransferError, OSError) as error:
            failures.append(f"{plan}: {error}")
        played[plan.hostility] += 1
    show.clear()
    for failure in failures:
        say(f"WRONG: {failure}")
    done = sum(played.values())
    took = f"in {time.monotonic() - began:.1f} s"
    how_many = f"{count} {took}" if done == count else f"{done} of {count} {took}, the time allowed"
    kinds = ", ".join(f"{times} {name}" for name, times in sorted(played.items()))
    say(f"Hostile transfers: {how_many} ({kinds}).")
    return len(failures)


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
