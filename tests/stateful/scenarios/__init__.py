"""Scenarios: each shows one thing that a flow in the kernel, or in the engine, must get right.

Each file is about one subject, and every public function in it is a scenario.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from ..registry import Registry
from ..rig import Rig

Scenario = Callable[[Rig], None]

_registry = Registry[Scenario]()
#: ``@scenario()``, or ``@scenario(FREEBSD)`` if it doesn't apply to the other kernel;
#: ``@scenario(ENGINE)`` where userspace moves the bytes.
scenario = _registry.register
scenarios_of = _registry.of

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
