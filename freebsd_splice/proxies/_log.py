"""The log of a proxy: lines for people, with what a program would read in them beside."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timezone
from typing import Any

logger = logging.getLogger("freebsd_splice.proxies")

#: Characters that a message may have, of which clients choose a part: a line can be read then, and
#: a log of many has an end.
_MOST_OF_A_MESSAGE = 2_000

#: The same for the text of an error that quotes a client.
MOST_OF_A_REASON = 500

#: What begins another line, or is obeyed by a terminal.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_LINE_ENDS = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def fields(event: str, **more: object) -> dict[str, dict[str, object]]:
    """``extra`` of a record: what happened, and with what, as ``JsonFormatter`` shows it."""
    return {"fields": {"event": event, **more}}


def cut(text: str, most: int) -> str:
    """The text, or its beginning where it has more characters than that."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


class TextFormatter(logging.Formatter):
    """A line for people; a traceback has more, but nothing in any of them is a control character.

    Whoever writes a message sees to what is in it; this is for what nobody has thought of.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _escape(_CONTROL, cut(record.message, _MOST_OF_A_MESSAGE))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return _escape(_CONTROL_BUT_LINE_ENDS, super().formatException(ei))


def _escape(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class JsonFormatter(logging.Formatter):
    """A JSON object in a line: time (RFC 3339), level, pid, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "pid": record.process,
            "message": _cut_text(record.getMessage()),
            **{name: _cut_text(value) for name, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _cut_text(value: object) -> object:
    return cut(value, _MOST_OF_A_MESSAGE) if isinstance(value, str) else value
