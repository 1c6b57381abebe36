"""Whether a relay that is said to splice does so: what its system calls, or its own log, show.

On Linux strace sums up what splice(2) returned while a stream goes through the relay; each byte is
spliced twice, into a pipe and out of it.  With SO_SPLICE the bytes pass no system call: there the
relay's log says how many the kernel has counted.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from .peers import Peer
from .running import FailedError, echo_target, load, relaying, verify

#: Of the bytes, so many must have been spliced: a flow's first ones may be copied.
ENOUGH = 0.8


def proof(peer: Peer) -> str:
    """One line; it begins with NOT where the relay doesn't splice what it is said to."""
    try:
        if sys.platform != "linux":
            return _logged(peer)
        if not shutil.which("strace"):
            return "not shown to splice: strace is not installed"
        return _traced(peer)
    except (FailedError, OSError) as error:
        return f"not shown to splice: {error}"


def _traced(peer: Peer) -> str:
    with tempfile.TemporaryDirectory() as name:
        trace = Path(name, "trace")
        prefix = ["strace", "-f", "-qq", "-e", "trace=splice", "-o", str(trace)]
        with echo_target() as target, relaying(peer, target, prefix=prefix) as relay:
            moved = load("bulk", relay.port, 1, "up", 1)["bytes"]
        results = re.findall(r"splice\b.* = (\d+)$", trace.read_text(), re.MULTILINE)
    return _line("splice(2) moved", sum(map(int, results)) / 2, moved)


def _logged(peer: Peer) -> str:
    with echo_target() as target, relaying(peer, target, verbose=True) as relay:
        size = 4 << 20
        verify(peer, relay.port, size)
        assert relay.relay is not None
        pattern = r"(\d+) bytes up, (\d+) bytes down, .*kernel/SO_SPLICE"
        found = re.search(pattern, relay.relay.wait_for_text(pattern))
    return _line("SO_SPLICE moved", sum(map(int, found.groups())) if found else 0, 2 * size)


def _line(what: str, spliced: float, moved: float) -> str:
    share = f"{what} {spliced / moved:.0%} of {moved / 1e6:.0f} MB"
    return share if spliced >= ENOUGH * moved else f"NOT SPLICING: {share}"
