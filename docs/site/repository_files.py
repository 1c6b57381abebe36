"""Files and folders of the repository that pages link to, as pages of the site, for Sphinx.

In the repository such a link leads to the file. On the site it does too, without leaving it: the
text that is shown is that of the commit that the site was made from.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import TextLexer, guess_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge

#: Where their pages are.
FOLDER = "files"


def link_to_files(app: Sphinx, document: nodes.document) -> None:
    """Have each link to something that isn't a page lead to the page that will show it.

    It comes before Sphinx's own readers of the document, which copy what is to be downloaded.
    """
    page = app.env.docname
    for kind in (addnodes.download_reference, addnodes.pending_xref):
        for link in list(document.findall(kind)):
            if path := _file(app, page, link):
                address = app.builder.get_relative_uri(page, f"{FOLDER}/{path}")
                link.replace_self(nodes.reference("", "", *link.children, refuri=address))


def _file(app: Sphinx, page: str, link: nodes.Element) -> str | None:
    """The file or folder of the repository that is linked to, if there is one and no page of it."""
    target = link["reftarget"]
    if link.get("refdomain") == "doc":  # Markdown, with the page's name in place of the file's
        path = f"{target}.md" if target not in app.env.found_docs else ""
    elif link.get("reftype", "myst") == "myst":
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    else:
        path = ""
    return path if path and (Path(app.srcdir) / path).exists() else None


def show_files(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each of the files and folders that are linked to, and for those in a folder."""
    root = Path(app.srcdir)
    shown: set[str] = set()
    waiting = sorted(_linked(app))
    while waiting:
        path = waiting.pop()
        if path in shown:
            continue
        shown.add(path)
        if (root / path).is_dir():
            inside = _inside(root / path)
            waiting += [each.relative_to(root).as_posix() for each in inside]
            body = _listing(app, path, inside)
        else:
            body = _text(app, path)
        title = escape(path)
        context = {"title": title, "body": f"<h1>{title}</h1>\n{body}"}
        yield f"{FOLDER}/{path}", context, "page.html"


def _linked(app: Sphinx) -> set[str]:
    found = set()
    for name in app.env.found_docs:
        for link in app.env.get_doctree(name).findall(nodes.reference):
            address = link.get("refuri", "").partition("#")[0]
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), address))
            if path.startswith(f"{FOLDER}/") and path.endswith(".html"):
                found.add(path[len(FOLDER) + 1 : -len(".html")])
    return found


def _inside(folder: Path) -> list[Path]:
    """What is worth showing of it: no caches, nothing that was compiled."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith((".", "__pycache__"))
        and path.suffix not in (".pyc", ".so")
        and path.name not in ("node_modules",)
    ]


def _listing(app: Sphinx, path: str, inside: list[Path]) -> str:
    page = f"{FOLDER}/{path}"
    lines = []
    for each in inside:
        address = app.builder.get_relative_uri(page, f"{page}/{each.name}")
        name = escape(each.name + ("/" if each.is_dir() else ""))
        lines.append(f'<li><a href="{escape(address)}"><code>{name}</code></a></li>')
    return f"<ul>{''.join(lines)}</ul>"


def _text(app: Sphinx, path: str) -> str:
    text = (Path(app.srcdir) / path).read_text("utf-8")
    try:
        lexer = guess_lexer_for_filename(path, text).aliases[0]
    except (ClassNotFound, IndexError):
        lexer = TextLexer.aliases[0]
    bridge: PygmentsBridge = app.builder.highlighter  # type: ignore[attr-defined]  # of HTML's
    block = bridge.highlight_block(text, lexer, force=True)
    return f'<div class="repository-file highlight-{lexer} notranslate">{block}</div>'


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", link_to_files, priority=100)
    app.connect("html-collect-pages", show_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
