"""``freebsd-splice sni``."""

from __future__ import annotations

import argparse
from typing import Any

from ..proxies import OpenTarget, Routes, by_server_name
from .loops import warn_of_loops
from .options import add_command, add_handshake, add_listen, add_retry_after, add_serving
from .serving import serve

_DESCRIPTION = """\
Join TLS connections to targets by the server name that clients ask for, and by ALPN where a route
says so. TLS goes through the proxy from end to end: it needs no key and no certificate.

ROUTES is a TOML file; LISTEN is host:port, [v6]:port, :port for every address of this machine, a
port of 127.0.0.1, or unix:/path.
"""

_EXAMPLE = """\
example:
  %(prog)s /etc/sni.toml :443

  default = "10.0.0.4:443"                          # optional
  [[route]]
  name = "www.example.org"
  target = "10.0.0.5:443"
  [[route]]
  name = "*.example.org"                            # all names below it
  alpn = ["h2"]                                     # optional
  target = ["10.0.0.6:443", "10.0.0.7:443"]         # each connection gets the next

On Python 3.10 it needs tomli: pip install "freebsd-splice[proxy]".
"""


def add_sni(commands: Any) -> None:
    parser = add_command(
        commands,
        "sni",
        help="forward TLS connections by server name",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    parser.add_argument("routes", metavar="ROUTES", help="the TOML file")
    add_listen(parser, "127.0.0.1:8443")
    add_retry_after(parser)
    add_handshake(parser)
    add_serving(parser)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    known: list[Routes] = []

    def make(given: argparse.Namespace) -> OpenTarget:
        known.append(Routes.load(given.routes))
        return by_server_name(known[0], retry_after=given.retry_after)

    return serve(
        options, make, listening=lambda listeners: warn_of_loops(known[0].targets(), listeners)
    )
