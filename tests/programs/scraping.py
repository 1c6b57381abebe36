"""Scrapes of a proxy's metrics, read by Prometheus' own parser."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from programs.processes import PATIENCE, Proxy, until

pytest.importorskip("h11", reason="it parses the scrapers' requests")
parser = pytest.importorskip("prometheus_client.parser", reason="it is what reads the metrics")

#: Has the metrics served on a free port.
METRICS = ("--metrics", "127.0.0.1:0")


class Scrape:
    """What one scrape says."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], Any] = {
            (sample.name.removeprefix("freebsd_splice_"), frozenset(sample.labels.items())): sample
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; there has to be one."""
        found = [
            sample.value
            for (each, those), sample in self.samples.items()
            if each == name and labels.items() <= dict(those).items()
        ]
        assert found, (name, labels)
        return float(sum(found))

    def sum(self, name: str) -> float:
        found = (sample.value for (each, _), sample in self.samples.items() if each == name)
        return float(sum(found))

    def shrunk(self, before: Scrape) -> list[str]:
        """The counters that are smaller than they were, or gone."""
        counters = [key for key in before.samples if re.search("_(total|count|bucket)$", key[0])]
        return [
            f"{name}{dict(labels)}"
            for name, labels in counters
            if (name, labels) not in self.samples
            or self.samples[name, labels].value < before.samples[name, labels].value
        ]

    def served_by(self) -> set[str]:
        """What has moved bytes, as the log names it."""
        labels = [
            dict(labels)
            for (name, labels), sample in self.samples.items()
            if name == "relayed_bytes_total" and sample.value
        ]
        return {f"{each['backend']}/{each['mover']}" for each in labels}

    def moved(self, direction: str) -> float:
        """The bytes of a direction, whatever has moved them."""
        found = (
            sample.value
            for (name, labels), sample in self.samples.items()
            if name == "relayed_bytes_total" and ("direction", direction) in labels
        )
        return float(sum(found))


def port_of(front: Proxy) -> int:
    assert front.port  # before that there may be nothing to be scraped
    return int(front.expect(r"metrics: http://127\.0\.0\.1:(\d+)/metrics$")[0][1])


@contextmanager
def requested(
    front: Proxy, path: str = "/metrics", method: str = "GET", **headers: str
) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(front), timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        yield connection.getresponse()
    finally:
        connection.close()


def scrape(front: Proxy) -> Scrape:
    with requested(front) as response:
        assert response.status == 200
        return Scrape(response.read().decode())


def scrape_until(front: Proxy, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a metric has that value, which takes the proxy a moment."""
    found: list[Scrape] = []

    def look() -> bool:
        found.append(scrape(front))
        return found[-1](name, **labels) == value

    until(look)
    return found[-1]
