"""Imports go one way, as the folders show: what each may import of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import freebsd_splice

PACKAGE = Path(freebsd_splice.__file__).parent

#: From the lowest.  Each folder or module of the package may import itself, and these.
MAY_IMPORT: dict[str, set[str]] = {
    "_errors": set(),
    "_public": set(),
    "_platform": {"_errors"},
    "_backend": {"_platform", "_errors"},
    "_core": {"_platform", "_errors"},
    "_userspace": {"_core", "_backend", "_platform", "_errors"},
    "_kernel": {"_userspace", "_core", "_platform", "_errors"},
    "_thin": {"_backend", "_platform", "_errors"},
}
#: What stands above them, from the lowest: each may import those before it, and all of the above.
ABOVE = [
    "_runtime",
    "_operation",
    "_splice",
    "_relay",
    "__init__",
    "aio",
    "proxies",
    "_diagnostics",
    "_cli",
    "__main__",
]


def test_imports_go_one_way() -> None:
    allowed = {name: {name, *others} for name, others in MAY_IMPORT.items()}
    for number, name in enumerate(ABOVE):
        allowed[name] = {*allowed, *ABOVE[: number + 1]}
    for path, imported in _imports():
        assert imported[0] in allowed[_first(path)], f"{path} imports {'.'.join(imported)}"


def test_who_knows_the_thin_functions() -> None:
    users = {_first(path) for path, imported in _imports() if imported[0] == "_thin"}
    assert users == {"__init__", "_thin", "_diagnostics"}


def test_only_the_thin_functions_know_their_emulation() -> None:
    for path, imported in _imports():
        if imported[:2] == ("_thin", "emulation"):
            assert path.parts[0] == "_thin", path


def test_only_raw_splice_and_info_know_the_extension() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if '"freebsd_splice._so_splice"' in path.read_text()
    }
    assert users == {"_platform/raw_splice.py", "_diagnostics/info.py"}


def _first(path: Path) -> str:
    return path.with_suffix("").parts[0]


def _imports() -> list[tuple[Path, tuple[str, ...]]]:
    """(importing file, imported module) within the package, both without the package's name."""
    found = [
        (path.relative_to(PACKAGE), name)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
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
