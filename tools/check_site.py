"""Checks the links within a site that has been built: python tools/check_site.py build/site

Each leads to a page, a picture or a style sheet that is there, and to a heading that the page has.
What leads elsewhere (https:) isn't asked for. The exit status is 1 where a link is dead.
"""

from __future__ import annotations

import posixpath
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the names of its places."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names = {"", "top"}  # browsers know these two themselves
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.names.add(value or "")


def dead_links(site: Path) -> list[str]:
    """Each dead link, behind the page that it is on."""
    pages = {
        path.relative_to(site).as_posix(): Page(path.read_text("utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    if not pages:
        return [f"{site}: no pages"]
    return [
        f"{path}: {link}"
        for path, page in pages.items()
        for link in dict.fromkeys(page.links)
        if not _leads_somewhere(site, pages, path, link)
    ]


def _leads_somewhere(site: Path, pages: dict[str, Page], path: str, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = path
    if parts.path:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(parts.path)))
    if target not in pages:
        return not target.startswith("..") and (site / target).is_file()
    return unquote(parts.fragment) in pages[target].names


def main() -> int:
    dead = dead_links(Path(sys.argv[1]))
    print("".join(f"dead link: {each}\n" for each in dead), end="")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
