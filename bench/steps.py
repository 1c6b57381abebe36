"""What the model of several boxes says step by step, to be compared with real processes.

    connect N        the next N clients, one after another
    end CLIENT       it has had enough
    take over BOX    the next process serves; the one before has all the time it wants
    restart BOX      the same, and the grace passes
    die BOX          with all its processes
    come back BOX    with a new process
    look             the balancer looks who is up

Clients that are cut or refused don't come again. Clients are dealt out one after another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import simpy

from .balancing import RoundRobin
from .costs import Costs
from .farm import Farm, Setting

Step = tuple[str, int]

#: Any will do: who is cut depends on the order alone.
COSTS = Costs(connection=0.001, relay=1.0, process=1.0, start=0.1)
GRACE = 1_000.0


def play(steps: Sequence[Step], boxes: int = 2) -> list[dict[str, Any]]:
    """What is to be seen after each: the process of each client that is served, those that have
    been cut and refused so far, and the processes there are."""
    env = simpy.Environment()
    setting = Setting(boxes=boxes, grace=GRACE)
    farm = Farm(env, setting, COSTS, RoundRobin(), random.Random(0))
    clients: list[simpy.Process] = []
    seen = []
    for word, number in steps:
        if word == "connect":
            for _ in range(number):
                client = farm.client(len(clients), math.inf, stays=False)
                clients.append(env.process(client))
                env.run(until=env.now + 1)
        elif word == "end":
            clients[number].interrupt("end")
        elif word == "die":
            farm.die(farm.boxes[number])
        elif word == "look":
            farm.look()
        else:
            box = farm.boxes[number]
            env.process(farm.come_back(box) if word == "come back" else farm.take_over(box))
        env.run(until=env.now + (GRACE + 1 if word == "restart" else 1))
        seen.append(
            {
                "serving": farm.serving(),
                "cut": sorted(farm.cut),
                "refused": sorted(farm.refused),
                "processes": sorted(process.name for process in farm.processes()),
            }
        )
    return seen
