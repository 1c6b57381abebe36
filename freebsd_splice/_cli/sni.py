"""``freebsd-splice sni``."""

from __future__ import annotations

import argparse
from typing import Any

from ..proxies import Routes, by_server_name
from .loops import warn_of_loops
from .options import (
    FileName,
    add_command,
    add_handshake,
    add_listen,
    add_resolver,
    add_retry_after,
    add_serving,
    resolver_of,
)
from .plan import Made
from .serving import serve_alone

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

A target may also be srv:_https._tcp.example.org: its SRV records say where to connect to. That
needs dnspython: pip install "freebsd-splice[dns]".
On Python 3.10 it needs tomli: pip install "freebsd-splice[proxy]".
"""

_ADDRESSES = {
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
    ]
}

#: The routes within a configuration file, as JSON schemas.
_TABLES = {
    "default": {**_ADDRESSES, "description": "the target of clients without a route"},
    "route": {
        "description": "[[sni.route]]: the targets of one server name",
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "a host name, or *. and a host name"},
                "alpn": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "description": "only if the client offers one of these protocols",
                },
                "target": {**_ADDRESSES, "description": "each connection gets the next"},
            },
            "required": ["name", "target"],
            "additionalProperties": False,
        },
    },
}


def add_sni(commands: Any) -> None:
    parser = add_command(
        commands,
        "sni",
        help="forward TLS connections by server name",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    parser.add_argument("routes", metavar="ROUTES", type=FileName(_TABLES), help="the TOML file")
    add_listen(parser, "127.0.0.1:8443")
    add_retry_after(parser)
    add_resolver(parser)
    add_handshake(parser)
    add_serving(parser)
    parser.set_defaults(run=serve_alone, make=make)


def make(options: argparse.Namespace) -> Made:
    # A configuration file can have the routes themselves in place of their file's name.
    within = isinstance(options.routes, dict)
    routes = Routes(options.routes) if within else Routes.load(options.routes)
    return Made(
        by_server_name(
            routes,
            retry_after=options.retry_after,
            resolver=resolver_of(options, routes.targets()),
        ),
        listening=lambda listeners: warn_of_loops(routes.targets(), listeners),
        targets=list(routes.targets()),
    )
