"""The options about how a proxy starts."""

from __future__ import annotations

import argparse
import re

from ..proxies._listening import SOCKET_MODE


def add_starting(parser: argparse.ArgumentParser) -> None:
    """Add the options of all proxies that are about the start."""
    parser.add_argument(
        "--socket-mode",
        type=_permissions,
        default=SOCKET_MODE,
        metavar="MODE",
        help="permissions of the file, where LISTEN is a Unix socket: who may write may connect "
        f"(default: {SOCKET_MODE:o})",
    )
    parser.add_argument(
        "--takeover",
        metavar="SOCKET",
        help="take the listening sockets over from the process that was started with the same "
        "SOCKET, a path, which stops then; no client is refused",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read the command line and its files, and end: exit status 0 if they can be used",
    )


def _permissions(text: str) -> int:
    if not re.fullmatch("[0-7]{3,4}", text) or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{text!r}: write permissions in octal, as 660")
    return int(text, 8)
