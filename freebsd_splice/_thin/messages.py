"""The texts of the thin functions' errors: the call, its sockets, and what to do about it."""

from __future__ import annotations

import errno
import os

from .._errors import advice_for, why
from .._platform.borrowed import Borrowed

__all__ = ["call_error", "describe"]


def call_error(call: str, error: OSError, **sockets: int) -> OSError:
    """Return a call's error with a text that names the call and its sockets.

    Args:
        call: the function's name.
        error: what the call failed with.
        sockets: the descriptors by parameter name, in the call's order.
    """
    number = error.errno or errno.EIO
    text = error.strerror or why(error)
    if text == os.strerror(number):
        text += f": {_ADVICE[number]}" if number in _ADVICE else advice_for(error)
    arguments = ", ".join(f"{name}=<{describe(value)}>" for name, value in sockets.items())
    return OSError(number, f"{call}({arguments}): {text}")


def describe(descriptor: int) -> str:
    """Describe a socket by its descriptor, address and peer's address.

    This never fails and changes nothing about the socket.
    """
    try:
        borrowed = Borrowed()
    except OSError:  # no descriptor is left for the duplicate
        return f"fd {descriptor}"
    try:
        borrowed.take(descriptor)
        name = _address(borrowed.socket.getsockname())
    except OverflowError:
        return f"fd {descriptor}, closed"
    except OSError as error:
        return f"fd {descriptor}, {'closed' if error.errno == errno.EBADF else error.strerror}"
    else:
        try:
            return f"fd {descriptor}, {name} -> {_address(borrowed.socket.getpeername())}"
        except OSError:
            return f"fd {descriptor}, {name}, not connected"
    finally:
        borrowed.close()


def _address(name: object) -> str:
    if not isinstance(name, tuple):
        return str(name) or "unnamed"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


_ADVICE = {
    errno.EBADF: "the descriptor is closed",
    errno.ENOTSOCK: "the descriptor is not a socket",
    errno.EPROTONOSUPPORT: "only TCP sockets can be spliced",
    errno.EBUSY: (
        "the source is spliced already, or the drain is the drain of another splice;"
        " unsplice(source) ends a splice"
    ),
    errno.ENOTCONN: "a socket isn't connected or, with unsplice(), there is no splice to end",
    errno.ENXIO: "the kernel could not start its so_splice threads; see its messages (dmesg)",
}
_NOT_CAPABLE = getattr(errno, "ENOTCAPABLE", None)
if _NOT_CAPABLE is not None:
    _ADVICE[_NOT_CAPABLE] = (
        "a splice needs CAP_RECV and CAP_SETSOCKOPT on its source, CAP_SEND on its drain"
    )
