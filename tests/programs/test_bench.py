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
    text = _bench("--quick", "--json", str(report))
    found = json.loads(report.read_text())
    assert {"direct", "ours", "asyncio", "threads"} <= set(found["peers"])
    for section in ("connections", "latency"):
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
