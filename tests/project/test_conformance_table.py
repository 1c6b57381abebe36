"""docs/conformance.md is what the suite says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.slowness import SLOWNESS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    """Made in a process of its own: collecting would disturb the run under way."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "conformance_table.py", "--check"],
        capture_output=True,
        text=True,
        timeout=100 * SLOWNESS,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"run tools/conformance_table.py\n{done.stdout}{done.stderr}"
