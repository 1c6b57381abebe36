"""The package's platform over a modelled world, without real sockets, threads or a real clock."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from freebsd_splice._backend import KernelChoice
from freebsd_splice._platform.interface import Endpoint, Pipe, Poller, SocketLike
from freebsd_splice._platform.kernel_interface import EndEvents, PollBits, PollSet, capabilities_of
from freebsd_splice._userspace.movers import LARGE_PIPE

from .kqueue import ModelPollBits, ModelPollSet, as_poll_bits, poll_bits
from .pipes import ModelPipe
from .poller import ModelPoller
from .sockets import ModelSocket
from .tcp import LISTEN, fail
from .tcp import Endpoint as TcpEndpoint

if TYPE_CHECKING:
    from .world import World


#: Bytes of struct splice on a 64-bit machine (F2).
STRUCT_SIZE = 32


class Calls:
    """``KernelCalls`` of the modelled kernel."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.system = "OpenBSD" if world.kernel == "openbsd" else "FreeBSD"
        self.release = {"14.3": (14, 3), "15.1": (15, 1), "openbsd": (7, 8)}[world.kernel]
        self.capabilities = capabilities_of(self.system, self.release)

    def set_splice(
        self, source: int, drain: int, max_bytes: int, idle: float, size: int = STRUCT_SIZE
    ) -> None:
        """Set a splice; ``size`` is the length, in bytes, of the program's struct splice."""
        self._world.counts["set"] += 1
        if size < STRUCT_SIZE:
            raise fail(errno.EINVAL)  # F3
        from_, to = self._endpoint(source), self._endpoint(drain)
        if not (from_.non_blocking and to.non_blocking):
            self._world.blocking_while_spliced.append((source, drain))  # F24
        self._world.so_splice.set(from_, to, max_bytes, idle)

    def end_splice(self, source: int) -> None:
        self._world.counts["end"] += 1
        self._world.may_hang(self._endpoint(source), "end")
        self._world.so_splice.end_splice(self._endpoint(source))

    def spliced_count(self, source: int) -> int:
        self._world.counts["count"] += 1
        self._world.may_hang(self._endpoint(source), "count")
        return self._world.so_splice.count(self._endpoint(source))

    def tcp_state(self, descriptor: int) -> int:
        self._world.counts["tcp_state"] += 1
        endpoint = self._endpoint(descriptor)
        if not endpoint.tcp:
            raise fail(errno.EINVAL)
        if endpoint.dead:
            raise fail(errno.ECONNRESET)
        return endpoint.tcp_state

    def transmit_tls_mode(self, descriptor: int) -> int:
        self._world.counts["tls"] += 1
        return int(self._endpoint(descriptor).encrypts)

    def receive_tls_mode(self, descriptor: int) -> int:
        self._world.counts["tls"] += 1
        return int(self._endpoint(descriptor).decrypts)

    def writable_now(self, descriptor: int) -> bool:
        self._world.counts["writable"] += 1
        endpoint = self._world.endpoint(descriptor)
        if endpoint is None:
            return True  # POLLNVAL
        shown = poll_bits(endpoint, self._world.so_splice.openbsd)
        return bool(shown & (ModelPollBits.OUT | ModelPollBits.HUP))

    def send_space(self, descriptor: int) -> int:
        self._world.counts["space"] += 1
        return self._endpoint(descriptor).outgoing.room

    def send_low_water(self, descriptor: int) -> int:
        self._world.counts["space"] += 1
        return self._endpoint(descriptor).low_water

    def unread(self, descriptor: int) -> int:
        self._world.counts["unread"] += 1
        return len(self._endpoint(descriptor).received)

    def push(self, drain: int) -> None:
        self._world.counts["push"] += 1
        self._world.so_splice.push(self._endpoint(drain))

    def end_events(self) -> EndEvents:
        return self._world.new_kqueue()

    def poll_set(self) -> PollSet:
        def shown(descriptor: int) -> PollBits:
            endpoint = self._world.endpoint(descriptor)
            assert endpoint is not None, "poll(2) of a closed descriptor"
            return as_poll_bits(poll_bits(endpoint, self._world.so_splice.openbsd))

        return ModelPollSet(shown, self._world.count)

    def _endpoint(self, descriptor: int) -> TcpEndpoint:
        endpoint = self._world.endpoint(descriptor)
        if endpoint is None:
            raise fail(errno.ENOTSOCK if descriptor in self._world.files else errno.EBADF)
        return endpoint


