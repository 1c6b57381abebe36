"""What autodoc doesn't do for the reference, for Sphinx.

A public name that no page of the reference describes yet is added to the last part of the page of
its module. The comments above a type alias, which lies in a private module, become its description.
Methods that are for the package's own use are left out.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import sys

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.autodoc import Options
from sphinx.pycode import ModuleAnalyzer

PACKAGE = "freebsd_splice"
#: The pages of the reference that have to be complete, and their modules.
MODULES = {"docs/reference/aio": "aio", "docs/reference/proxies": "proxies"}


def append_what_is_missing(app: Sphinx, page: str, source: list[str]) -> None:
    """Add directives for the public names that the page lacks."""
    if page not in MODULES:
        return
    path = f"{PACKAGE}.{MODULES[page]}"
    module = importlib.import_module(path)
    described = set(re.findall(rf"^\.\. auto\w+:: {re.escape(path)}\.(\w+)$", source[0], re.M))
    missing = [name for name in module.__all__ if name not in described]
    if missing:
        source[0] += "\nOther names\n-----------\n"
    for name in missing:
        value = getattr(module, name)
        if isinstance(value, type):
            kind = "exception" if issubclass(value, BaseException) else "class"
        else:
            kind = "function" if inspect.isfunction(value) else "data"
        source[0] += f"\n.. auto{kind}:: {path}.{name}\n"
        source[0] += "   :no-value:\n" if kind == "data" else ""


def describe_alias(
    app: Sphinx, what: str, name: str, value: object, options: Options, lines: list[str]
) -> None:
    """Have the ``#:`` comments of a public constant or type alias as its docstring."""
    if what != "data":
        return
    alias = name.rpartition(".")[2]
    for module in sorted(each for each in sys.modules if each.startswith(f"{PACKAGE}.")):
        if alias not in vars(sys.modules[module]):
            continue
        described = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", alias))
        if described:
            lines[:] = described
            return


def leave_out_own(
    app: Sphinx, what: str, name: str, value: object, skip: bool, options: Options
) -> bool | None:
    """Whether autodoc skips a member; None leaves that to autodoc."""
    return True if "For the package's own use" in (getattr(value, "__doc__", "") or "") else None


def leave_builtins(app: Sphinx, document: nodes.document) -> None:
    """Make plain text of ``bytes`` and its like, which ``Splice.bytes`` would answer to."""
    for link in list(document.findall(addnodes.pending_xref)):
        if link.get("refdomain") == "py" and hasattr(builtins, link["reftarget"]):
            link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", append_what_is_missing)
    app.connect("autodoc-process-docstring", describe_alias, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", leave_out_own)
    app.connect("doctree-read", leave_builtins)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
