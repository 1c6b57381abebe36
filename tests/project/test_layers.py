"""Imports go one way, as the folders show: what each may import of the package."""

from __future__ import annotations

from .imports import PACKAGE, first_step, package_imports

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
    for path, imported in package_imports():
        assert imported[0] in allowed[first_step(path)], f"{path} imports {'.'.join(imported)}"


def test_who_knows_the_thin_functions() -> None:
    users = {first_step(path) for path, imported in package_imports() if imported[0] == "_thin"}
    assert users == {"__init__", "_thin", "_diagnostics"}


def test_only_the_thin_functions_know_their_emulation() -> None:
    for path, imported in package_imports():
        if imported[:2] == ("_thin", "emulation"):
            assert path.parts[0] == "_thin", path


def test_few_know_the_extension() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if '"freebsd_splice._so_splice"' in path.read_text()
    }
    assert users == {
        "_platform/raw_splice.py",
        "_platform/pledge.py",
        "_diagnostics/info.py",
    }
