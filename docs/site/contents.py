"""The table of contents of the site, for Sphinx: it is appended to the index as it is read.

The index is a page of the repository as well, where a directive would be shown as it is written.
Pages that nobody has put into a part below are found too, and come last.
"""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

#: What is in each part, in this order; what isn't there is left out.
PARTS = {
    "Tutorial": ["docs/tutorial"],
    "How to": [
        "docs/asyncio",
        "docs/trio",
        "docs/http_bodies",
        "docs/first_bytes",
        "docs/service",
        "docs/diagnosing",
        "docs/from_openbsd",
    ],
    "Ready-made proxies": [
        "docs/proxies",
        "docs/forward",
        "docs/connect",
        "docs/socks5",
        "docs/sni",
        "docs/serve",
        "docs/metrics",
        "docs/load_balancing",
        "docs/scaling",
    ],
    "Reference": [
        "docs/reference/operations",
        "docs/reference/aio",
        "docs/reference/thin",
        "docs/reference/backend",
        "docs/reference/proxies",
        "docs/socket_options",
    ],
    "Explanation": [
        "docs/architecture",
        "docs/so_splice",
        "docs/sharp_edges",
        "docs/openbsd",
        "docs/benchmarks",
        "docs/cost_of_a_byte",
        "docs/cost_of_a_connection",
        "docs/conformance",
        "docs/reliability",
        "docs/threat_model",
        "docs/packaging",
    ],
    "The project": ["README", "CHANGELOG", "CONTRIBUTING", "SECURITY"],
}


def append_contents(app: Sphinx, name: str, source: list[str]) -> None:
    if name == app.config.root_doc:
        source[0] += "".join(_part(title, names) for title, names in parts(app.srcdir).items())


def parts(root: Path) -> dict[str, list[str]]:
    """The pages that there are, by the titles of their parts."""
    placed = {name for names in PARTS.values() for name in names}
    pages = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("docs/reference/*.rst")]
    there = {page.relative_to(root).with_suffix("").as_posix() for page in pages}
    found = {title: [name for name in names if name in there] for title, names in PARTS.items()}
    found["More"] = sorted(there - placed - {"docs/index"})
    return {title: names for title, names in found.items() if names}


def _part(title: str, names: list[str]) -> str:
    entries = "\n".join(f"/{name}" for name in names)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", append_contents)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
