"""One factor for machines that are slow, as an emulated one is: what tests wait, and may cost."""

from __future__ import annotations

import os

SLOWNESS = float(os.environ.get("FREEBSD_SPLICE_SLOWNESS", "1"))
