"""Short transfers: from which size on splicing pays, against reading and writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from .cases import Case, Metric, Settings, Values
from .peers import PROGRAMS, ROOT, Peer, import_path
from .running import PATIENCE, FailedError

METRICS = (
    Metric("per transfer", "µs", more_is_better=False),
    Metric("p99", "µs", more_is_better=False, shown=False),
    Metric("CPU", "µs/transfer", more_is_better=False),
)

#: What splicing is compared with.
COPY = "read and write"

KINDS = {
    "buffered": "aio.transfer of buffered bytes",
    "arriving": "aio.transfer of arriving bytes",
    "sockets": "Splice(max_bytes=)",
}

SIZES = {
    100: "100 B",
    1_000: "1 KB",
    10_000: "10 KB",
    100_000: "100 KB",
    1_000_000: "1 MB",
    4_000_000: "4 MB",
}


def cases(settings: Settings) -> list[Case]:
    found = []
    for kind, title in KINDS.items():
        for size, text in SIZES.items():
            if settings.quick and size not in (100, 1_000_000):
                continue
            measure = partial(_measure, min(1.0, settings.seconds), kind, size)
            contestants: dict[str, Callable[[], Values]] = {COPY: partial(measure, None)}
            for peer in settings.peers:
                if peer.ours:
                    contestants[peer.name] = partial(measure, peer)
            found.append(Case("short", f"{title}, {text}", METRICS, contestants, (COPY,)))
    return found


def _measure(seconds: float, kind: str, size: int, peer: Peer | None) -> Values:
    tree = peer.home if peer else ROOT
    command = [sys.executable, str(PROGRAMS / "short_transfers.py"), kind]
    command += ["splice" if peer else "copy", str(size), str(seconds), str(tree)]
    environment = peer.environment if peer else import_path(ROOT)
    run = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
    )
    if run.returncode:
        raise FailedError(run.stderr.strip().splitlines()[-1])
    result = json.loads(run.stdout)
    return {
        "per transfer": result["median"] * 1e6,
        "p99": result["p99"] * 1e6,
        "CPU": result["cpu"] * 1e6,
    }
