"""Giving up what serving doesn't take, by OpenBSD's pledge(2): --pledge."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

from .._platform.pledge import pledge, why_no_pledge

#: What a process needs that serves: sockets of IPv4 and IPv6, SO_SPLICE among their options, the
#: look-up of names, and reading files (a password file that has changed; Python's own modules).
#: "error" has the kernel refuse other calls, with ENOSYS. It would end the process, with all its
#: connections, at the first one that nobody has thought of.
PROMISES = "stdio rpath inet dns error"


def add_pledge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pledge",
        action="store_true",
        help="give up what serving does not take (OpenBSD: pledge(2))",
    )


def limiting(options: argparse.Namespace) -> Callable[[], object]:
    """Return what each process that serves calls before the first client.

    Raises:
        ValueError: it was asked for, and can't be had here.
    """
    if not options.pledge:
        return lambda: None
    why_not = why_no_pledge()
    if why_not is not None:
        raise ValueError(f"--pledge: {why_not}")
    # Imported for the first name that is looked up; a module in C couldn't be any more.
    import_module("encodings.idna")
    return lambda: pledge(PROMISES)
