"""SO_SPLICE itself: the option, its struct, and the three raw calls; no other module makes them.

The calls go through the compiled extension ``freebsd_splice._so_splice`` and never through
``socket.setsockopt``: setting a splice moves waiting data and ending one waits for the kernel's
worker, and only a call through cffi lets other threads run meanwhile (F34). The layout of
``struct splice`` differs between platforms (F2), so the machine's C compiler supplies it.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import socket
import sys
from typing import Any, Final

SO_SPLICE: Final = 0x1023
"""The socket option, at level ``SOL_SOCKET``, on FreeBSD and OpenBSD alike (F1)."""

SYSTEMS: Final = {"freebsd": "FreeBSD", "openbsd": "OpenBSD"}
END: Final = -1  # any negative sp_fd ends the splice

_extension: Any = None
_why_not_built = ""
try:
    _extension = importlib.import_module("freebsd_splice._so_splice")
except ImportError as error:
    _why_not_built = str(error)


def set_splice(source: int, drain: int, max_bytes: int, idle: float) -> None:
    """Splice source to drain.

    Args:
        source: the source's descriptor.
        drain: the drain's; unlike elsewhere, a negative one ends the splice, as in the kernel.
        max_bytes: the number of bytes after which the splice ends; 0: no limit.
        idle: ``sp_idle``, in seconds; 0: no limit.
    """
    splice = _extension.ffi.new("struct splice *")
    splice.sp_fd = drain
    splice.sp_max = max_bytes
    seconds, microseconds = divmod(round(idle * 1_000_000), 1_000_000)
    splice.sp_idle.tv_sec = seconds
    splice.sp_idle.tv_usec = microseconds
    _set(source, splice)


def end_splice(source: int) -> None:
    """End source's splice; when this returns no byte is in flight (F35)."""
    splice = _extension.ffi.new("struct splice *")
    splice.sp_fd = END
    _set(source, splice)


def spliced_count(source: int) -> int:
    """Return the bytes moved by source's current splice, or by its last one (F4)."""
    moved = _extension.ffi.new("off_t *")
    _get(source, _extension.lib.SOL_SOCKET, SO_SPLICE, moved, _extension.ffi.sizeof("off_t"))
    return int(moved[0])


def read_option(descriptor: int, level: int, option: int, size: int) -> bytes:
    """Call getsockopt(2) on a bare descriptor; return at most ``size`` bytes.

    This changes nothing about the socket, whereas making a ``socket.socket`` of the descriptor can
    make it non-blocking (``socket.setdefaulttimeout``).
    """
    value = _extension.ffi.new("char[]", size)
    got = _get(descriptor, level, option, value, size)
    return bytes(_extension.ffi.buffer(value, got))


def write_option(descriptor: int, level: int, option: int, value: int) -> None:
    """Call setsockopt(2) with an int on a bare descriptor, as ``read_option`` does getsockopt."""
    number = _extension.ffi.new("int *", value)
    lib = _extension.lib
    if lib.setsockopt(descriptor, level, option, number, _extension.ffi.sizeof("int")) != 0:
        _raise()


@functools.cache
def missing() -> str | None:
    """Return why SO_SPLICE can't be used here; None if it can. The answer is kept.

    The kernel itself is asked (F5: an older one answers ENOPROTOOPT), because in a jail the
    userland's version says nothing about the kernel (F36).
    """
    system = next((name for key, name in SYSTEMS.items() if sys.platform.startswith(key)), None)
    if system is None:
        return f"{sys.platform} has no SO_SPLICE; FreeBSD 14.3 and later and OpenBSD have it"
    if _extension is None:
        return (
            "the extension freebsd_splice._so_splice is not built"
            f" ({_why_not_built}); reinstall freebsd-splice from its source distribution with a"
            " C compiler and headers that have SO_SPLICE"
        )
    try:
        with _any_tcp_socket() as probe:
            spliced_count(probe.fileno())
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return (
            f"the running kernel refuses SO_SPLICE ({error.strerror}): {_kernel()};"
            " it needs FreeBSD 14.3 or later, or OpenBSD"
        )
    return None


def _any_tcp_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    except OSError:  # a jail may have only IPv6
        return socket.socket(socket.AF_INET6, socket.SOCK_STREAM)


def _kernel() -> str:
    if sys.platform == "win32":
        return sys.platform
    return os.uname().version


def _set(source: int, splice: Any) -> None:
    ffi, lib = _extension.ffi, _extension.lib
    size = ffi.sizeof("struct splice")
    if lib.setsockopt(source, lib.SOL_SOCKET, SO_SPLICE, splice, size) != 0:
        _raise()


def _get(descriptor: int, level: int, option: int, value: Any, size: int) -> int:
    ffi, lib = _extension.ffi, _extension.lib
    length = ffi.new("socklen_t *", size)
    if lib.getsockopt(descriptor, level, option, value, length) != 0:
        _raise()
    return int(length[0])


def _raise() -> None:
    number = _extension.ffi.errno
    raise OSError(number, os.strerror(number))
