"""The facts about SO_SPLICE (docs/so_splice.md) as a table that can be run.

It uses the standard library alone, and nothing else of the package: it compares the kernel.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable

from .fact import Fact
from .kernel_rig import SLOWNESS, KernelRig, cannot_run
from .running import Result, Rig, run_fact, shown_by
from .table import facts

__all__ = [
    "SLOWNESS",
    "Fact",
    "KernelRig",
    "Result",
    "Rig",
    "cannot_run",
    "facts",
    "main",
    "run_fact",
    "run_facts",
    "shown_by",
]


def run_facts(
    say: Callable[[str], object],
    rigs: Callable[[], Rig] = KernelRig,
    goes_on: Callable[[int, int], bool] = lambda number, of: True,
) -> Counter[str]:
    """Run every fact that such a rig can show; return how many hold, differ, or were not run.

    Args:
        say: is called with a line about each fact.
        rigs: makes a rig for each fact.
        goes_on: is asked before each fact, with its number and the number of facts, whether to
            go on.
    """
    counts: Counter[str] = Counter()
    table = facts()
    for number, fact in enumerate(table, 1):
        if not goes_on(number, len(table)):
            break
        rig = rigs()
        try:
            shown = shown_by(fact, rig)
            if shown is None:
                continue  # the fact is about another system
            if fact.model_only:
                verdict, more = "not run here", [fact.model_only]
            else:
                more = run_fact(shown, rig).differs
                verdict = "differs" if more else "ok"
        except (AssertionError, OSError) as error:
            verdict, more = "differs", [f"{type(error).__name__}: {error}"]
        finally:
            rig.close()
        counts[verdict] += 1
        say(f"{verdict:<16}{fact.numbers}: {fact.name}")
        for line in more:
            say(f"{'':<16}  {line}")
    return counts


def main() -> int:
    """Run the table on this kernel and return the exit status.

    0: all facts hold; 1: some differ; 2: the facts can't be run here.
    """
    reason = cannot_run()
    if reason is not None:
        print(f"The facts can't be run here: {reason}.")
        return 2
    counts = run_facts(print)
    system = platform.uname()
    print(
        f"{counts['ok']} facts hold on {system.system} {system.release} {system.machine}, "
        f"{counts['differs']} differ, {counts['not run here']} can't be run on a real kernel."
    )
    return 1 if counts["differs"] else 0
