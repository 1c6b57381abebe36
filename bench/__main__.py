"""The package beside what a user would pick instead, measured in one run.

python -m bench [SECTION ...] [--peers NAMES] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

from . import bulk, connections, latency, scale, short
from .cases import Settings
from .machine import Noise, machine
from .pages import write_page
from .peers import ROOT, Peer, UnknownPeerError, all_peers, chosen, version
from .plots import NoPlotsError, need_plots, plots
from .proof import proof
from .report import NotTogetherError, Report, together
from .results import measure
from .revisions import RevisionError, checkout
from .text import text

SECTIONS = {
    "bulk": bulk.cases,
    "capacity": bulk.capacity_cases,
    "latency": latency.cases,
    "connections": connections.cases,
    "scale": scale.cases,
    "short": short.cases,
}


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        if options.plots or options.docs:
            need_plots()
        report = _report(options)
        print(text(report), end="")
        if options.json:
            options.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
        if options.plots:
            plots(report, options.plots)
        if options.docs:
            print(f"written: {write_page(report, options.docs)}")
    except (UnknownPeerError, RevisionError, NoPlotsError, NotTogetherError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    worse = report.results.worse(report.against) if report.against else []
    for line in worse:
        print(f"WORSE in every round: {line}")
    return 1 if worse or report.results.failures() else 0


def _report(options: argparse.Namespace) -> Report:
    """A run's, or of earlier runs what their JSON says."""
    if options.read:
        return together([Report.from_dict(json.loads(file.read_text())) for file in options.read])
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        trees, mark = {"": ROOT}, ""
        if options.against:
            mark = f"@{options.against}"
            trees[mark] = stack.enter_context(checkout(options.against))
        build = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wanted = chosen(all_peers(trees, build), options.peers.split(","))
        present = [peer for peer in wanted if not peer.missing]
        settings = Settings(present, options.seconds, options.quick)
        cases = [case for name in options.sections for case in SECTIONS[name](settings)]
        cases = [case for case in cases if any(fnmatch(case.name, each) for each in options.cases)]
        about = {peer.name: _about(peer) for peer in present}
        noise = Noise()
        results = measure(cases, options.rounds, noise.look)
        return Report(
            command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
            date=datetime.date.today().isoformat(),
            revision=_revision(),
            machine=machine().as_dict(),
            noise=noise.report(),
            rounds=options.rounds,
            peers=about,
            missing={peer.name: peer.missing for peer in wanted if peer.missing},
            results=results,
            seconds=time.monotonic() - started,
            against=mark,
        )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all"
    )
    parser.add_argument(
        "--peers",
        help="names, with commas; * and ? as in a shell; default: all, with --against ours*",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help='those of that name alone; * and ? as in a shell: "8 streams up" "1 byte*"',
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--seconds", type=float, help="of each run; default: 2, with --quick 0.2")
    parser.add_argument(
        "--against",
        metavar="REV",
        help="another git revision, beside this one; exit status 1 where this one is worse by more"
        " than a tenth, in every round of at least five",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, for programs")
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY", help="an SVG for each section")
    parser.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=ROOT / "docs",
        metavar="DIRECTORY",
        help="benchmarks.md and its plots, in docs or there",
    )
    parser.add_argument(
        "--read",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="no run: report what --json of others wrote, each of which measured other sections",
    )
    options = parser.parse_args(arguments)
    options.sections = options.sections or list(SECTIONS)
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}: there are {', '.join(SECTIONS)}")
    options.peers = options.peers or ("ours*" if options.against else "*")
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
