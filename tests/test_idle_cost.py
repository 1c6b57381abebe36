"""What idle relays cost: measured, in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="getrusage is POSIX's")

PROGRAM = """
import resource, socket, sys, time
from freebsd_splice import Relay

seconds, count = float(sys.argv[1]), int(sys.argv[2])
relays, peers = [], []
for _ in range(count):
    left, client = socket.socketpair()
    right, server = socket.socketpair()
    relays.append(Relay(left, right, idle_timeout=3600))
    client.send(b"x")
    server.settimeout(20)
    assert server.recv(1) == b"x"
    peers += [client, server, left, right]
before = resource.getrusage(resource.RUSAGE_SELF)
time.sleep(seconds)
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(cpu / seconds, (after.ru_nvcsw - before.ru_nvcsw) / seconds)
for relay in relays: relay.cancel()
for peer in peers: peer.close()
"""


@pytest.mark.parametrize(
    "seconds", [2, pytest.param(10, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_two_hundred_idle_relays_cost_one_sweep_a_second(seconds: int) -> None:
    """Bounds: 1 % of a CPU, and three voluntary context switches a second."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seconds), "200"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    cpu, switches = map(float, done.stdout.split())
    assert cpu < 0.01
    assert switches < 3
