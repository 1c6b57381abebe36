"""A model of several boxes, each with a proxy: clients come, stay long, and are cut; in SimPy.

A box has processes that serve. At a restart by takeover the next process accepts from the moment at
which it serves, and the one before has its grace for the clients that it has. A client that is cut
or refused comes again after a pause, for what is left of its time.

Time is in seconds, memory in bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import simpy

from .balancing import Balancer
from .costs import Costs

LONGEST_PAUSE = 16

Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Setting:
    """What isn't measured: how the boxes are set up, and what clients do."""

    boxes: int = 2
    #: CPUs that accept on each box.
    cpus: int = 2
    #: How many clients may wait to be accepted on each box.
    backlog: float = math.inf
    #: Of a process that has been taken over from, or is to stop.
    grace: float = 60.0
    #: After which a client that was cut comes again, on average; half of it at least. At each
    #: attempt in vain it is twice as long, up to LONGEST_PAUSE of these.
    pause: float = 1.0


class Box:
    """A machine, and the processes on it that have clients."""

    def __init__(self, env: simpy.Environment, number: int, cpus: int) -> None:
        self._env = env
        self.number = number
        self.is_up = True
        self.cpu = simpy.Resource(env, cpus)
        self.processes: list[Process] = []
        self._started = 0

    def start(self) -> Process:
        """Another process, which doesn't accept yet."""
        name = f"{self.number}{chr(ord('a') + self._started % 26)}"
        self._started += 1
        self.processes.append(Process(self, name, self._env.event()))
        return self.processes[-1]

    @property
    def accepting(self) -> Process | None:
        return next((process for process in self.processes if process.accepts), None)

    @property
    def clients(self) -> int:
        return sum(len(process.clients) for process in self.processes)

    def memory(self, costs: Costs) -> float:
        return len(self.processes) * costs.process + self.clients * costs.relay


@dataclass(eq=False)
class Process:
    """What serves clients on a box."""

    box: Box
    #: The box's number, and which of its processes this is: "0a".
    name: str
    #: It has finished, and is gone.
    ended: simpy.Event
    accepts: bool = False
    clients: dict[int, simpy.Process] = field(default_factory=dict)

    def end_if_idle(self) -> None:
        if not self.accepts and not self.clients and self in self.box.processes:
            self.box.processes.remove(self)
            self.ended.succeed()

    def cut(self) -> None:
        """End all connections that it has."""
        for client in list(self.clients.values()):
            if client.is_alive:
                client.interrupt("cut")


class Farm:
    """The boxes, and a balancer that deals clients out among those that it knows to be up."""

    def __init__(
        self,
        env: simpy.Environment,
        setting: Setting,
        costs: Costs,
        balancer: Balancer,
        chance: random.Random,
    ) -> None:
        self.env = env
        self.setting = setting
        self.costs = costs
        self.balancer = balancer
        self.boxes = [Box(env, number, setting.cpus) for number in range(setting.boxes)]
        for box in self.boxes:
            box.start().accepts = True
        self.look()
        #: Connections that ended before their clients wanted it, by the clients.
        self.cut: list[int] = []
        #: Attempts that reached nobody, by the clients.
        self.refused: list[int] = []
        self._chance = chance

    # What happens to the boxes.

    def take_over(self, box: Box) -> Steps:
        """The next process serves, and the one before finishes within its grace."""
        following = box.start()
        yield self.env.timeout(self.costs.start)
        if following not in box.processes:  # the box has died meanwhile
            return
        before = box.accepting
        following.accepts = True
        if before is not None:
            yield from self._finish(before)

    def restart(self, box: Box) -> Steps:
        """Without takeover: nobody accepts until the process has ended and another one serves."""
        before = box.accepting
        if before is not None:
            yield from self._finish(before)
        if box.is_up:
            yield from self._begin(box)

    def die(self, box: Box) -> None:
        box.is_up = False
        processes, box.processes = box.processes, []
        for process in processes:
            process.accepts = False
            process.cut()

    def come_back(self, box: Box) -> Steps:
        box.is_up = True
        yield from self._begin(box)

    def look(self) -> None:
        """The balancer's check: it knows now who serves."""
        self.balancer.know([box.number for box in self.boxes if box.accepting])

    def _begin(self, box: Box) -> Steps:
        process = box.start()
        yield self.env.timeout(self.costs.start)
        process.accepts = process in box.processes

    def _finish(self, process: Process) -> Steps:
        process.accepts = False
        process.end_if_idle()
        yield self.env.timeout(self.setting.grace) | process.ended
        process.cut()

    # What clients do.

    def client(
        self, number: int, life: float, *, stays: bool = True, is_old: bool = False
    ) -> Steps:
        """Be served for that time.

        stays: it comes again where it was cut or refused.  is_old: it is connected already.
        """
        myself = self.env.active_process
        assert myself is not None
        in_vain = 0
        while life > 0:
            process = self._reach(number)
            if process is None:
                self.refused.append(number)
                in_vain += 1
            else:
                in_vain = 0
                process.clients[number] = myself
                served, began = False, self.env.now
                try:
                    if not is_old:
                        yield from self._be_accepted(process.box)
                    served, began = True, self.env.now
                    yield self.env.timeout(life) if life < math.inf else self.env.event()
                    return
                except simpy.Interrupt as interrupt:
                    if interrupt.cause == "end":
                        return
                    self.cut.append(number)
                    life -= self.env.now - began if served else 0.0
                finally:
                    del process.clients[number]
                    process.end_if_idle()
            is_old = False
            if not stays:
                return
            pauses = min(2 ** max(in_vain - 1, 0), LONGEST_PAUSE)
            yield self.env.timeout(pauses * self.setting.pause * self._chance.uniform(0.5, 1.5))

    def _reach(self, number: int) -> Process | None:
        known = self.balancer.choose(number, {box.number: box.clients for box in self.boxes})
        if known is None:
            return None
        box = self.boxes[known]
        return box.accepting if len(box.cpu.queue) < self.setting.backlog else None

    def _be_accepted(self, box: Box) -> Steps:
        with box.cpu.request() as turn:
            yield turn
            yield self.env.timeout(self.costs.connection)

    # What is to be seen.

    def serving(self) -> dict[int, str]:
        """The process that has each client."""
        return {
            client: process.name
            for process in self.processes()
            for client in sorted(process.clients)
        }

    def processes(self) -> Iterable[Process]:
        return (process for box in self.boxes for process in box.processes)
