"""The options of the PROXY protocol, which all proxies have."""

from __future__ import annotations

import argparse

from ..proxies._proxy_headers import Network, parse_sender
from ..proxies._proxy_protocol import VERSIONS


def add_proxy_protocol(parser: argparse.ArgumentParser) -> None:
    """Add the options for headers that are accepted, and for those that are sent."""
    parser.add_argument(
        "--accept-proxy",
        type=_networks,
        action="extend",
        default=[],
        metavar="NETWORK[,NETWORK...]",
        help="clients in these networks are proxies that must begin with a PROXY header (v1 or "
        "v2), as --accept-proxy 10.0.0.0/8,2001:db8::1 (unix: is those of a Unix socket); from "
        "others a header is refused",
    )
    parser.add_argument(
        "--send-proxy",
        choices=VERSIONS,
        help="begin each connection to a target with a PROXY header, which has the client's "
        "address; v2 has the requested name as well",
    )


def _networks(text: str) -> list[Network | str]:
    try:
        return [parse_sender(each.strip()) for each in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
