"""The facts about SO_SPLICE (docs/so_splice.md) as a table that can be run.

Standard library only, and nothing else of the package: what is compared here is the kernel.
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
    """Run every fact that such a rig can show, and say a line about each; how many went how.

    ``goes_on`` is asked before each fact, by its number and how many there are.
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
                continue  # it is about another system
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
    """The table on this kernel; the exit status: 0 all holds, 1 something differs, 2 can't."""
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
