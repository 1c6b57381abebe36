"""Which file of the package imports which of its modules: for the test of the layers, and for
their picture (``tools/pictures.py``)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "freebsd_splice"


def first_step(path: Path) -> str:
    """The folder or module of the package that a path in it begins with."""
    return path.with_suffix("").parts[0]


def package_imports() -> list[tuple[Path, tuple[str, ...]]]:
    """(importing file, imported module) within the package, both without the package's name."""
    found = [
        (path.relative_to(PACKAGE), name)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in _names(node, path)
    ]
    assert len(found) > 200
    return found


def _names(node: ast.AST, path: Path) -> Iterator[tuple[str, ...]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            package, *below = alias.name.split(".")
            if package == PACKAGE.name:
                yield tuple(below) or ("__init__",)
    elif isinstance(node, ast.ImportFrom):
        base = _base(node, path)
        if base is not None:
            for alias in node.names:
                module = PACKAGE.joinpath(*base, alias.name)
                is_module = module.is_dir() or module.with_suffix(".py").exists()
                yield (*base, alias.name) if is_module else tuple(base) or ("__init__",)


def _base(node: ast.ImportFrom, path: Path) -> list[str] | None:
    """The folder or module that is imported from; None: it isn't one of the package's."""
    below = node.module.split(".") if node.module else []
    if node.level == 0:
        return below[1:] if below[0] == PACKAGE.name else None
    here = list(path.relative_to(PACKAGE).parent.parts)
    return here[: len(here) - (node.level - 1)] + below
