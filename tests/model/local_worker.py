"""The worker of an event loop's own thread, in a modelled world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from freebsd_splice._userspace.flow import UserspaceFlow
from freebsd_splice._userspace.movers import Mover
from freebsd_splice._userspace.workers import LocalWorker

from .platform import ModelPlatform


class LoopsWorker(LocalWorker):
    """Whose thread is a loop of the modelled world, or the test's in ``its_thread``."""

    def __init__(self, platform: ModelPlatform) -> None:
        super().__init__(platform, None)
        self.begun_elsewhere: list[str] = []
        self.is_its_thread = False

    @contextmanager
    def its_thread(self) -> Iterator[None]:
        self.is_its_thread = True
        try:
            yield
        finally:
            self.is_its_thread = False

    def step(self) -> bool:
        with self.its_thread():
            self._serve(self._poller.wait(0 if self._ready else None))
        return True

    def mover(self, **kinds: bool) -> Mover:
        if not self.is_its_thread:
            self.begun_elsewhere.append("a mover")
        return super().mover(**kinds)

    def expect(self, flow: UserspaceFlow, *, read: bool, write: bool) -> None:
        if not self.is_its_thread:
            self.begun_elsewhere.append("a wait")
        super().expect(flow, read=read, write=write)
