"""``--takeover`` and ``--metrics`` together: scrapers go over as clients do."""

from __future__ import annotations

import sys

import pytest

from programs.processes import Forwarder, exchange, until
from programs.scraping import METRICS, port_of, scrape
from programs.test_takeover import HANDED_OVER, Succession, succession

__all__ = ["succession"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no --takeover on Windows")


def exchanged(front: Forwarder) -> bool:
    with front.connect() as client:
        return exchange(client, b"hello") == b"hello"


def accepted(front: Forwarder) -> float:
    """How many clients a scrape says there were; -1 where the scraper was cut off."""
    try:
        return scrape(front).sum("connections_accepted_total")
    except OSError:
        return -1.0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_next_process_serves_the_same_metrics(workers: str, succession: Succession) -> None:
    first = succession.start("--workers", workers, "--grace", "1000", *METRICS)
    port = port_of(first)
    with first.connect() as old:
        assert exchange(old, b"before") == b"before"
        second = succession.follow(first, "--workers", workers, "--metrics", f"127.0.0.1:{port}")
        first.expect(HANDED_OVER)
        assert port_of(second) == port
        # The former process may have accepted a client more, and answers no scraper any more.
        until(lambda: exchanged(second) and all(accepted(second) >= 5 for _ in range(20)))
        assert exchange(old, b"after") == b"after"
    assert first.end() == 0


def test_a_unix_socket_is_no_place_for_metrics(succession: Succession) -> None:
    run = succession.start("--metrics", "unix:/metrics", patch="#")
    assert run.end() == 2
    assert "Prometheus reads no Unix socket" in run.text
