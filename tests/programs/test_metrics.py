"""``--metrics``: what a scrape says of clients, whichever worker serves them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice._cli.collecting import Collecting, answer
from freebsd_splice.proxies._numbers import Snapshot
from freebsd_splice.proxies._passwords import make_entry
from programs.clients import curl, read_to_eof
from programs.every_backend import BACKENDS
from programs.processes import (
    PATIENCE,
    Forwarder,
    Proxy,
    Server,
    closing_all,
    exchange,
    is_refused,
    receive,
    reset,
    until,
)
from programs.scraping import METRICS, Scrape, port_of, requested, scrape, scrape_until
from programs.test_log import A_DEFECT
from programs.test_pledge import elsewhere, on_openbsd

StartForwarder = Callable[..., Forwarder]
StartProxy = Callable[..., Proxy]

WITHOUT_THE_LIBRARY = """
import sys
sys.modules["prometheus_client"] = None
"""

#: At its end the program says which parts of it were loaded.
SAYS_WHAT_IS_LOADED = """
import atexit, sys
names = ("prometheus_client", "h11", "freebsd_splice._cli.exposition")
atexit.register(lambda: print("loaded:", [name for name in names if name in sys.modules]))
"""

#: Workers have little time to answer, and scrapers for all they do.
IN_A_HURRY = """
import freebsd_splice._cli.exposition as exposition
exposition._COLLECTING, exposition.DEADLINE, exposition._MOST = 0.3, 1.0, 2
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_of_a_connection_are_seen_while_it_lives(
    backend: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *METRICS, environment=BACKENDS[backend])
    with front.connect() as client:
        for count in (1, 2):
            assert exchange(client, bytes(100_000)) == bytes(100_000)
            bytes_down = count * 100_000
            found = scrape_until(front, "relayed_bytes_total", bytes_down, direction="down")
        assert found.moved("up") == 200_000
        assert found("connections_live", worker="0") == 1
        assert found.sum("connections_ended_total") == 0
    found = scrape_until(front, "connections_ended_total", 1, reason="eof")
    assert found("connections_live", worker="0") == 0
    assert found("connections_accepted_total") == 1
    assert (found.moved("up"), found.moved("down")) == (200_000, 200_000)
    assert found.served_by() == {backend}
    assert front.stop() == 0
    assert not front.find("ERROR|Traceback|WARNING")


def test_dials_and_handshakes_are_timed(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, *METRICS)
    before = scrape(front)
    assert before("dial_duration_seconds_count", result="connected") == 0
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        found = scrape(front)
    assert found("dial_duration_seconds_count", result="connected") == 1
    assert found("dial_duration_seconds_bucket", result="connected", le="+Inf") == 1
    assert found("dial_duration_seconds_count", result="failed") == 0
    assert 0 < found("dial_duration_seconds_sum", result="connected") < PATIENCE
    assert found("handshake_duration_seconds_count") == 1
    assert 0 < found("handshake_duration_seconds_sum") < PATIENCE


def test_the_process_is_described(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, *METRICS, descriptors=700)
    with front.connect() as client:  # all that serves clients is there then
        assert exchange(client, b"hello") == b"hello"
        found = scrape(front)
        assert found("workers") == found("worker_answered", worker="0") == 1
        assert found("max_descriptors", worker="0") == 700
        if sys.platform == "linux":
            # The scraper's is one more.
            until(lambda: scrape(front)("open_descriptors", worker="0") - 1 == opened(front))


def opened(front: Proxy) -> int:
    return sum(front.descriptors().values())


def test_a_client_that_has_too_many_is_counted(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *METRICS, "--max-per-client", "1")
    with front.connect() as client, front.connect() as another:
        assert exchange(client, b"hello") == b"hello"
        assert another.recv(1) == b""
        found = scrape_until(front, "connections_refused_total", 1, reason="per client")
    assert found("connections_accepted_total") == 2
    assert found("connections_live", worker="0") == 1


