"""What can serve a program on this machine."""

from __future__ import annotations

from freebsd_splice._backend import COPY, OS_SPLICE
from freebsd_splice._platform import raw_splice
from support.platforms import RecordingPlatform

#: What a process is told, and what its log says of a connection then.
BACKENDS: dict[str, dict[str, str]] = {
    "userspace/copy": {"FREEBSD_SPLICE_BACKEND": "userspace", "FREEBSD_SPLICE_MOVER": COPY}
}
if RecordingPlatform().can_splice():
    BACKENDS["userspace/os.splice"] = {
        "FREEBSD_SPLICE_BACKEND": "userspace",
        "FREEBSD_SPLICE_MOVER": OS_SPLICE,
    }
if not raw_splice.missing():
    BACKENDS["kernel/SO_SPLICE"] = {"FREEBSD_SPLICE_BACKEND": "kernel"}
