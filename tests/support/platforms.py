"""Platforms for tests: this machine's, with something added or taken away."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conformance.harness import Harness
from freebsd_splice import _runtime
from freebsd_splice._backend import KernelChoice, choose_kernel
from freebsd_splice._platform.interface import Endpoint, Pipe, Platform, Poller, Readiness, Runner
from freebsd_splice._platform.system import SystemPlatform


@contextmanager
def runtime(platform: Platform, mover: str | None = None) -> Iterator[_runtime.Runtime]:
    """Make all splices inside the block use ``platform``."""
    made = _runtime.Runtime(platform, mover, choose=getattr(platform, "choose", choose_kernel))
    before = _runtime.install(made)
    try:
        yield made
    finally:
        _runtime.install(before)
        made.close()


class UserspacePlatform(SystemPlatform):
    """This machine without the kernel's splices, even if it has them and they are demanded."""

    def choose(self) -> KernelChoice:
        return KernelChoice(None, demanded=False)


class RecordingPlatform(UserspacePlatform):
    """Counts the payload that passes through Python."""

    def __init__(self, readiness: str | None = None) -> None:
        super().__init__(readiness)
        self.copied = 0
        self.pipes = 0

    def receive_into(self, endpoint: Endpoint, buffer: memoryview) -> int:
        count = super().receive_into(endpoint, buffer)
        self.copied += count
        return count

    def send(self, endpoint: Endpoint, data: memoryview) -> int:
        count = super().send(endpoint, data)
        self.copied += count
        return count

    def open_pipe(self, size: int) -> Pipe:
        self.pipes += 1
        return super().open_pipe(size)


class NoPipesPlatform(RecordingPlatform):
    """A process that has no descriptor left for a pipe."""

    def open_pipe(self, size: int) -> Pipe:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class RefusingPlatform(RecordingPlatform):
    """A system whose os.splice refuses these sockets, on the way in or on the way out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self._way = way

    def splice_in(self, source: Endpoint, pipe: Pipe, count: int) -> int:
        if self._way == "in":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().splice_in(source, pipe, count)

    def splice_out(self, pipe: Pipe, drain: Endpoint, count: int) -> int:
        if self._way == "out":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().splice_out(pipe, drain, count)


class SteppedPlatform(RecordingPlatform):
    """Real sockets, but a clock and loops that move only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0
        self._steps: list[Callable[[], bool]] = []

    def now(self) -> float:
        return self.time

    def cpus(self) -> int:
        return 1

    def poller(self, *, few: bool = False) -> Poller:
        return _NeverSleeping(super().poller(few=few))

    def run(self, step: Callable[[], bool], name: str) -> Runner:
        self._steps.append(step)
        return _NoThread()

    def step(self) -> None:
        """Run every loop once: it does what is due and what is ready."""
        for step in list(self._steps):
            step()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Step until the condition holds, while the clock stands and the network takes its time."""

        def stepped() -> object:
            self.step()
            return condition()

        Harness().until(stepped, what)

    def advance(self, seconds: float) -> None:
        self.time += seconds
        self.step()


class WakeUpsPlatform(RecordingPlatform):
    """Counts how often the ``wait`` of its pollers has returned."""

    def __init__(self, readiness: str | None = None) -> None:
        super().__init__(readiness)
        self.wake_ups = 0

    def poller(self, *, few: bool = False) -> Poller:
        return _Counting(super().poller(few=few), self)


class _Passing:
    """A poller that passes everything on to another one."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        self._poller.watch(endpoint, interest)

    def forget(self, endpoint: Endpoint) -> None:
        self._poller.forget(endpoint)

    def quieten(self, endpoint: Endpoint) -> None:
        self._poller.quieten(endpoint)

    def listen(self, descriptor: int) -> None:
        self._poller.listen(descriptor)

    def unlisten(self, descriptor: int) -> None:
        self._poller.unlisten(descriptor)

    def wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        return self._poller.wait(timeout)

    def wake(self) -> None:
        self._poller.wake()

    def fileno(self) -> int:
        return self._poller.fileno()

    def close(self) -> None:
        self._poller.close()


class _NeverSleeping(_Passing):
    """A poller that reports what is ready and does not wait for more."""

    def wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        return super().wait(0)


class _Counting(_Passing):
    def __init__(self, poller: Poller, platform: WakeUpsPlatform) -> None:
        super().__init__(poller)
        self._platform = platform

    def wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        ready = super().wait(timeout)
        self._platform.wake_ups += 1
        return ready


class _NoThread:
    def join(self) -> None: ...
