"""The metrics: those of the page and of the dashboard are those that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice import Reason
from freebsd_splice.proxies._numbers import Totals
from freebsd_splice.proxies._observing import REFUSALS

pytest.importorskip("prometheus_client", reason="it makes the metrics")
from freebsd_splice._cli.collecting import Collected, WorkerNow
from freebsd_splice._cli.families import Families

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/metrics.md"
DASHBOARD = ROOT / "contrib/grafana/freebsd-splice.json"

NOW: Totals = {("live", ":80"): 1, ("descriptors",): 1, ("descriptor limit",): 1}
WORKER = WorkerNow(True, NOW)
FAMILIES = list(Families(Collected({("accepted", ":80"): 0}, {0: WORKER}, [WORKER])).collect())

#: The labels of each sample, by its name.
SAMPLES = {sample.name: set(sample.labels) for family in FAMILIES for sample in family.samples}


def test_the_page_has_all_metrics_with_their_types_and_labels() -> None:
    (table,) = re.findall(r"^\| metric .*\n\|[-|]+\n((?:\|.*\n)*)", PAGE.read_text(), re.M)
    described = {}
    for row in table.splitlines():
        name, kind, labels, _ = row.strip("| ").split("|", 3)
        described[name.strip(" `")] = (kind.strip(), set(re.findall("`(.+?)`", labels)))
    there = {}
    for family in FAMILIES:
        ending = {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        there[family.name + ending] = (kind, labels)
    assert described == there


def test_names_are_as_prometheus_wants_them() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"freebsd_splice_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_the_page_has_all_reasons() -> None:
    (table,) = re.findall(r"^\| reason .*\n\|[-|]+\n((?:\|.*\n)*)", PAGE.read_text(), re.M)
    described = re.findall(r"^\| `([\w ]+)` ", table, re.M)
    assert tuple(described) == REFUSALS


def test_all_reasons_are_there_from_the_beginning() -> None:
    """Else ``rate`` would not see the first of them."""
    for counter, reasons in (
        ("refused", set(REFUSALS)),
        ("ended", {reason.value for reason in Reason}),
    ):
        (family,) = (each for each in FAMILIES if each.name.endswith(f"connections_{counter}"))
        assert {sample.labels["reason"] for sample in family.samples} == reasons


def expressions(value: Any) -> list[str]:
    """All queries of a dashboard."""
    if isinstance(value, list):
        return [found for each in value for found in expressions(each)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in ("expr", "definition") if key in value]
    return own + [found for each in value.values() for found in expressions(each)]


def test_the_dashboard_asks_for_what_there_is() -> None:
    queries = expressions(json.loads(DASHBOARD.read_text()))
    assert len(queries) >= 15
    asked = {name for query in queries for name in re.findall(r"freebsd_splice_\w+", query)}
    assert asked <= SAMPLES.keys()
    # Each metric is in it: who adds one decides where.
    families = {re.sub("_(bucket|count|sum|total|info)$", "", name) for name in asked}
    assert families == {family.name for family in FAMILIES}


def test_the_labels_that_queries_name_exist() -> None:
    queries = [*expressions(json.loads(DASHBOARD.read_text())), PAGE.read_text()]
    known = set().union(*SAMPLES.values()) | {"job", "instance"}
    for query in queries:
        for labels in re.findall(r"by \(([\w, ]+)\)", query):
            assert set(labels.split(", ")) <= known, query
        for selector in re.findall(r"\{(.*?)\}", query):
            assert set(re.findall(r"(\w+)=~?\"", selector)) <= known, query


def test_the_queries_on_the_page_ask_for_what_there_is() -> None:
    asked = set(re.findall(r"freebsd_splice_\w+", PAGE.read_text()))
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in SAMPLES}
    assert asked <= SAMPLES.keys() | families


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
