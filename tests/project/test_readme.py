"""What the README and the page of sharp edges point at is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_each_sharp_edge_names_a_fact_and_a_test_that_exist() -> None:
    page, facts = (DOCS / "sharp_edges.md").read_text(), (DOCS / "so_splice.md").read_text()
    edges = re.findall(r"^\| \[F\d+\]\(so_splice.md#(f\d+)\) .*\| (.*) \|$", page, re.M)
    assert len(edges) >= 15
    for fact, proof in edges:
        assert f"### {fact.upper()}\n" in facts
        tests = re.findall(r"\[`(\w+)`\]\(([\w/.]+)\)", proof)
        assert tests or fact == "f33", f"{fact} has no test"
        for name, path in tests:
            assert f"def {name}(" in (DOCS / path).read_text(), f"{path} has no {name}"


def test_the_proxy_has_at_most_22_lines() -> None:
    """``programs/test_printed.py`` runs it; ``test_docs.py`` follows the links."""
    section = (ROOT / "README.md").read_text().split("\n## asyncio\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
