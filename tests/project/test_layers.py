"""Layers point one way: a lower one never imports a higher one."""

from __future__ import annotations

import ast
from pathlib import Path

import freebsd_splice

PACKAGE = Path(freebsd_splice.__file__).parent

#: From the lowest.  A module may import from its own layer and from those before it.
LAYERS: list[set[str]] = [
    {
        "_backlog",
        "_backoff",
        "_borrow",
        "_callers_options",
        "_errors",
        "_kernel_port",
        "_port",
        "_process",
        "_reset",
        "_send_queue",
        "_so_splice",
        "_splice_checks",
        "_tcp",
        "_threads",
    },
    {"_abi", "_pollers", "_kernel_events"},
    {"_backend", "_kernel_calls", "_system", "_watcher"},
    {"_sockets", "_flow", "_deadlines", "_crew", "_second_look", "_pair_policy", "_closing"},
    {"_engine", "_engine_flow", "_movers"},
    {"_splice_events", "_kernel_checks", "_verdict", "_kernel_flow", "_kernel"},
    {"_runtime"},
    {"_waitable", "_splice", "_relay"},
    {"__init__"},
    {"aio"},
    {"proxies"},
    {"_facts", "_selftest", "_selftest_transfers"},
    {"_info", "_cli", "__main__"},
]
#: Beside ``Splice``, not under it: the thin functions, and an emulation that they alone know.
THIN = {"_thin", "_thin_kernel", "_thin_messages", "_emulation"}
UNDER_THIN = {
    "_abi",
    "_backend",
    "_backoff",
    "_borrow",
    "_callers_options",
    "_errors",
    "_kernel_calls",
    "_kernel_port",
    "_process",
    "_splice_checks",
    "_tcp",
    "_threads",
}


def test_a_lower_layer_never_imports_a_higher_one() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for module, imported in _imports():
        if _is_thin(module):
            assert _is_thin(imported) or imported in UNDER_THIN, (module, imported)
        elif _is_thin(imported):
            assert imported == "_thin", (module, imported)
            assert module in ("__init__", "_selftest"), (module, imported)
        else:
            assert level[imported] <= level[module], f"{module} imports {imported}"


def test_the_emulation_is_known_to_the_thin_functions_alone() -> None:
    for module, imported in _imports():
        if imported.startswith("_emulation"):
            assert module == "_thin" or module.startswith("_emulation"), module


def test_the_struct_is_known_to_abi_alone() -> None:
    for module, imported in _imports():
        if imported == "_so_splice":
            assert module in ("_abi", "_info"), module


def _is_thin(module: str) -> bool:
    return module in THIN or module.startswith("_emulation")


def _imports() -> list[tuple[str, str]]:
    """(module, imported module) within the package, by first name below it."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            found += [(parts[0], name) for name in _names(node, len(parts)) if name != parts[0]]
    assert len(found) > 50
    return found


def _names(node: ast.AST, depth: int) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.level:
        if node.level == depth:  # from the package itself
            return [node.module.split(".")[0]] if node.module else _members(node)
        return []
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("freebsd_splice"):
        _, _, below = (node.module or "").partition(".")
        return [below.split(".")[0]] if below else _members(node)
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
        return [name[1] for name in names if name[0] == "freebsd_splice" and len(name) > 1]
    return []


def _members(node: ast.ImportFrom) -> list[str]:
    """``from . import x``: a module, or a name of the package's own."""
    modules = {path.stem for path in PACKAGE.iterdir()}
    return [alias.name if alias.name in modules else "__init__" for alias in node.names]