class Duplicate:
    """The package's own descriptor of a socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor


class ModelPlatform:
    """``Port``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.demanded = False
        self.calls = Calls(world)

    def choose(self) -> KernelChoice:
        return KernelChoice(self.calls if self._world.splices_exist else None, self.demanded)

    # Sockets

    def is_open(self, original: SocketLike) -> bool:
        return original.fileno() >= 0

    def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
        self._world.counts["dup"] += 1
        endpoint = self.calls._endpoint(original.fileno())
        if not endpoint.stream:
            raise fail(errno.EPROTONOSUPPORT)
        if endpoint.state == LISTEN:
            raise fail(errno.EINVAL)
        was_blocking = not endpoint.non_blocking
        endpoint.non_blocking = True
        return Duplicate(self._world.open(endpoint)), was_blocking

    def identity(self, endpoint: Endpoint) -> object:
        return self._endpoint(endpoint)

    def close(self, endpoint: Endpoint) -> None:
        self._world.close(endpoint.fileno())

    def last_close_waits(self, endpoint: Endpoint) -> bool:
        return False

    def close_original(self, original: SocketLike) -> None:
        cast(ModelSocket, original).close()

    def restore_blocking(self, original: SocketLike, endpoint: Endpoint) -> None:
        if self.is_open(original) and cast(ModelSocket, original).gettimeout() is None:
            self._endpoint(endpoint).non_blocking = False

    def receive_into(self, endpoint: Endpoint, buffer: memoryview) -> int:
        self._world.begins("recv")
        asked = self._endpoint(endpoint)
        data = self._world.never_blocks(asked, partial(asked.receive, len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def lower_read_mark(self, endpoint: Endpoint) -> int:
        return 0

    def restore_read_mark(self, endpoint: Endpoint, mark: int) -> None:
        raise NotImplementedError

    def peek(self, endpoint: Endpoint, *, told: bool = True) -> int:
        self._world.begins("peek")
        asked = self._endpoint(endpoint)
        return len(self._world.never_blocks(asked, partial(asked.receive, 1, peek=True)))

    def send(self, endpoint: Endpoint, data: memoryview) -> int:
        self._world.begins("send")
        asked = self._endpoint(endpoint)
        taken = self._world.never_blocks(asked, partial(asked.send, bytes(data)))
        self._world.moves()
        return taken

    def write_through(self, original: SocketLike, data: bytes | bytearray) -> int:
        self._world.counts["write"] += 1
        return self._endpoint(original).send(bytes(data))

    def is_connected(self, endpoint: Endpoint) -> bool:
        self._world.begins("is_connected")
        return self._endpoint(endpoint).connected

    def shutdown_write(self, endpoint: Endpoint) -> None:
        self._world.shutdown_write(self._endpoint(endpoint))

    def reset_on_close(self, endpoint: Endpoint) -> None:
        self._world.reset_on_close.add(self._endpoint(endpoint))

    def unacknowledged(self, endpoint: Endpoint) -> int | None:
        self._world.counts["unacknowledged"] += 1
        outgoing = self._endpoint(endpoint).outgoing
        return len(outgoing.unsent) + outgoing.unacked

    def take_error(self, endpoint: Endpoint) -> OSError | None:
        self._world.begins("SO_ERROR")
        asked = self._endpoint(endpoint)
        number, asked.error = asked.error, 0
        return fail(number) if number else None

    def can_splice(self) -> bool:
        return self._world.pipes.size > 0

    def open_pipe(self, size: int) -> Pipe:
        return self._world.pipes.make(is_large=size >= LARGE_PIPE)

    def close_pipe(self, pipe: Pipe) -> None:
        self._world.pipes.close(cast(ModelPipe, pipe))

    def splice_in(self, source: Endpoint, pipe: Pipe, count: int) -> int:
        self._world.begins("splice")
        asked = self._endpoint(source)
        call = partial(self._world.pipes.fill, asked, cast(ModelPipe, pipe), count)
        return self._world.never_blocks(asked, call)

    def splice_out(self, pipe: Pipe, drain: Endpoint, count: int) -> int:
        self._world.begins("splice")
        asked = self._endpoint(drain)
        call = partial(self._world.pipes.pour, cast(ModelPipe, pipe), asked, count)
        taken = self._world.never_blocks(asked, call)
        self._world.moves()
        return taken

    def read_pipe(self, pipe: Pipe, count: int) -> bytes:
        return self._world.pipes.read(cast(ModelPipe, pipe), count)

    # Waiting, time and threads

    def poller(self, *, few: bool = False) -> Poller:
        return ModelPoller(self._world)

    def mailbox(self) -> ModelMailbox:
        return ModelMailbox(self._world)

    def event(self) -> ModelEvent:
        return ModelEvent(self._world)

    def notice(self) -> ModelNotice:
        return ModelNotice(self._world)

    def now(self) -> float:
        return self._world.time

    def cpus(self) -> int:
        return 1

    def run(self, step: Callable[[], bool], name: str) -> ModelLoop:
        return self._world.start(step, name)

    def is_own_thread(self) -> bool:
        return False

    def abandon(self) -> None: ...

    def _endpoint(self, endpoint: Endpoint) -> TcpEndpoint:
        found = self._world.endpoint(endpoint.fileno())
        assert found is not None, "a call on a closed descriptor"
        return found


class ModelMailbox:
    def __init__(self, world: World) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        world.mailboxes.append(self)

    def put(self, call: Callable[[], object]) -> None:
        self._calls.append(call)

    def take(self, timeout: float) -> Callable[[], object] | None:
        return self._calls.popleft() if self._calls else None

    def awake(self) -> bool:
        return bool(self._calls)


class ModelEvent:
    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set and self._world.automatic:
            self._world.run_until(self.is_set, 1e9 if timeout is None else timeout)
        return self._set


class ModelNotice:
    def __init__(self, world: World) -> None:
        self._world = world
        self._descriptor = world.new_number()

    def fileno(self) -> int:
        return self._descriptor

    def give(self) -> None:
        self._world.give(self._descriptor)

    def close(self) -> None: ...


class ModelLoop:
    """A loop that ``run`` has started."""

    def __init__(self, world: World, step: Callable[[], bool], name: str) -> None:
        self._world = world
        self.step = step
        self.name = name
        self.sleeps_in: ModelPoller | None = None  # known once it has waited there

    def is_awake(self) -> bool:
        return self.sleeps_in is None or self.sleeps_in.awake()

    def join(self) -> None:
        while self in self._world.loops:
            self._world.turn(self)
