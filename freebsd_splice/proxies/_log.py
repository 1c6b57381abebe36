"""The log of a proxy: lines for people, with what a program would read in them beside."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

logger = logging.getLogger("freebsd_splice.proxies")


def fields(event: str, **more: object) -> dict[str, dict[str, object]]:
    """``extra`` of a record: what happened, and with what, as ``JsonFormatter`` shows it."""
    return {"fields": {"event": event, **more}}


class JsonFormatter(logging.Formatter):
    """A JSON object in a line: time (RFC 3339), level, pid, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
