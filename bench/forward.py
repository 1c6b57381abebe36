"""Forwarders side by side: the same machine, the same minutes, iperf3 through each of them.

    python bench/forward.py [--quick] [--json] [--streams N ...]

Prints ratios, never a figure alone: how much faster a forwarder is on another machine nobody
knows, and this one is busy with other things as well.  Every round takes each forwarder once, with
one stream and with eight, and the table has the medians over the rounds.

Throughput is what iperf3's receiver got.  CPU is what the forwarder's process used (user and
system time) for each byte of it, its start and end not counted.  Both are relative to HAProxy,
which splices too, and to asyncio's streams; "direct" is iperf3 without anything between.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
PATIENCE = 30.0

HAPROXY = """\
global
    maxconn 1000
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen forward
    bind {host}:{listen}
    server target {host}:{target}
"""


class Forwarder(NamedTuple):
    name: str
    command: list[str]
    environment: dict[str, str]


class Result(NamedTuple):
    """One run through one forwarder."""

    bytes_a_second: float
    #: None for no forwarder at all.
    cpu_seconds_a_byte: float | None


Results = dict[str, dict[int, list[Result]]]


def main() -> None:
    options = _options()
    if shutil.which("iperf3") is None:
        sys.exit("bench/forward.py: iperf3 is not installed")
    with tempfile.TemporaryDirectory() as directory:
        forwarders = _forwarders(Path(directory))
        results = measure(forwarders, options.streams, options.rounds, options.seconds)
    print(json.dumps(results) if options.json else table(results))


def measure(
    forwarders: list[Forwarder], numbers_of_streams: list[int], rounds: int, seconds: int
) -> Results:
    """All of them in each round, so that what slows the machine down slows all of them down."""
    names = ["direct", *(forwarder.name for forwarder in forwarders)]
    results: Results = {name: {streams: [] for streams in numbers_of_streams} for name in names}
    own = {forwarder.name: _idle_cpu(forwarder) for forwarder in forwarders}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for streams in numbers_of_streams:
            results["direct"][streams].append(_run_direct(streams, seconds))
            for forwarder in random.sample(forwarders, len(forwarders)):
                result = _run(forwarder, streams, seconds, own[forwarder.name])
                results[forwarder.name][streams].append(result)
    return results


def ratios(results: Results, streams: int) -> dict[str, dict[str, float]]:
    """Of the medians over the rounds: for each forwarder, what of it is relative to whom."""
    medians = {name: _median(runs[streams]) for name, runs in results.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in medians}
    for other in ("haproxy", "asyncio"):
        if other not in medians:
            continue
        base = medians[other]
        for name, one in medians.items():
            found[name][f"throughput to {other}"] = one.bytes_a_second / base.bytes_a_second
            if one.cpu_seconds_a_byte is not None and base.cpu_seconds_a_byte:
                cpu = one.cpu_seconds_a_byte / base.cpu_seconds_a_byte
                found[name][f"CPU to {other}"] = cpu
    return found


def table(results: Results) -> str:
    """The ratios, to be read."""
    columns = ["throughput to haproxy", "throughput to asyncio", "CPU to haproxy", "CPU to asyncio"]
    lines = [
        f"{'':<18}{'throughput relative to':^24}{'CPU for each byte relative to':^34}",
        f"{'':<18}{'HAProxy':>12}{'asyncio':>12}{'HAProxy':>18}{'asyncio':>12}",
    ]
    for streams in results["direct"]:
        lines.append(f"{streams} stream{'s' if streams > 1 else ''}")
        for name, found in ratios(results, streams).items():
            cells = [f"{found[column]:.2f}" if column in found else "-" for column in columns]
            lines.append(f"  {name:<16}{cells[0]:>12}{cells[1]:>12}{cells[2]:>18}{cells[3]:>12}")
    lines.append(f"rounds: {max(map(len, results['direct'].values()))}")
    if "haproxy" not in results:
        lines.append("haproxy is not installed, so that nothing is relative to it")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Forwarders side by side, through iperf3.")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--seconds", type=int, help="of each run; default: 3, with --quick 1")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8], help="default: 1 8")
    parser.add_argument(
        "--json",
        action="store_true",
        help="every run, for programs: forwarder, streams, [bytes a second, CPU seconds a byte]",
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 3)
    return options


def _forwarders(directory: Path) -> list[Forwarder]:
    """Their commands, with {listen} and {target} for the two ports."""
    python = sys.executable
    ours = [python, "-m", "freebsd_splice", "forward", "--log-level", "warning"]
    ours += [f"{HOST}:{{listen}}", f"{HOST}:{{target}}"]
    found = [
        Forwarder(f"ours, {mover}", ours, {"FREEBSD_SPLICE_MOVER": mover}) for mover in _movers()
    ]
    for name in ("asyncio", "threads"):
        script = str(HERE / f"forward_{name}.py")
        found.append(Forwarder(name, [python, script, "{listen}", "{target}"], {}))
    if shutil.which("haproxy"):
        # What is in its file, the ports above all, is written anew for each run.
        found.append(Forwarder("haproxy", ["haproxy", "-db", "-f", str(directory / "cfg")], {}))
    return found


def _movers() -> list[str]:
    return ["os.splice", "copy"] if hasattr(os, "splice") else ["copy"]


def _run_direct(streams: int, seconds: int) -> Result:
    with _iperf3_server() as port:
        return Result(_iperf3_client(port, streams, seconds), None)


def _run(forwarder: Forwarder, streams: int, seconds: int, own_cpu: float) -> Result:
    with _iperf3_server() as target:
        process, listen = _start(forwarder, target)
        try:
            bytes_a_second = _iperf3_client(listen, streams, seconds)
        finally:
            cpu = _stop(process)
    return Result(bytes_a_second, (cpu - own_cpu) / (bytes_a_second * seconds))


def _idle_cpu(forwarder: Forwarder) -> float:
    """What it takes to start and to end."""
    process, _ = _start(forwarder, _free_port())
    return _stop(process)


def _start(forwarder: Forwarder, target: int) -> tuple[subprocess.Popen[bytes], int]:
    listen = _free_port()
    ports = {"host": HOST, "listen": listen, "target": target}
    if forwarder.name == "haproxy":
        Path(forwarder.command[-1]).write_text(HAPROXY.format(**ports))
    process = subprocess.Popen(
        [part.format(**ports) for part in forwarder.command],
        env={**os.environ, **_import_path(), **forwarder.environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_listener(listen, forwarder.name)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process, listen


def _stop(process: subprocess.Popen[bytes]) -> float:
    """End it; gives the CPU seconds it used."""
    process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status  # so that Popen doesn't wait for it as well
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _iperf3_server() -> Iterator[int]:
    port = _free_port()
    command = ["iperf3", "-s", "-1", "-B", HOST, "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as server:
        try:
            _wait_for_listener(port, "iperf3")
            yield port
        finally:
            server.kill()


def _iperf3_client(port: int, streams: int, seconds: int) -> float:
    """Bytes a second that arrived at the server."""
    # Large blocks: with small ones iperf3 itself is what a fast forwarder waits for.
    command = ["iperf3", "-c", HOST, "-p", str(port), "-J", "-l", "1M"]
    command += ["-P", str(streams), "-t", str(seconds)]
    run = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds + PATIENCE)
    report = json.loads(run.stdout)
    if run.returncode:
        raise RuntimeError(f"iperf3: {report.get('error')}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8


def _wait_for_listener(port: int, name: str) -> None:
    """Until somebody listens there, found out without being iperf3's one and only client."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for host in (HOST, ""):  # the BSDs let the one be bound beside the other
            with socket.socket() as probe:
                # So that it is in nobody's way before there is a listener, and fails after that.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError:
                    return
        time.sleep(0.02)
    raise RuntimeError(f"{name} doesn't listen on port {port}")


def _free_port() -> int:
    """Below the ports that systems hand out to clients."""
    while True:
        port = random.randrange(15_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


def _median(runs: list[Result]) -> Result:
    cpu = [run.cpu_seconds_a_byte for run in runs if run.cpu_seconds_a_byte is not None]
    return Result(
        statistics.median(run.bytes_a_second for run in runs),
        statistics.median(cpu) if cpu else None,
    )


def _import_path() -> dict[str, str]:
    """The package of this tree, also where it isn't installed."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *([others] if others else [])])}


if __name__ == "__main__":
    main()
