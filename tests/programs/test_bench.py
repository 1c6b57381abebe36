"""The benchmark runs, and nothing in it fails: payload, relays, report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slowness import SLOWNESS

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not (ROOT / "bench" / "__main__.py").exists(),
        reason="the benchmark is not part of the package",
    ),
]


def test_every_section_runs_and_no_run_of_it_fails(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    peers = "direct,ours,haproxy,nginx,socat,asyncio,threads,c-relay"
    text = _bench("--quick", "--peers", peers, "--json", str(report))
    found = json.loads(report.read_text())
    assert {"direct", "ours", "asyncio", "threads"} <= set(found["peers"])
    for section in ("bulk", "connections", "latency", "scale", "short"):
        assert f"\n{section.upper()}\n" in text
        entries = [entry for entry in found["summary"] if entry["section"] == section]
        assert any(entry["contestant"] == "ours" for entry in entries)
        assert all(entry["median"] >= 0 for entry in entries)
    assert not [sample for sample in found["samples"] if sample["failure"]]


def _bench(*options: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "bench", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=390 * SLOWNESS,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_a_page_is_written_from_what_an_earlier_run_has_found(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report, docs = tmp_path / "report.json", tmp_path / "docs"
    quick = ("--quick", "--rounds", "2", "--peers", "direct,ours,asyncio,threads")
    _bench("connections", "short", *quick, "--json", str(report))
    _bench("--read", str(report), "--docs", str(docs))
    page = (docs / "benchmarks.md").read_text()
    for section in ("connections", "short"):
        picture = f"benchmarks/{section}.svg"
        assert f"({picture})" in page
        assert (docs / picture).read_text().count("<svg") == 1
    assert "| threads |" in page
    assert "**Failed**" not in page


def test_another_revision_is_measured_beside_this_one(tmp_path: Path) -> None:
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse"], capture_output=True).returncode:
        pytest.skip("this is no git checkout")
    report = tmp_path / "report.json"
    quick = ("--quick", "--peers", "ours", "--json", str(report))
    _bench("connections", "short", *quick, "--against", "HEAD")
    found = json.loads(report.read_text())
    assert set(found["peers"]) == {"ours", "ours@HEAD"}
    ratios = [entry["ratios"]["@HEAD"] for entry in found["summary"] if "@HEAD" in entry["ratios"]]
    assert ratios
    assert not [sample for sample in found["samples"] if sample["failure"]]


def test_a_relay_that_loses_bytes_fails_its_runs(tmp_path: Path) -> None:
    """The payload is compared: with what it gives there is no figure, and the status is 1."""
    script = tmp_path / "check.py"
    script.write_text(LOSING)
    run = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


#: A relay that turns one byte of those that go up.
LOSING = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from bench import bulk, connections, latency, scale
from bench.cases import Settings
from bench.peers import Peer
from bench.results import measure

RELAY = '''
import socket, sys, threading
def pump(source, drain, change):
    while data := source.recv(65536):
        drain.sendall(data[:-1] + bytes([data[-1] ^ change]))
    drain.shutdown(socket.SHUT_WR)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        client, _ = listener.accept()
        there = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
        threading.Thread(target=pump, args=(there, client, 0), daemon=True).start()
        threading.Thread(target=pump, args=(client, there, 1), daemon=True).start()
'''
relay = Peer(
    "turning",
    "",
    lambda launch: [sys.executable, "-c", RELAY, str(launch.listen), str(launch.target)],
)
settings = Settings([relay], 0.2, True)
sections = (bulk, connections, latency, scale)
cases = [case for section in sections for case in section.cases(settings)]
results = measure(cases, 1, lambda: None)
failures = [sample.failure for sample in results.failures()]
assert len(failures) == len(cases), failures
assert all("WrongPayload" in failure for failure in failures), failures
"""
