"""The package beside what a user would pick instead, measured in one run.

python -m bench [SECTION ...] [--peers NAMES] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import bulk, connections, latency, short
from .cases import Settings
from .machine import Noise, machine
from .peers import ROOT, Peer, all_peers, chosen, version
from .proof import proof
from .report import Report, text
from .results import measure

SECTIONS = {
    "bulk": bulk.cases,
    "capacity": bulk.capacity_cases,
    "latency": latency.cases,
    "connections": connections.cases,
    "short": short.cases,
}


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        peers = all_peers({"": ROOT}, Path(directory))
        try:
            wanted = chosen(peers, options.peers.split(","))
        except ValueError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
        present = [peer for peer in wanted if not peer.missing]
        settings = Settings(present, options.seconds, options.quick)
        cases = [case for name in options.sections for case in SECTIONS[name](settings)]
        about = {peer.name: _about(peer) for peer in present}
        noise = Noise()
        results = measure(cases, options.rounds, noise.look)
        report = Report(
            command=shlex.join(["python", "-m", "bench", *(arguments or sys.argv[1:])]),
            date=datetime.date.today().isoformat(),
            revision=_revision(),
            machine=machine().as_dict(),
            noise=noise.report(),
            rounds=options.rounds,
            peers=about,
            missing={peer.name: peer.missing for peer in wanted if peer.missing},
            results=results,
            seconds=time.monotonic() - started,
        )
    print(text(report), end="")
    if options.json:
        options.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    return 1 if results.failures() else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all"
    )
    parser.add_argument(
        "--peers", default="*", help="names, with commas; * and ? as in a shell; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--seconds", type=float, help="of each run; default: 2, with --quick 0.2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, for programs")
    options = parser.parse_args(arguments)
    options.sections = options.sections or list(SECTIONS)
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}: there are {', '.join(SECTIONS)}")
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.2 if options.quick else 2.0)
    return options


def _about(peer: Peer) -> dict[str, str]:
    shown = proof(peer) if peer.splices else ""
    return {"title": peer.title, "version": version(peer), "proof": shown}


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
