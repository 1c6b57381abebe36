"""The benchmark runs, and nothing in it fails: payload, relays, report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.slowness import SLOWNESS

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400 * SLOWNESS),
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
    assert not [sample for sample in found["samples"] if sample["failure"]]
    shown = {name: about["proof"] for name, about in found["peers"].items() if about["proof"]}
    assert not [line for line in shown.values() if line.startswith("NOT SPLICING")], shown


def test_a_page_is_written_from_what_earlier_runs_have_found(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    docs = tmp_path / "docs"
    reports = {name: str(tmp_path / f"{name}.json") for name in ("connections", "short")}
    quick = ("--quick", "--rounds", "2", "--peers", "direct,ours,asyncio,threads")
    for section, report in reports.items():
        _bench(section, "--cases", "1 worker*", "* B", *quick, "--json", report)
    _bench("--read", *reports.values(), "--docs", str(docs))
    page = (docs / "benchmarks.md").read_text()
    for section in ("connections", "short"):
        picture = f"benchmarks/{section}.svg"
        assert f"({picture})" in page
        assert (docs / picture).read_text().count("<svg") == 1
    assert "| threads |" in page
    assert "1 worker, 1 at once" in page
    assert "2 workers" not in page
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


def test_a_relay_that_changes_a_byte_fails_its_runs() -> None:
    """The payload is compared: there is no figure for it then."""
    _script(CHANGING)


def test_worse_is_what_is_worse_in_every_round() -> None:
    _script(WORSE)


def test_only_runs_of_one_revision_go_together() -> None:
    _script(TOGETHER)


def _bench(*options: str) -> str:
    return _run("-m", "bench", *options)


def _script(text: str) -> str:
    """The text as a program that can import the benchmark."""
    return _run("-c", text)


def _run(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=390 * SLOWNESS,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


CHANGING = """
import sys
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

WORSE = """
from bench.cases import Case, Metric
from bench.results import Results, Sample

speed, cost = Metric("speed", "", more_is_better=True), Metric("cost", "", more_is_better=False)
case = Case("section", "case", (speed, cost), {name: dict for name in ("ours", "ours@old")})


def worse(speeds, costs):
    results = Results([case])
    for number, (one, two) in enumerate(zip(speeds, costs, strict=True)):
        for name, values in (("ours", (one, two)), ("ours@old", (100, 100))):
            named = dict(zip(("speed", "cost"), values, strict=True))
            results.samples.append(Sample("section", "case", name, number, named))
    return [line.split(": ")[3] for line in results.worse("@old")]


assert worse([80, 70, 99, 80, 80], [100] * 5) == ["speed"]
assert worse([80, 70, 101, 80, 80], [100] * 5) == []  # not in every round
assert worse([95, 70, 99, 95, 95], [100] * 5) == []  # not by a tenth
assert worse([100] * 5, [120, 130, 101, 120, 120]) == ["cost"]
assert worse([200] * 5, [50] * 5) == []
assert worse([50] * 4, [200] * 4) == []  # too few rounds
"""

TOGETHER = """
from dataclasses import replace
from bench.cases import Case
from bench.report import NotTogetherError, Report, together
from bench.results import Results

def report(section):
    results = Results([Case(section, "a case", (), {})])
    return Report("", "", "a revision", {}, {"load": 1.0}, 5, 60.0, {}, {}, "", results)

one, other = report("bulk"), report("short")
both = together([one, replace(other, rounds=6, noise={"load": 2.0})])
assert [case.section for case in both.results.cases] == ["bulk", "short"]
assert (both.rounds, both.seconds, both.noise) == (5, 120.0, {"load": 2.0})
for wrong in (one, replace(other, revision="another"), replace(other, machine={"cpus": 4})):
    try:
        together([one, wrong])
    except NotTogetherError:
        continue
    raise AssertionError(wrong)
"""
