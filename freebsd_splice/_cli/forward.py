"""``freebsd-splice forward``."""

from __future__ import annotations

import argparse
from typing import Any

from ..proxies._services import parse_target_or_service
from ..proxies._transparent import why_not_transparent
from ..proxies.forward import to_targets
from .loops import warn_of_loops
from .options import (
    UsageError,
    add_command,
    add_handshake_timeout,
    add_listen,
    add_resolver,
    add_retry_after,
    add_serving,
    parsed_by,
    resolver_of,
)
from .plan import Made
from .serving import serve_alone

_DESCRIPTION = """\
Accept TCP connections on LISTEN and join each one to a TARGET.

LISTEN is host:port, [v6]:port, :port for every address of this machine, a port of 127.0.0.1, or
unix:/path; all addresses of a name are listened on, and port 0 takes a free one. TARGET is
host:port, [v6]:port, a port of 127.0.0.1, or unix:/path; a name is looked up anew for each
connection, and the first of its addresses that answers is taken. Of several targets each connection
gets the next; one that can't be connected to is skipped for a while.

TARGET may also be srv:_http._tcp.example.org: its SRV records say where to connect to, with
priorities and weights, and are read again after their TTL. That needs dnspython:
pip install "freebsd-splice[dns]".
"""

_EXAMPLE = """\
examples:
  %(prog)s --idle-timeout 300 127.0.0.1:8080 backend.example:80
  %(prog)s --workers 2 --user nobody :80 10.0.0.5:8000 10.0.0.6:8000
  %(prog)s --socket-mode 660 unix:/run/front.sock unix:/run/app.sock
  %(prog)s --takeover /run/front.takeover :80 10.0.0.5:8000
  %(prog)s --resolver 127.0.0.1:8600 :80 srv:web.service.consul
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
        type=parsed_by(parse_target_or_service),
        help="where to connect them to",
    )
    add_retry_after(parser)
    add_resolver(parser)
    parser.add_argument(
        "--transparent",
        action="store_true",
        help="connect from the client's own address (FreeBSD, as root; see docs/forward.md)",
    )
    add_handshake_timeout(parser, "for a PROXY header to come, where one must")
    add_serving(parser)
    parser.set_defaults(run=serve_alone, make=make)


def make(options: argparse.Namespace) -> Made:
    if options.transparent:
        if options.user is not None:
            raise UsageError("--transparent needs root's privileges, which --user gives up")
        why_not = why_not_transparent()
        if why_not is not None:
            raise ValueError(f"--transparent: {why_not}")
    return Made(
        to_targets(
            options.target,
            retry_after=options.retry_after,
            resolver=resolver_of(options, options.target),
            transparent=options.transparent,
        ),
        listening=lambda listeners: warn_of_loops(options.target, listeners),
        targets=options.target,
    )
