"""The pages: their links lead somewhere, and their tables have the options that there are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from freebsd_splice._cli.configuration import process_keys
from freebsd_splice.proxies import Routes, parse_rule
from freebsd_splice.proxies._socks5_messages import Reply

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]

#: Where a command is described; the four proxies share the options of one page more.
SHARED = DOCS / "proxies.md"
PROXIES = {name: DOCS / f"{name}.md" for name in ("forward", "connect", "socks5", "sni")}
OTHERS = {
    "password": SHARED,
    "selftest": DOCS / "diagnosing.md",
    "info": DOCS / "diagnosing.md",
    "serve": DOCS / "serve.md",
}


@cache
def _help(*command: str) -> str:
    run = [sys.executable, "-m", "freebsd_splice", *command, "--help"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def _text(page: Path) -> str:
    """Without its code, in which nothing is a link or a heading."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def _anchors(page: Path) -> set[str]:
    """The names that its headings have as they are shown on the web."""
    headings = re.findall(r"^#+ (.+)$", _text(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _options(page: Path) -> list[str]:
    """Those that have a row in a table whose first column is headed "option"."""
    tables = re.findall(r"^\| option .*\n\|[-|]+\n((?:\|.*\n)*)", _text(page), re.M)
    first_cells = [row.split(" | ")[0] for table in tables for row in table.splitlines()]
    return [name for cell in first_cells for name in re.findall(r"`--([\w-]+)", cell)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in _anchors(target), link


def test_each_command_has_a_page() -> None:
    commands = re.findall(r"^    (\w+) ", _help(), re.M)
    assert sorted(commands) == sorted(PROXIES | OTHERS)
    for command, page in (PROXIES | OTHERS).items():
        assert f"freebsd-splice {command}" in page.read_text(), command


@pytest.mark.parametrize("command", PROXIES)
def test_the_options_of_a_proxy_are_those_in_the_tables(command: str) -> None:
    listed = _options(PROXIES[command]) + _options(SHARED)
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(re.findall(r"^  --([\w-]+)", _help(command), re.M))


def test_the_options_of_selftest_are_those_in_the_table() -> None:
    listed = _options(OTHERS["selftest"])
    assert sorted(listed) == sorted(re.findall(r"^  --([\w-]+)", _help("selftest"), re.M))


def test_the_options_of_serve_are_its_own_and_those_of_a_process() -> None:
    own, of_process = _options(OTHERS["serve"]), [f"--{name}" for name in process_keys()]
    said = [f"--{name}" for name in re.findall(r"^  --([\w-]+)", _help("serve"), re.M)]
    assert sorted(said) == sorted([*(f"--{name}" for name in own), *of_process])
    page = OTHERS["serve"].read_text()
    assert all(f"`{option}`" in page for option in of_process)


@pytest.mark.parametrize("command", PROXIES)
def test_the_defaults_in_the_tables_are_those_of_the_help(command: str) -> None:
    text = " ".join(_help(command).split())
    for page in (PROXIES[command], SHARED):
        for option, default in re.findall(
            r"^\| `--([\w-]+)[^|]*`\s*\| (\d+) \|", _text(page), re.M
        ):
            described = re.search(
                rf" --{option} [A-Z]+ ((?:(?! --).)*)", text.split("LISTEN", 1)[1]
            )
            assert described is not None, option
            assert f"(default: {default}" in described[1], option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_speaks_of_is_one(page: Path) -> None:
    """Of the program's own, wherever a command line of it is printed."""
    for command, rest in re.findall(r"freebsd-splice (\w+)((?: [^\n`|]*)?)", page.read_text()):
        if command in PROXIES | OTHERS:
            for option in re.findall(r"--([\w-]+)", rest):
                assert f"--{option}" in _help(command), f"{command} --{option}"


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_printed_as_python_is_python(page: Path) -> None:
    for block in _blocks(page, "python"):
        compile(block, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_routes_that_are_printed_can_be_used(tmp_path: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    (block,) = _blocks(PROXIES["sni"], "toml")
    (tmp_path / "routes.toml").write_text(block)
    Routes.load(tmp_path / "routes.toml")


def test_the_rules_that_are_printed_are_rules() -> None:
    (table,) = re.findall(r"^\| RULE .*\n\|[-|]+\n((?:\|.*\n)*)", _text(SHARED), re.M)
    rules = [
        rule for row in table.splitlines() for rule in re.findall("`(.+?)`", row.split(" | ")[0])
    ]
    rules += re.findall(r"--(?:allow|deny) '?([^\s']+)", "".join(_blocks(SHARED, "sh")))
    assert len(rules) >= 12
    for rule in rules:
        parse_rule(rule.replace("…", "example.org"), True)


def _first_words(page: Path, heading: str) -> set[str]:
    """What the rows of the table begin with whose first column has that heading."""
    (table,) = re.findall(rf"^\| {heading} .*\n\|[-|]+\n((?:\|.*\n)*)", _text(page), re.M)
    cells = "".join(f"{row.split(' | ')[0]}\n" for row in table.splitlines())
    return set(re.findall(r"^\| (\w+)", cells, re.M)) | set(re.findall(r"`(.+?)`", cells))


def test_the_answers_that_clients_get_are_in_the_tables() -> None:
    pytest.importorskip("h11")
    from freebsd_splice.proxies import connect

    assert _first_words(PROXIES["connect"], "status") == {"200", *map(str, connect._REASONS)}
    replies = {str(int(reply)) for reply in Reply if reply is not Reply.TTL_EXPIRED}
    assert _first_words(PROXIES["socks5"], "reply") == replies


def test_the_events_of_the_log_are_in_the_table() -> None:
    sources = (ROOT / "freebsd_splice").rglob("*.py")
    events = {
        event
        for source in sources
        for event in re.findall(r'fields\("([a-z ]+)"', source.read_text())
    }
    assert len(events) >= 5
    assert _first_words(SHARED, "`event`") == events
