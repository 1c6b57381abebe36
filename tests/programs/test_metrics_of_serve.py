"""The metrics of several proxies in one process, over reloads: told apart, and no total shrinks."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from programs.clients import name_of, no_accidents
from programs.processes import Served, Server, connect_to, exchange, until, where
from programs.scraping import METRICS, Scrape, scrape, scrape_until
from programs.test_metrics import WITHOUT_THE_LIBRARY
from programs.test_reload import children

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

StartServed = Callable[..., Served]

both_ways = pytest.mark.parametrize("workers", ["1", "2"])

#: Where the two proxies listen, which is how they are told apart.
ONE, OTHER = "127.0.0.1:0", "0.0.0.0:0"


def proxies(server: Server, *listens: str) -> str:
    table = '[[forward]]\nlisten = "{}"\ntarget = "{}"\n'
    return "".join(table.format(listen, where(server)) for listen in listens)


def ports_of(run: Served) -> tuple[int, int]:
    one, other = run.expect(r"listening on [\d.]+:(\d+)$", 2)
    return int(one[1]), int(other[1])


def scrape_until_moved(run: Served, listen: str, count: int) -> Scrape:
    """Scrape until a proxy's clients were sent that much: a turn's bytes are counted at its end."""
    found: list[Scrape] = []

    def look() -> bool:
        found.append(scrape(run))
        return found[-1]("relayed_bytes_total", listen=listen, direction="down") == count

    until(look)
    return found[-1]


def live_in(run: Served, worker: str) -> float:
    """The live connections of a worker; 0 where there is no such worker."""
    found = scrape(run).samples
    return float(
        sum(
            sample.value
            for (name, labels), sample in found.items()
            if name == "connections_live" and ("worker", worker) in labels
        )
    )


@both_ways
def test_proxies_are_told_apart(workers: str, served: StartServed, echo_server: Server) -> None:
    run = served(proxies(echo_server, ONE, OTHER), *METRICS, "--workers", workers)
    one, other = ports_of(run)
    with connect_to(one) as client, connect_to(other) as another, connect_to(other) as third:
        for each in (client, another, third):
            assert exchange(each, b"hello") == b"hello"
        scrape_until_moved(run, ONE, 5)
        found = scrape_until_moved(run, OTHER, 10)
        for listen, count in ((ONE, 1), (OTHER, 2)):
            assert found("connections_accepted_total", listen=listen) == count
            assert found("connections_live", listen=listen) == count
            assert found("handshake_duration_seconds_count", listen=listen) == count
            assert found("dial_duration_seconds_count", listen=listen, result="connected") == count
    scrape_until(run, "connections_ended_total", 2, listen=OTHER, reason="eof")
    scrape_until(run, "connections_ended_total", 1, listen=ONE, reason="eof")
    assert run.stop() == 0
    no_accidents(run)


@both_ways
def test_a_reload_ends_no_count(workers: str, served: StartServed, echo_server: Server) -> None:
    run = served(proxies(echo_server, ONE, OTHER), *METRICS, "--workers", workers)
    one, other = ports_of(run)
    with connect_to(one) as first, connect_to(other) as second:
        for client in (first, second):
            assert exchange(client, b"hello") == b"hello"
        scrape_until_moved(run, ONE, 5)
        before = scrape_until_moved(run, OTHER, 5)
        assert before("retired_workers") == 0

        run.reload(proxies(echo_server, ONE))  # the other proxy is gone
        if workers == "2":  # both are in workers whose places others take
            until(lambda: live_in(run, "retired") == 2)
        found = scrape(run)
        assert not found.shrunk(before)
        assert found("workers") == int(workers)
        for listen in (ONE, OTHER):
            assert found("connections_live", listen=listen) == 1

        for client in (first, second):
            assert exchange(client, b"hello") == b"hello"
        scrape_until_moved(run, OTHER, 10)
        with connect_to(one) as third:
            assert exchange(third, b"hello") == b"hello"
            later = scrape_until_moved(run, ONE, 15)
            assert not later.shrunk(found)
            assert later("connections_accepted_total", listen=ONE) == 2
            assert later("connections_live", listen=ONE) == 2
    until(lambda: scrape(run)("retired_workers") == 0)
    scrape_until(run, "connections_ended_total", 2, listen=ONE, reason="eof")
    last = scrape_until(run, "connections_ended_total", 1, listen=OTHER, reason="eof")
    assert not last.shrunk(later)
    assert last.sum("connections_live") == 0
    assert run.stop() == 0
    no_accidents(run)


def test_what_a_worker_counts_last_stays(served: StartServed, echo_server: Server) -> None:
    """Nobody has scraped since its connection has moved these bytes, when it ends."""
    run = served(proxies(echo_server, ONE, OTHER), *METRICS, "--workers", "2")
    one, _ = ports_of(run)
    with connect_to(one) as client:
        assert exchange(client, b"hello") == b"hello"
        run.reload(proxies(echo_server, ONE, OTHER))
        until(lambda: scrape(run)("retired_workers") == 1)
        assert exchange(client, bytes(100_000)) == bytes(100_000)
    run.expect("100005 bytes down, eof")
    if sys.platform == "linux":
        until(lambda: len(children(run)) == 2)
    until(lambda: scrape(run)("retired_workers") == 0)
    found = scrape(run)
    assert found("relayed_bytes_total", listen=ONE, direction="down") == 100_005
    assert found("connections_ended_total", listen=ONE, reason="eof") == 1
    assert run.stop() == 0


@both_ways
def test_where_they_are_served_takes_a_restart(
    workers: str, served: StartServed, echo_server: Server
) -> None:
    text = proxies(echo_server, ONE)
    run = served(f'metrics = "127.0.0.1:0"\nworkers = {workers}\n{text}')
    scrape_until(run, "workers", int(workers))
    run.reload(f"workers = {workers}\n{text}", "ERROR not reloaded")
    assert run.find("metrics: only a restart can change it from 127.0.0.1:0 to None$")
    assert scrape(run)("workers") == int(workers)
    assert run.stop() == 0


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["served", "checked"])
def test_a_missing_library_is_named(
    options: tuple[str, ...], served: StartServed, echo_server: Server
) -> None:
    text = 'metrics = "127.0.0.1:0"\n' + proxies(echo_server, ONE)
    run = served(text, *options, patch=WITHOUT_THE_LIBRARY)
    assert run.end() == 2
    (line,) = run.lines
    assert "error: --metrics needs prometheus-client and h11: pip install " in line


@both_ways
def test_all_are_shown_over_a_reload(
    workers: str, served: StartServed, echo_server: Server
) -> None:
    """Those of proxies and of workers whose places others have taken, too."""
    run = served(proxies(echo_server, ONE, OTHER), "--workers", workers)
    one, other = ports_of(run)
    with connect_to(one) as first, connect_to(other) as second:
        for client in (first, second):
            assert exchange(client, b"hello") == b"hello"
        run.reload(proxies(echo_server, ONE))
        with connect_to(one) as third:
            assert exchange(third, b"hello") == b"hello"
            run.signal(signal.SIGUSR1)
            for client, listen in ((first, ONE), (second, OTHER), (third, ONE)):
                row = rf"INFO {name_of(client)} +{listen} +{where(echo_server)} +\d+ "
                if workers == "2" and client is third:  # its worker may have had one proxy alone
                    row = rf"INFO {name_of(client)} +({ONE} +)?{where(echo_server)} +\d+ "
                run.expect(row)
    assert run.stop() == 0
    no_accidents(run)
