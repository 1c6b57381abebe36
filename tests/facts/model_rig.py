"""The facts' rig in the modelled kernel."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

import pytest

from freebsd_splice._diagnostics.facts import Fact
from freebsd_splice._diagnostics.facts.kernel_rig import _pattern
from freebsd_splice._platform.interface import Readiness
from model.kqueue import ModelPollBits, poll_bits
from model.platform import STRUCT_SIZE
from model.so_splice import PUSHING
from model.tcp import CLOSED, LISTEN
from model.world import World

#: What is in the drain's two buffers when nothing more fits.
FULL = 60_000 + 40_000


class ModelRig:
    """See ``freebsd_splice._diagnostics.facts.Rig``."""

    def __init__(self, version: str) -> None:
        self.world = World(version)
        self.world.automatic = False
        self.kernel = self.world.so_splice
        self.source, self.sender = self.world.pair(150_000, 150_000)
        self.drain, self.receiver = self.world.pair(60_000, 40_000)
        self.sent = 0
        self._kqueue = self.world.new_kqueue()
        self._events: list[str] = []
        self._arrived = bytearray()
        self._armed = False
        self._descriptors: dict[str, int] = {}
        self._stopped = False

    def close(self) -> None: ...

    @property
    def system(self) -> str:
        return self.world.calls.system

    @property
    def sockets(self) -> str:
        return self.system

    @property
    def release(self) -> tuple[int, int]:
        return self.world.calls.release

    def shows(self, fact: Fact) -> Fact | None:
        return fact

    # What is seen

    def seen_events(self) -> list[str]:
        return self._events

    def seen_poll(self, which: str) -> set[str]:
        endpoint = (self.source if which == "source" else self.drain).endpoint
        shown = poll_bits(endpoint, self.kernel.openbsd)
        return {name for name, bit in ModelPollBits.__members__.items() if bit and bit in shown}

    def seen_count(self) -> int:
        return self.world.calls.spliced_count(self._descriptor("source"))

    def seen_error(self, which: str) -> int:
        chosen = self.source if which == "source" else self.drain
        return chosen.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def seen_left(self) -> bytes:
        left = b""
        with suppress(OSError):
            while piece := self.source.recv(1 << 20):
                left += piece
                self._settle()
        return left

    def seen_arrived(self) -> bytes:
        while piece := self.receiver.read():
            self._arrived += piece
            self._settle()
        return bytes(self._arrived)

    def expected(self, first: int, count: int) -> bytes:
        return _pattern(first, count)

    # The words of a script

    def do_nothing(self) -> None: ...

    def do_splice(
        self, where: str = "", max: int | str = 0, idle: float = 0.0, length: int = STRUCT_SIZE
    ) -> None:
        limit = FULL if isinstance(max, str) else max
        calls = self.world.calls
        if where == "back":
            calls.set_splice(self.drain.fileno(), self.source.fileno(), 0, 0)
        elif where == "other":
            calls.set_splice(self.world.pair()[0].fileno(), self._descriptor("drain"), 0, 0)
        else:
            self._arm()
            source, drain = self._descriptor("source"), self._descriptor("drain")
            calls.set_splice(source, drain, limit, idle, length)
        self._settle()

    def do_end(self, *within_the_call: str) -> None:
        if within_the_call:
            self.kernel.during_set = self._ended_meanwhile
            return
        self.world.calls.end_splice(self._descriptor("source"))
        self._settle()

    def _ended_meanwhile(self) -> None:
        with pytest.raises(OSError) as refused:
            self.world.calls.end_splice(self.source.fileno())
        assert refused.value.errno == errno.ENOTCONN

    def do_count(self, length: int) -> None:
        assert length == 4

    def do_send(self, count: int | str) -> None:
        left = FULL if isinstance(count, str) else count
        while left:
            taken = self.sender.write(_pattern(self.sent, left))
            assert taken, "the script sends more than the source's buffers take"
            self.sent += taken
            left -= taken
            self._settle()

    def do_answer(self, count: int) -> None:
        self.receiver.write(_pattern(0, count))
        self._settle()
        assert self.sender.read() == _pattern(0, count)

    def do_fill(self) -> None:
        while self.seen_count() == self.sent:
            self.do_send(20_000)

    def do_fin(self) -> None:
        self.sender.fin()
        self._settle()

    def do_reset(self) -> None:
        self.sender.reset()
        self._settle()

    def do_drain(self, what: str) -> None:
        if what == "fin":
            self.receiver.fin()
        elif what == "close":
            self.receiver.close()
        elif what == "reset":
            self.receiver.reset()
        else:
            self._arrived += self.receiver.read()
            assert self.receiver.incoming.fin_delivered == (what == "ended")
        self._settle()

    def do_sender(self, what: str) -> None:
        if what == "ended":
            assert self.sender.received_all
            assert not self.sender.was_reset
        else:
            assert self.sender.was_reset

    def do_shut(self, which: str) -> None:
        if which == "drain":
            self.drain.shutdown(socket.SHUT_WR)
        else:
            self.source.shutdown(socket.SHUT_RD)
        self._settle()

    def do_close(self, which: str) -> None:
        (self.source if which == "source" else self.drain).close()
        self._settle()

    def do_take_error(self) -> None:
        self.seen_error("source")

    def do_shrink(self, which: str) -> None:
        self.drain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def do_duplicates(self) -> None:
        for made in (self.source, self.drain):
            self.world.close(self.world.open(made.endpoint))

    def do_wait(self, seconds: float) -> None:
        self.world.tick(seconds)
        self._settle()

    def do_read(self) -> None:
        self.seen_arrived()

    def do_receive(self) -> None:
        self.source.recv(1)

    def do_use(self, source: str = "", drain: str = "") -> None:
        for role, kind in (("source", source), ("drain", drain)):
            if kind == "fresh":
                self.drain, self.receiver = self.world.pair()
                self._descriptors.pop(role, None)
                self._armed = False
            elif kind == "self":
                self.drain, self.receiver = self.source, self.sender
            elif kind and kind != "IPv6":
                self._descriptors[role] = self._special(kind)

    # What only a model can do

    def do_halfway(self) -> None:
        """The worker stops after the first half of its turn."""
        self._stopped = True
        self.world.worker_move(self.world.splices[0])

    def do_rest(self) -> None:
        self._stopped = False
        self.world.worker_idle(self.world.splices[0])
        self._settle()

    def do_vanish(self) -> None:
        self.kernel.vanish = True

    def do_short(self) -> None:
        self.kernel.short_splices = True

    def do_stall(self) -> None:
        self.kernel.stall = PUSHING

    def do_push(self) -> None:
        self.world.calls.push(self.drain.fileno())
        self._settle()

    def do_ahead(self) -> None:
        self.drain.send(b"x")
        self.world.deliver(self.drain.endpoint.outgoing)

    def do_ack(self, *within_the_call: str) -> None:
        self.kernel.during_set = lambda: self.world.ack(self.drain.endpoint.outgoing)

    # Below that

    def _descriptor(self, which: str) -> int:
        plain = self.source if which == "source" else self.drain
        return self._descriptors.get(which, plain.fileno())

    def _special(self, kind: str) -> int:
        if kind == "closed":
            return -1
        if kind == "file":
            return self.world.open_file()
        made = self.world.lone(LISTEN if kind == "listening" else CLOSED)
        made.endpoint.tcp = kind not in ("unix", "udp")
        return made.fileno()

    def _arm(self) -> None:
        if not self._armed and not self._descriptors:
            self._armed = True
            self._kqueue.arm(self.source.fileno(), self.drain.fileno())

    def _settle(self) -> None:
        """All that happens by itself; a worker that was stopped stays so."""
        while rules := [
            rule
            for rule in self.world.enabled()
            if not (self._stopped and rule.name.startswith("rest"))
        ]:
            rules[0].happen()
        for descriptor, which in self._kqueue.collect():
            name = "src.R" if which is Readiness.READ else "drain.W"
            over = self._kqueue.shows_eof(descriptor, which)
            self._events.append(name + (" EOF" if over else ""))