def test_a_client_that_a_header_names_is_counted_once(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    options = ("--accept-proxy", "127.0.0.1", "--max-per-client", "1")
    front = forwarder(echo_server.address, *METRICS, *options)
    with front.connect() as client, front.connect() as another:
        for sock in (client, another):
            sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 80\r\n")
            if sock is client:
                assert exchange(sock, b"hello") == b"hello"
        assert another.recv(1) == b""
        found = scrape_until(front, "connections_refused_total", 1, reason="per client")
    assert found("connections_accepted_total") == 2
    assert found("connections_live", worker="0") == 1


def test_a_client_that_meets_a_defect_is_not_live_for_ever(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *METRICS, patch=A_DEFECT)
    with front.connect() as client:
        assert client.recv(1) == b""
    found = scrape_until(front, "connections_refused_total", 1, reason="stopped")
    assert found("connections_live", worker="0") == 0


def test_a_target_that_refuses_is_counted(
    refusing: socket.socket, forwarder: StartForwarder
) -> None:
    front = forwarder(refusing.getsockname(), *METRICS)
    with front.connect() as client:
        assert client.recv(1) == b""
    found = scrape_until(front, "connections_refused_total", 1, reason="target")
    assert found("dial_duration_seconds_count", result="failed") == 1
    assert found("handshake_duration_seconds_count") == 0
    assert found("connections_live", worker="0") == 0


def test_a_service_that_nobody_knows_is_a_dial_that_failed(forwarder: StartForwarder) -> None:
    pytest.importorskip("dns", reason="it looks SRV records up")
    from programs.name_server import NameServer

    with contextlib.closing(NameServer()) as names:
        front = forwarder("srv:_web._tcp.example", "--resolver", names.address, *METRICS)
        with front.connect() as client:
            assert client.recv(1) == b""
        found = scrape_until(front, "connections_refused_total", 1, reason="target")
    assert found("dial_duration_seconds_count", result="failed") == 1
    assert found("dial_duration_seconds_count", result="connected") == 0


def test_refusals_of_a_proxy_are_counted_by_their_reasons(
    proxy: StartProxy, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(make_entry("alice", "secret") + "\n")
    front = proxy("socks5", *METRICS, "--passwords", str(passwords), "127.0.0.1:0")

    def say(*messages: bytes) -> None:
        with front.connect() as client:
            for message in messages:
                client.sendall(message)
                receive(client, 2)
            client.shutdown(socket.SHUT_WR)
            while client.recv(100):
                pass

    greeting, right, wrong = b"\5\1\2", b"\1\5alice\6secret", b"\1\5alice\5wrong"
    say(greeting, wrong)  # denied
    say(greeting, right, b"\5\1\0\1\x7f\0\0\1\0\x50")  # 127.0.0.1, which the rules keep out
    say()  # gone at once
    with front.connect() as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(100) == b""
    found = scrape_until(front, "connections_live", 0, worker="0")
    for reason in ("denied", "rules", "client gone", "handshake"):
        assert found("connections_refused_total", reason=reason) == 1, reason
    assert found("connections_accepted_total") == found.sum("connections_refused_total") == 4


def test_a_reset_is_counted_as_an_error(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, *METRICS)
    client = front.connect()
    assert exchange(client, b"hello") == b"hello"
    reset(client)
    found = scrape_until(front, "connections_live", 0, worker="0")
    errors = ("source error", "drain error")
    assert sum(found("connections_ended_total", reason=reason) for reason in errors) == 1


def test_connections_that_are_cut_are_counted_while_it_stops(
    echo_server: Server, silent: socket.socket, forwarder: StartForwarder
) -> None:
    """The metrics are served to the end."""
    front = forwarder(echo_server.address, *METRICS, "--grace", "1000")
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        front.signal(signal.SIGTERM)
        front.expect("stopping: 1 connections live")
        assert scrape(front)("connections_live", worker="0") == 1
    assert front.end() == 0


# Several workers


def serve(front: Forwarder, count: int, clients: list[socket.socket]) -> None:
    for _ in range(count):
        clients.append(front.connect())
        assert exchange(clients[-1], b"hello") == b"hello"


def test_one_scrape_shows_all_workers(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, "--workers", "3", *METRICS)
    with closing_all() as clients:
        serve(front, 30, clients)
        until(lambda: scrape(front).moved("down") == 150)
        until(lambda: scrape(front).sum("worker_answered") == 3)
        found = scrape(front)
        assert found("workers") == 3
        assert found("connections_accepted_total") == 30
        assert found.sum("connections_live") == 30
        for worker in "012":
            assert found("worker_answered", worker=worker) == 1
            assert found("max_descriptors", worker=worker) > 0
    scrape_until(front, "connections_ended_total", 30, reason="eof")
    assert front.stop() == 0
    assert not front.find("ERROR|Traceback|WARNING")


def test_no_total_shrinks_when_a_worker_dies(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", *METRICS)
    with closing_all() as clients:
        serve(front, 20, clients)
        until(lambda: scrape(front).moved("down") == 100)
        before = scrape(front)
        clients.pop().close()
        front.expect("bytes up")
        dead = int(front.expect(r" \[(\d+)\] INFO .* bytes up")[0][1])
        os.kill(dead, signal.SIGKILL)
        front.expect("has died")
        found = scrape_until(front, "workers", 2)
        assert before.samples.keys() >= found.samples.keys()
        assert not found.shrunk(before)
        assert found.sum("connections_live") < 20
        serve(front, 1, clients)
        scrape_until(front, "connections_accepted_total", 21)
    assert front.stop() == 0
    assert not front.find("Traceback")


def test_a_worker_that_hangs_holds_up_no_scrape(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", "2", *METRICS, patch=IN_A_HURRY)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    hung = int(front.expect(r" \[(\d+)\] INFO .* bytes up")[0][1])
    scrape_until(front, "connections_ended_total", 1, reason="eof")
    os.kill(hung, signal.SIGSTOP)
    try:
        until(lambda: _state_of(hung).startswith("T"))  # until then its threads may answer
        until(lambda: scrape(front).sum("worker_answered") == 1)  # the other one may only begin
        found = scrape(front)
        assert found("workers") == 2
        assert found.sum("worker_answered") == 1
        assert found("connections_ended_total", reason="eof") == 1
    finally:
        os.kill(hung, signal.SIGCONT)
    until(lambda: scrape(front).sum("worker_answered") == 2)


def _state_of(process: int) -> str:
    told = subprocess.run(
        ["ps", "-o", "state=", "-p", str(process)], capture_output=True, text=True
    )
    return told.stdout.strip()


class Short(socket.socket):
    """A socket for whose first message the system has no memory."""

    sent = 0

    def send(self, *arguments: Any) -> int:
        self.sent += 1
        if self.sent == 1:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return super().send(*arguments)


def test_a_worker_that_could_not_be_asked_is_asked_again() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        channel = Short(fileno=ours.detach())
        channel.setblocking(False)
        collecting = Collecting()
        listening = asyncio.ensure_future(collecting.listen(0, channel))
        answering = asyncio.ensure_future(
            asyncio.to_thread(answer, theirs, lambda: Snapshot({("accepted", ":80"): 1}, {}))
        )
        await asyncio.sleep(0)  # from here on it is listened to
        assert not (await collecting.collect(0.0)).workers[0].answered
        found = await collecting.collect(PATIENCE)
        assert found.workers[0].answered
        assert found.totals == {("accepted", ":80"): 1}
        listening.cancel()
        await asyncio.wait([listening])
        await answering

    asyncio.run(main())


def test_the_workers_have_no_socket_of_the_scrapers(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    """A scraper would wait for its end, and the port would be taken, as long as a worker lives."""
    if sys.platform != "linux":
        pytest.skip("only /proc says which sockets a process has")
    front = forwarder(echo_server.address, "--workers", "2", *METRICS)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    port = port_of(front)
    scraper = socket.create_connection(("127.0.0.1", port), PATIENCE)
    with scraper:
        scraper.sendall(b"GET / HTTP/1.1\r\n")
        until(lambda: sockets(port) <= sockets_of(front.pid))
        dead = int(front.expect(r" \[(\d+)\] INFO .* bytes up")[0][1])
        before = children_of(front.pid)
        os.kill(dead, signal.SIGKILL)
        until(lambda: children_of(front.pid) - before)
        assert len(sockets(port)) == 2  # the listening one, and the scraper's
        until(lambda: not any(sockets(port) & sockets_of(pid) for pid in children_of(front.pid)))
        scraper.sendall(b"Host: a\r\n\r\n")
        assert read_to_eof(scraper).startswith(b"HTTP/1.1 200 OK\r\n")


def sockets(port: int) -> set[str]:
    """The inodes of all sockets at that port of this machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[9] for line in lines if line[1] == f"0100007F:{port:04X}" and line[9] != "0"}


def sockets_of(process: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(each))
    return {link[8:-1] for link in found if link.startswith("socket:[")}


def children_of(process: int) -> set[int]:
    return set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


# Scrapers


def test_curl_is_answered_in_both_formats(echo_server: Server, forwarder: StartForwarder) -> None:
    openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
    front = forwarder(echo_server.address, *METRICS)
    url = f"http://127.0.0.1:{port_of(front)}/metrics"
    plain = curl("--include", url).stdout.decode()
    assert plain.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4;")
    assert Scrape(plain.partition("\r\n\r\n")[2])("workers") == 1
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    text = curl("--compressed", "--header", accept, url).stdout.decode()
    names = {family.name for family in openmetrics.text_string_to_metric_families(text)}
    assert "freebsd_splice_connections_accepted" in names
    assert curl("--head", url).stdout.startswith(b"HTTP/1.1 200 OK\r\n")
    chosen = curl("--globoff", f"{url}?name[]=freebsd_splice_workers").stdout.decode()
    assert len(Scrape(chosen).samples) == 1


#: What is said to it, and the status that is answered; b"": nothing is.
BAD_REQUESTS = {
    b"nonsense\r\n\r\n": b"400",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": b"400",
    b"GET / HTTP/1.1\r\n\r\n": b"400",  # no Host
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000: b"431",
    b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n": b"405",
    b"GET /": b"400",
    b"": b"",
}


def test_bad_requests_are_refused(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, *METRICS)
    for said, status in BAD_REQUESTS.items():
        with socket.create_connection(("127.0.0.1", port_of(front)), PATIENCE) as sock:
            answer = b""
            with contextlib.suppress(OSError):  # a reset: it was closed with bytes unread
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                answer = read_to_eof(sock)
        if status == b"":
            assert answer == b""
        elif answer:  # a reset can have destroyed it
            assert answer.startswith(b"HTTP/1.1 %b " % status), said
        assert scrape(front)("workers") == 1
    assert front.stop() == 0
    assert not front.find("ERROR|Traceback")


def test_silent_scrapers_hold_up_nobody(echo_server: Server, forwarder: StartForwarder) -> None:
    """IN_A_HURRY lets two be there at once; they are closed when their time is over."""
    front = forwarder(echo_server.address, *METRICS, patch=IN_A_HURRY)
    port = port_of(front)
    with closing_all() as scrapers:
        for _ in range(4):
            scrapers.append(socket.create_connection(("127.0.0.1", port), PATIENCE))
        with front.connect() as client:
            assert exchange(client, b"hello") == b"hello"
        assert scrape(front)("connections_accepted_total") == 1
        for sock in scrapers:
            assert sock.recv(1) == b""


TOO_MANY_FILES = """
import asyncio, errno, os
import freebsd_splice._cli.exposition as exposition
exposition._RETRY_AFTER = 0.01
accept, failures = asyncio.SelectorEventLoop.sock_accept, [1, 2, 3]
async def sock_accept(loop, listener):
    if failures:
        failures.pop()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return await accept(loop, listener)
asyncio.SelectorEventLoop.sock_accept = sock_accept
"""


def test_that_scrapers_are_kept_waiting_is_said_once(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *METRICS, patch=TOO_MANY_FILES)
    assert scrape(front)("workers") == 1
    assert front.stop() == 0
    assert len(front.find("WARNING metrics: cannot accept: Too many open files; raise ulimit")) == 1


def test_a_page_that_a_browser_asks_for_is_none(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *METRICS)
    with requested(front, "/favicon.ico") as response:
        assert (response.status, response.read()) == (200, b"")


# The option


def test_it_is_off_by_default(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, patch=SAYS_WHAT_IS_LOADED)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.stop() == 0
    front.expect(r"loaded: \[\]")
    assert not front.find("metrics")


def test_without_the_library_it_says_what_to_install(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *METRICS, patch=WITHOUT_THE_LIBRARY)
    assert front.end() == 2
    (line,) = front.lines
    assert line.startswith(
        "freebsd-splice forward: error: --metrics needs prometheus-client and h11: "
        'pip install "freebsd-splice[metrics]" ('
    )


def test_an_address_that_is_taken_is_an_error(
    refusing: socket.socket, echo_server: Server, forwarder: StartForwarder
) -> None:
    host, port = refusing.getsockname()
    front = forwarder(echo_server.address, "--metrics", f"{host}:{port}")
    assert front.end() == 1
    front.expect(rf"freebsd-splice: cannot listen on {host}:{port}: ")


def test_numbers_that_others_can_read_are_warned_of(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--metrics", "0.0.0.0:0")
    assert front.port
    front.expect(r"WARNING everybody who can reach 0\.0\.0\.0:\d+ can read the metrics$")
    assert front.stop() == 0


#: At its end the program says which modules in C were loaded after it had given up the rest.
SAYS_WHAT_IS_LOADED_LATE = """
import atexit, os, sys
from importlib.machinery import EXTENSION_SUFFIXES
import freebsd_splice._cli.inspection as inspection
import freebsd_splice._cli.pledging as pledging
early = set()
listen_on = inspection.listen_on
def listen(*arguments, **options):
    os.write(2, b"opened\\n")
    return listen_on(*arguments, **options)
def note(promises):
    os.write(2, b"pledged\\n")
    early.update(sys.modules)
def late():
    files = [getattr(sys.modules[name], "__file__", None) or "" for name in {*sys.modules} - early]
    print("late:", [file for file in files if file.endswith(tuple(EXTENSION_SUFFIXES))])
pledging.why_no_pledge = lambda: None
pledging.pledge = note
inspection.listen_on = listen
atexit.register(late)
"""


@elsewhere
def test_a_scrape_takes_nothing_that_was_given_up(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    """Neither another listening socket nor a module in C, which could not be loaded any more."""
    front = forwarder(echo_server.address, *METRICS, "--pledge", patch=SAYS_WHAT_IS_LOADED_LATE)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        assert scrape(front).moved("down") >= 0
        curl("--compressed", f"http://127.0.0.1:{port_of(front)}/metrics")
    assert front.stop() == 0
    front.expect(r"^late: \[\]$")
    assert [line for line in front.lines if line in ("opened", "pledged")] == ["opened", "pledged"]


@on_openbsd
@pytest.mark.parametrize("workers", ["1", "2"])
def test_metrics_are_served_by_what_a_pledge_leaves(
    workers: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *METRICS, "--pledge", "--workers", workers)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
        until(lambda: scrape(front).moved("down") == 5)
        found = scrape(front)
        assert found("workers") == found.sum("worker_answered") == int(workers)
        assert found("open_descriptors", worker="0") > 0
        assert found("connections_live") == 1
    assert front.stop() == 0
    assert not front.find("ERROR|Traceback")


WITHOUT_ITS_THREAD = """
import freebsd_splice._cli.inspection as inspection
def start(run, name):
    raise RuntimeError("can't start new thread")
inspection.start_thread = start
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_clients_are_served_where_numbers_can_not_be_read(
    workers: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    options = (*METRICS, "--workers", workers)
    front = forwarder(echo_server.address, *options, patch=WITHOUT_ITS_THREAD)
    front.expect("ERROR the numbers of this process can't be read: ", int(workers))
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    scrape_until(front, "workers", 0)
    assert front.stop() == 0


def test_workers_are_started_where_the_metrics_have_failed(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    patch = """
import freebsd_splice._cli.exposition as exposition
async def fail(self):
    raise ZeroDivisionError
exposition.Exposition._serve = fail
"""
    front = forwarder(echo_server.address, *METRICS, "--workers", "2", patch=patch)
    front.expect("ERROR the metrics can't be read any more")
    until(lambda: is_refused(("127.0.0.1", port_of(front))))  # scrapers don't wait in vain
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    front.expect("bytes up")
    os.kill(int(front.expect(r" \[(\d+)\] INFO .* bytes up")[0][1]), signal.SIGKILL)
    front.expect("has died")
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    assert front.stop() == 0
