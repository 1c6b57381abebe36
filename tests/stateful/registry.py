"""Scenarios and mutants register themselves, so that each one that is written is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

FREEBSD, OPENBSD = "FreeBSD", "OpenBSD"
KERNELS = (FREEBSD, OPENBSD)
#: The userspace engine, over sockets of a kernel without SO_SPLICE.
ENGINE = "engine"


class Registry(Generic[T]):
    """Functions, by the kernels they are about, or the engine."""

    def __init__(self) -> None:
        self._made: dict[str, list[T]] = {system: [] for system in (*KERNELS, ENGINE)}

    def register(self, *systems: str) -> Callable[[T], T]:
        """Return a decorator for functions about these; by default about both kernels."""

        def registered(made: T) -> T:
            for system in systems or KERNELS:
                self._made[system].append(made)
            return made

        return registered

    def of(self, system: str) -> list[T]:
        return list(self._made[system])
