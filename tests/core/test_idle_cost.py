"""What idle relays cost: measured, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.descriptors import enough_descriptors
from support.slowness import SLOWNESS

pytest.importorskip("resource", reason="getrusage is POSIX's")

pytestmark = pytest.mark.usefixtures("userspace")

#: Each relay's right socket is the peer of the next one's left: two descriptors a relay.
PROGRAM = """
import resource, socket, sys, time
from freebsd_splice import Relay, _runtime
from freebsd_splice._kernel.lost_events import LostEvents
from freebsd_splice._platform.system import SystemPlatform
from model.idle import IdleKernelPlatform

modelled, seconds, count = sys.argv[1] == "modelled", float(sys.argv[2]), int(sys.argv[3])
if modelled:
    platform = IdleKernelPlatform()
    runtime = _runtime.Runtime(platform, choose=platform.choose)
else:
    runtime = _runtime.Runtime(SystemPlatform())
_runtime.install(runtime)
looks = 0.0
look_late = LostEvents._look_late

def timed(self):
    global looks
    began = time.thread_time()
    look_late(self)
    looks += time.thread_time() - began

LostEvents._look_late = timed
relays = []
client, left = socket.socketpair()
for _ in range(count):
    right, next_left = socket.socketpair()
    relays.append((Relay(left, right, idle_timeout=3600), left, right))
    left = next_left
if modelled:
    time.sleep(2.5)  # the looks that come soon after the start are over then
else:
    client.send(b"x")
    left.settimeout(60)
    assert left.recv(1) == b"x"
before = resource.getrusage(resource.RUSAGE_SELF)
counted = modelled and platform.world.counts["count"]
looks = 0.0
time.sleep(seconds)
after = resource.getrusage(resource.RUSAGE_SELF)
assert not modelled or platform.world.counts["count"] == counted
assert all(not relay.done for relay, *_ in relays)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(cpu / seconds, looks / seconds, (after.ru_nvcsw - before.ru_nvcsw) / seconds)
for relay, *pair in relays:
    relay.cancel()
"""


@pytest.mark.parametrize(
    "seconds", [2, pytest.param(10, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_two_hundred_idle_relays_cost_one_sweep_a_second(seconds: int) -> None:
    """Bounds: 1 % of a CPU, and three voluntary context switches a second."""
    cpu, looks, switches = _measure("engine", seconds, 200)
    assert cpu < 0.01 * SLOWNESS
    assert looks == 0
    assert switches < 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is modelled on Linux")
@pytest.mark.slow
def test_the_second_look_at_idle_relays_costs_little() -> None:
    """F14: under 1 % of a CPU, and no count is read.  With all else that is done for idle relays
    (the sweep for closed sockets, mostly) under 2 %."""
    cpu, looks, switches = _measure("modelled", 10, 4000)
    assert 0 < looks < 0.01 * SLOWNESS
    assert cpu < 0.02 * SLOWNESS
    assert switches < 4


def _measure(backend: str, seconds: int, count: int) -> tuple[float, float, float]:
    path = os.pathsep.join(path for path in sys.path if path)
    with enough_descriptors(5 * count):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, backend, str(seconds), str(count)],
            capture_output=True,
            text=True,
            timeout=100 * SLOWNESS,
            env=os.environ | {"PYTHONPATH": path},
        )
    assert done.returncode == 0, done.stderr
    cpu, looks, switches = map(float, done.stdout.split())
    return cpu, looks, switches
