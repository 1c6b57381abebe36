"""The options about how a proxy starts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from ..proxies._listening import SOCKET_MODE


def add_socket_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket-mode",
        type=_permissions,
        default=SOCKET_MODE,
        metavar="MODE",
        help="permissions of the file, where LISTEN is a Unix socket: who may write may connect "
        f"(default: {SOCKET_MODE:o})",
    )


def add_starting(parser: argparse.ArgumentParser, path: Callable[[str], str]) -> None:
    """Add the options about the start that a process has once.

    Args:
        parser: gets them.
        path: the type of an argument that is a path.
    """
    parser.add_argument(
        "--takeover",
        type=path,
        metavar="SOCKET",
        help="take the listening sockets over from the process that was started with the same "
        "SOCKET, a path, which stops then; no client is refused",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,  # so that there is no key for it in a configuration file
        help="read the command line and all files, name what is wrong, and end: exit status 0 if "
        "nothing is",
    )


def _permissions(text: str) -> int:
    if not re.fullmatch("[0-7]{3,4}", text) or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{text!r}: write permissions in octal, as 660")
    return int(text, 8)
