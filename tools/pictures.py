"""Draws the pictures of docs/architecture.md from the code: the layers from the imports of
freebsd_splice/, the phases of ``KernelFlow`` from its transitions.

``python tools/pictures.py`` writes the files; ``--check`` says whether they are up to date.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from layered_drawing import Box, draw, levels

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"

#: Modules at the top of the package that share a box, by the first of them. All others, and each
#: folder, have one of their own.
TOGETHER = {
    "_errors": ("_errors", "_public"),
    "_splice": ("_splice", "_relay", "_operation"),
    "_cli": ("_cli", "__main__"),
}
#: What is in each box.
LAYERS = {
    "_errors": "exceptions; these import nothing",
    "_platform": "all that touches the system: sockets, threads, kqueue, poll, SO_SPLICE",
    "_backend": "kernel or userspace",
    "_core": "flows, shared sockets, timers, threads that may wait, rules for pairs",
    "_userspace": "workers that move the bytes themselves",
    "_kernel": "SO_SPLICE under Splice and Relay",
    "_thin": "the kernel's three calls, and their emulation",
    "_runtime": "what a process has once",
    "_splice": "the two operations",
    "__init__": "the public names",
    "aio": "the operations for asyncio",
    "proxies": "forward, connect, socks5, sni",
    "_diagnostics": "info, selftest, facts",
    "_cli": "the command line",
}
PHASES = {
    "NEW": "not started",
    "SENDING_INITIAL": "userspace sends what the caller had read",
    "BETWEEN": "nothing moves: the next step is decided",
    "SPLICED": "the kernel moves",
    "USERSPACE": "userspace moves all that is to come",
    "ENDED": "the end is stored and reported",
}


def layers() -> str:
    """Folders, and what each imports."""
    imports, shown = _boxes()
    if nameless := sorted(imports.keys() - LAYERS.keys()):
        raise SystemExit(f"say in LAYERS of tools/pictures.py what is in {', '.join(nameless)}")
    depths = levels(imports)
    drawn = {name: _without_detours(name, imports) for name in imports}
    boxes = []
    for name in sorted(imports):
        lines = textwrap.wrap(LAYERS[name], 38)
        others = sorted(shown[other].split(",")[0] for other in imports[name] - drawn[name])
        if others:
            lines += textwrap.wrap(f"also imports {', '.join(others)}", 38)
        boxes.append(Box(shown[name], tuple(lines)))
    return draw(
        boxes,
        {shown[name]: max(depths.values()) - depth for name, depth in depths.items()},
        [(shown[name], shown[other]) for name in imports for other in drawn[name]],
        title="The folders and modules of freebsd_splice, and what each imports",
    )


def _boxes() -> tuple[dict[str, set[str]], dict[str, str]]:
    """What each box imports, and the name that it is shown with."""
    from project.imports import first_step, package_imports

    box_of = {module: first for first, modules in TOGETHER.items() for module in modules}
    imports: dict[str, set[str]] = {}
    there: set[str] = set()
    for path, imported in package_imports():
        steps = first_step(path), imported[0]
        there.update(steps)
        importer, name = (box_of.get(step, step) for step in steps)
        imports.setdefault(name, set())
        imports.setdefault(importer, set()).update({name} - {importer})
    shown = {
        name: ", ".join(module for module in TOGETHER.get(name, (name,)) if module in there)
        for name in imports
    }
    return imports, shown | {"__init__": "freebsd_splice"}


def _without_detours(name: str, imports: dict[str, set[str]]) -> set[str]:
    """Of what it imports, what no other of these imports, however far down."""

    def below(other: str) -> set[str]:
        return set().union(imports[other], *(below(deeper) for deeper in imports[other]))

    return imports[name] - set().union(*(below(other) for other in imports[name]))


def phases() -> str:
    """Phases, and which may follow each."""
    from freebsd_splice._kernel.phases import TRANSITIONS

    follow = {phase.name: {other.name for other in others} for phase, others in TRANSITIONS.items()}
    back: set[tuple[str, str]] = set()

    def find_back(name: str, way: tuple[str, ...]) -> None:
        for other in sorted(follow[name]):
            if other in way:
                back.add((name, other))
            elif (name, other) not in back:
                find_back(other, (*way, other))

    find_back("NEW", ("NEW",))
    onwards = {name: {o for o in follow[name] if (name, o) not in back} for name in follow}
    assert all(name in onwards[other] for name, other in back), "a way back without one there"
    before = {name: {o for o in onwards if name in onwards[o]} for name in onwards}
    return draw(
        [Box(name, tuple(textwrap.wrap(PHASES[name], 26))) for name in follow],
        levels(before),
        [(name, other) for name in onwards for other in onwards[name]],
        title="The phases of KernelFlow, and which may follow each",
        both_ways=[(other, name) for name, other in back],
    )


def main() -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    pictures = {"layers.svg": layers(), "phases.svg": phases()}
    if "--check" in sys.argv:
        old = [name for name, text in pictures.items() if _read(PICTURES / name) != text]
        print("".join(f"docs/pictures/{name} is not what the code says\n" for name in old), end="")
        return 1 if old else 0
    PICTURES.mkdir(exist_ok=True)
    for name, text in pictures.items():
        (PICTURES / name).write_bytes(text.encode())
    return 0


def _read(picture: Path) -> str | None:
    return picture.read_bytes().decode() if picture.exists() else None


if __name__ == "__main__":
    sys.exit(main())
