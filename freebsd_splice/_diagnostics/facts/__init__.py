"""The facts about SO_SPLICE (docs/so_splice.md) as a table that can be played.

Standard library only, and nothing else of the package: what is compared here is the kernel.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable

from ._kernel_stage import SLOWNESS, KernelStage, cannot_play
from ._play import Result, Stage, play, played_here
from ._row import Row
from ._table import rows

__all__ = [
    "SLOWNESS",
    "KernelStage",
    "Result",
    "Row",
    "Stage",
    "cannot_play",
    "main",
    "play",
    "rows",
    "run",
]


def run(
    say: Callable[[str], object],
    stages: Callable[[], Stage] = KernelStage,
    goes_on: Callable[[int, int], bool] = lambda number, of: True,
) -> Counter[str]:
    """Play every row that can be played on such a stage, a line each; how many went how.

    ``goes_on`` is asked before each row, by its number and how many there are.
    """
    counts: Counter[str] = Counter()
    table = rows()
    for number, row in enumerate(table, 1):
        if not goes_on(number, len(table)):
            break
        stage = stages()
        try:
            shown = played_here(row, stage)
            if shown is None:
                continue  # it is about another system
            if row.model_only:
                verdict, more = "not played here", [row.model_only]
            else:
                more = play(shown, stage).differs
                verdict = "differs" if more else "ok"
        except (AssertionError, OSError) as error:
            verdict, more = "differs", [f"{type(error).__name__}: {error}"]
        finally:
            stage.close()
        counts[verdict] += 1
        say(f"{verdict:<16}{row.facts}: {row.name}")
        for line in more:
            say(f"{'':<16}  {line}")
    return counts


def main() -> int:
    """The table on this kernel; the exit status: 0 all holds, 1 something differs, 2 can't."""
    reason = cannot_play()
    if reason is not None:
        print(f"The facts can't be played here: {reason}.")
        return 2
    counts = run(print)
    system = platform.uname()
    print(
        f"{counts['ok']} facts hold on {system.system} {system.release} {system.machine}, "
        f"{counts['differs']} differ, {counts['not played here']} can't be played on a real kernel."
    )
    return 1 if counts["differs"] else 0
