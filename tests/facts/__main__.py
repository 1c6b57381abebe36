"""``python tests/facts``: is this kernel as the facts say?  Standard library only."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freebsd_splice._diagnostics.facts import main

if __name__ == "__main__":
    sys.exit(main())
