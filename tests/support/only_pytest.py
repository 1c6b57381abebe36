"""A pytest plugin that blocks all imports of the test extra's packages, as in a FreeBSD guest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder

MISSING = (
    *("anyio", "build", "cffi", "check_wheel_contents", "dns", "fastjsonschema", "gevent", "h11"),
    *("hypothesis", "pycdlib", "trio", "trustme", "twine", "uvloop", "yaml"),
)


class _Blocker(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


for module in [name for name in sys.modules if name.partition(".")[0] in MISSING]:
    del sys.modules[module]
sys.meta_path.insert(0, _Blocker())
