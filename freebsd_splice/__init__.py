"""Socket splicing: SO_SPLICE of FreeBSD and OpenBSD for Python, and the same everywhere else.

``Splice`` (one direction) and ``Relay`` (both) are what a proxy needs: they deliver every byte and
report every end with its reason. ``splice``, ``unsplice`` and ``spliced_bytes`` are the kernel's
own calls. ``backend()`` says whether the kernel or userspace serves. ``freebsd_splice.aio`` is the
same for asyncio, and ``freebsd_splice.proxies`` has proxies ready to run.
"""

from __future__ import annotations

from ._backend import Backend, backend
from ._core.flow import Reason
from ._errors import BackendUnavailable, InvalidArgument
from ._platform.interface import SocketLike
from ._platform.raw_splice import SO_SPLICE
from ._public import set_public_module
from ._relay import Relay, RelayOutcome
from ._runtime import shutdown
from ._splice import Outcome, Splice
from ._thin import splice, spliced_bytes, unsplice

__version__ = "0.1.0"

__all__ = [
    "SO_SPLICE",
    "Backend",
    "BackendUnavailable",
    "InvalidArgument",
    "Outcome",
    "Reason",
    "Relay",
    "RelayOutcome",
    "SocketLike",
    "Splice",
    "backend",
    "shutdown",
    "splice",
    "spliced_bytes",
    "unsplice",
]

set_public_module(globals())
