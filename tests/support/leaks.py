"""Descriptors and children, which a test must not leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def open_descriptors() -> dict[int, str]:
    """Return this process's descriptors and their files, if the system lists them."""
    listing = Path("/proc/self/fd") if Path("/proc/self/fd").is_dir() else Path("/dev/fd")
    found = {}
    for name in os.listdir(listing) if listing.is_dir() else []:
        try:
            found[int(name)] = os.readlink(listing / name) if listing.parts[1] == "proc" else ""
        except OSError:
            continue  # the descriptor that listed them
    return found


def descriptors_of_another_program() -> set[str]:
    """Return those that a program is given which this one starts, if none is closed on purpose."""
    said = subprocess.run(
        [sys.executable, "-Sc", _PRINT_DESCRIPTORS],
        close_fds=False,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(said.stdout.split())


#: It tries them: FreeBSD's /dev/fd lists 0 to 2, and OpenBSD's what could be, whatever is open.
_PRINT_DESCRIPTORS = """
import os
for number in range(4096):  # a process is given the lowest number that is free
    try:
        os.fstat(number)
    except OSError:
        continue
    print(number)
"""


def has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    except AttributeError:  # Windows
        return False
    return True
