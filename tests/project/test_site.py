"""The site of docs/: it builds without a warning, no link is dead, and a browser shows it whole."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from support.slowness import SLOWNESS

ROOT = Path(__file__).parents[2]
MODULES = ("freebsd_splice", "freebsd_splice.aio", "freebsd_splice.proxies")


class View(NamedTuple):
    """How somebody looks at the site."""

    width: int
    height: int
    scheme: str


VIEWS = {"desktop": View(1280, 900, "light"), "phone": View(375, 812, "dark")}


def _check(site: Path) -> subprocess.CompletedProcess[str]:
    check = [sys.executable, str(ROOT / "tools/check_site.py"), str(site)]
    return subprocess.run(check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``tox -e docs`` builds it; a warning is an error."""
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="makes the site: the extra docs")
    made = tmp_path_factory.mktemp("site")
    arguments = ["-W", "--keep-going", "-E", "-q", "-c", "docs", "-d", f"{made}/doctrees"]
    build = [sys.executable, "-m", "sphinx", *arguments, ".", f"{made}/html"]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=110 * SLOWNESS)
    assert built.returncode == 0, built.stderr
    return made / "html"


@pytest.mark.slow
def test_no_link_within_the_site_is_dead(site: Path) -> None:
    checked = _check(site)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    described = {name for kind, names in inventory.items() for name in names if kind[:3] == "py:"}
    public = {
        f"{path}.{name}" for path in MODULES for name in importlib.import_module(path).__all__
    }
    assert public | {"freebsd_splice.proxies.connect.http_connect"} <= described


@pytest.mark.slow
def test_every_page_is_in_the_table_of_contents(site: Path) -> None:
    """Of the index: nobody finds a page that isn't."""
    index = (site / "docs/index.html").read_text()
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert f"{page.stem}.html" in index or page.stem == "index", page.name


def _browser() -> str:
    found = [shutil.which(name) for name in ("chromium", "google-chrome", "chrome")]
    if not any(found):
        pytest.skip("no chromium here: nobody has looked at the site")
    return next(filter(None, found))


@pytest.mark.slow
@pytest.mark.timeout(300 * SLOWNESS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_browser_shows_every_page_whole(site: Path, tmp_path: Path, view: str) -> None:
    """No broken picture, no error on the console, nothing wider than the window.

    The screenshots lie in the test's folder.
    """
    api = pytest.importorskip("playwright.sync_api", reason="drives the browser: the extra dev")
    executable, seen = _browser(), VIEWS[view]
    pages = sorted((site / "docs").rglob("*.html"))
    assert len(pages) > 20
    wrong: list[str] = []
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        size = {"width": seen.width, "height": seen.height}
        page = browser.new_page(viewport=size, color_scheme=seen.scheme)
        page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
        page.on("requestfailed", lambda request: wrong.append(f"{page.url}: {request.url}"))
        page.on(
            "console",
            lambda said: wrong.append(f"{page.url}: {said.text}") if said.type == "error" else None,
        )
        for path in pages:
            page.goto(path.as_uri())
            page.wait_for_load_state("load")
            wrong += [f"{path.name}: {found}" for found in page.evaluate(_LOOK)]
            page.screenshot(path=tmp_path / f"{path.relative_to(site).as_posix()}.png")
        page.goto((site / "index.html").as_uri())
        page.wait_for_url("**/docs/index.html")
        browser.close()
    assert wrong == []


#: What is wrong with a page: pictures that are not there, and what makes the page scroll sideways.
_LOOK = """() => {
    const found = [];
    for (const image of document.images) {
        image.loading = "eager";
        if (image.complete && image.naturalWidth === 0) found.push("broken: " + image.src);
    }
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) {
        for (const element of document.querySelectorAll("article *")) {
            if (element.getBoundingClientRect().right > width + 1) {
                found.push("too wide: " + element.outerHTML.slice(0, 100));
                break;
            }
        }
    }
    return found;
}"""


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there">1</a><a href="#here">2</a><a href="https://x/">3</a>'
        '<img src="picture.svg"><a href="b.html#nowhere">4</a><a href="c.html">5</a></p>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there"><a href="a.html">back</a></h1>')
    checked = _check(tmp_path)
    dead = ["a.html: picture.svg", "a.html: b.html#nowhere", "a.html: c.html"]
    assert checked.stdout.splitlines() == [f"dead link: {each}" for each in dead]
    assert checked.returncode == 1


def test_the_diagrams_are_what_the_script_draws() -> None:
    draw = [sys.executable, str(ROOT / "tools/diagrams.py"), "--check"]
    drawn = subprocess.run(draw, capture_output=True, text=True)
    assert drawn.returncode == 0, f"run tools/diagrams.py\n{drawn.stdout}{drawn.stderr}"
