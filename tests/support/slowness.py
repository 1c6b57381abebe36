"""One factor by which a slow machine, such as an emulated one, stretches tests' times and costs."""

from __future__ import annotations

import os

SLOWNESS = float(os.environ.get("FREEBSD_SPLICE_SLOWNESS", "1"))
