"""``freebsd-splice forward``."""

from __future__ import annotations

import argparse
from typing import Any

from ..proxies import OpenTarget
from ..proxies._addresses import parse_target
from ..proxies._transparent import why_not_transparent
from ..proxies.forward import to_targets
from .loops import warn_of_loops
from .options import (
    UsageError,
    add_command,
    add_handshake_timeout,
    add_listen,
    add_retry_after,
    add_serving,
    parsed_by,
)
from .serving import serve

_DESCRIPTION = """\
Accept TCP connections on LISTEN and join each one to a TARGET.

LISTEN is host:port, [v6]:port, :port for every address of this machine, or a port of 127.0.0.1;
all addresses of a name are listened on, and port 0 takes a free one. TARGET is host:port,
[v6]:port, or a port of 127.0.0.1; the addresses of a name are tried in turn, anew for each
connection. Of several targets each connection gets the next; one that can't be connected to is
skipped for a while.
"""

_EXAMPLE = """\
examples:
  %(prog)s --idle-timeout 300 127.0.0.1:8080 backend.example:80
  %(prog)s --workers 2 --user nobody :80 10.0.0.5:8000 10.0.0.6:8000
  %(prog)s --accept-proxy 10.0.0.0/8 --send-proxy v2 :80 backend.example:80
  %(prog)s --metrics 9101 :80 backend.example:80

SIGINT or SIGTERM ends the program: live connections have the grace time to end, and a second signal
cuts them. SIGUSR1 or Ctrl-T (SIGINFO, on the BSDs) logs who is connected.
"""


def add_forward(commands: Any) -> None:
    parser = add_command(
        commands,
        "forward",
        help="forward TCP connections to a target",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    add_listen(parser)
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="+",
        type=parsed_by(parse_target),
        help="where to connect them to",
    )
    add_retry_after(parser)
    parser.add_argument(
        "--transparent",
        action="store_true",
        help="connect from the client's own address (FreeBSD, as root; see docs/forward.md)",
    )
    add_handshake_timeout(parser, "for a PROXY header to come, where one must")
    add_serving(parser)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    return serve(
        options, _make, listening=lambda listeners: warn_of_loops(options.target, listeners)
    )


def _make(options: argparse.Namespace) -> OpenTarget:
    if options.transparent:
        if options.user is not None:
            raise UsageError("--transparent needs root's privileges, which --user gives up")
        why_not = why_not_transparent()
        if why_not is not None:
            raise ValueError(f"--transparent: {why_not}")
    return to_targets(
        options.target,
        retry_after=options.retry_after,
        transparent=options.transparent,
    )
