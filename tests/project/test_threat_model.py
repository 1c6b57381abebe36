"""docs/threat_model.md: each threat names tests, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "threat_model.md"

ROWS = [
    tuple(row.strip("| ").split(" | "))
    for table in re.findall(r"^\|.*\| shown by \|\n\|[-|]+\n((?:\|.*\n)*)", PAGE.read_text(), re.M)
    for row in table.splitlines()
]


def test_every_table_of_the_page_has_a_column_of_tests() -> None:
    tables = re.findall(r"^\|[-|]+\|$", PAGE.read_text(), re.M)
    headed = re.findall(r"^\|.*\| shown by \|$", PAGE.read_text(), re.M)
    assert len(tables) == len(headed) >= 6
    assert len(ROWS) >= 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_each_threat_names_tests_that_exist(row: tuple[str, ...]) -> None:
    threat, holds, shown = row
    assert threat
    assert holds
    tests = re.findall(r"\[`(test_\w+)`\]\((\.\./tests/[\w/]+\.py)\)", shown)
    assert tests
    assert len(tests) == len(shown.split(", ")), "something that is not a test"
    for name, path in tests:
        assert re.search(rf"^(async )?def {name}\(", (DOCS / path).read_text(), re.M), name


def test_the_security_policy_leads_to_the_page() -> None:
    assert "(docs/threat_model.md)" in (DOCS.parent / "SECURITY.md").read_text()
