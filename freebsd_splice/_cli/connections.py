"""The table of live connections, which a signal has logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from ..proxies._addresses import show
from ..proxies._live import LiveConnection, Watched, in_pieces
from ..proxies._log import fields, logger, quoted_unless_plain
from ..proxies._reporting import said, who

_HEADINGS = ("CLIENT", "VIA", "LISTEN", "TARGET", "UP", "DOWN", "SECONDS", "BY", "USER", "NAME")

#: The columns of numbers, which are aligned on the right.
_NUMBERS = ("UP", "DOWN", "SECONDS")

#: The columns that are left out where all are empty.
_OPTIONAL = ("VIA", "LISTEN", "USER", "NAME")

#: What stands in an empty cell.
_NONE = "-"

#: The widest that a column is made; a longer text pushes the rest of its line to the right.
_WIDEST = 47


def log_connections(live: Watched[Any]) -> None:
    """Log each live connection, the oldest first, whatever the log's level is."""
    connections = live.read()
    now = time.monotonic()
    count = fields("connections live", connections=len(connections))
    _log(f"{len(connections)} connections live", count)
    if not connections:
        return
    is_one = len(live.all()) == 1
    rows = [_row(connection, now, is_one) for connection in in_pieces(connections)]
    heading, *lines = table([_HEADINGS, *rows])
    _log(heading, {})
    for connection, line in in_pieces(zip(connections, lines, strict=True)):
        _log(line, fields("live connection", **_facts(connection, now)))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as aligned lines; the first has the headings."""
    columns = []
    for heading, *cells in zip(*rows, strict=True):
        if heading in _OPTIONAL and all(cell == _NONE for cell in cells):
            continue
        width = min(max(map(len, (heading, *cells))), _WIDEST)
        align = str.rjust if heading in _NUMBERS else str.ljust
        columns.append([align(cell, width) for cell in (heading, *cells)])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _row(connection: LiveConnection, now: float, is_one: bool) -> tuple[str, ...]:
    """Return a row of the table; ``is_one``: there is one proxy alone."""
    client = connection.client
    name = client.server_name if client.requested is None else str(client.requested)
    return (
        quoted_unless_plain(client.name),
        show(client.peer) if client.is_proxied else _NONE,
        _NONE if is_one else connection.listen,
        connection.target_name or _NONE,
        *(_moved(connection) if connection.ways else (_NONE, _NONE)),
        f"{now - connection.accepted:.1f}",
        ",".join(_served_by(connection)) or _NONE,
        _NONE if client.user is None else quoted_unless_plain(client.user),
        _NONE if name is None else quoted_unless_plain(name),
    )


def _facts(connection: LiveConnection, now: float) -> dict[str, object]:
    """Return the row as fields for programs."""
    up, down = map(int, _moved(connection)) if connection.ways else (0, 0)
    return {
        **who(connection.client),
        **said(connection.client),
        "listen": connection.listen,
        "target": connection.target_name,
        "bytes_up": up,
        "bytes_down": down,
        "seconds": round(now - connection.accepted, 6),
        "backend": _served_by(connection),
    }


def _moved(connection: LiveConnection) -> list[str]:
    return [str(way.bytes) for way in connection.ways]


def _served_by(connection: LiveConnection) -> list[str]:
    """Return backend and mover, as the log has them: one, or one for each direction."""
    served_by = (way.served_by for way in connection.ways)
    return list(dict.fromkeys("/".join(each) for each in served_by if each is not None))


def _log(text: str, extra: dict[str, dict[str, object]]) -> None:
    record = logger.makeRecord(
        logger.name, logging.INFO, __file__, 0, "%s", (text,), None, extra=extra
    )
    logger.handle(record)  # past the level: it was asked for
