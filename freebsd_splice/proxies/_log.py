"""The log of a proxy: lines for people, and the same events with fields for programs."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timezone
from typing import Any

logger = logging.getLogger("freebsd_splice.proxies")

#: The most characters of a message. Clients choose a part of many messages: with a limit, a line
#: stays readable and the log's size stays in proportion to the number of its lines.
_MOST_OF_A_MESSAGE = 2_000

#: The most characters of an error's text that quotes a client.
MOST_OF_A_REASON = 500

#: Characters that nobody sees, and that show others in another order or hide between them.
_INVISIBLE = "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"

#: Characters that begin another line, or that a terminal obeys, and invisible ones.
_CONTROL = re.compile(f"[\0-\x1f\x7f-\x9f\u2028\u2029{_INVISIBLE}]")
_CONTROL_BUT_LINE_ENDS = re.compile(f"[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029{_INVISIBLE}]")

#: Stands before each line of a traceback, whose last ones can be a client's text.
_INDENT = "    "

#: Names that can't be mistaken for another part of a line.
_PLAIN = re.compile(r"[\w./@:\[\]%*+-]+")


def fields(event: str, **more: object) -> dict[str, dict[str, object]]:
    """Return the ``extra`` of a log record: the event and its fields, for ``JsonFormatter``."""
    return {"fields": {"event": event, **more}}


def cut(text: str, most: int) -> str:
    """Return the text, cut where it has more than ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def quoted_unless_plain(text: str) -> str:
    """Return a name for a line of the log, in quotes where it could be mistaken for more than one.

    Clients choose some names, and those could otherwise imitate the remainder of a line.
    """
    text = cut(text, MOST_OF_A_REASON)
    return text if _PLAIN.fullmatch(text) else repr(text)


class TextFormatter(logging.Formatter):
    """Formats a record as one line for people; only a traceback adds more lines, all indented.

    No control character gets through, in the message or in the traceback. Those who log a message
    take care of what they put into it; the formatter is for what nobody has thought of.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _escape(_CONTROL, cut(record.message, _MOST_OF_A_MESSAGE))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        text = _escape(_CONTROL_BUT_LINE_ENDS, super().formatException(ei))
        return _INDENT + text.replace("\n", f"\n{_INDENT}")


def _escape(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object in one line.

    The object has the time (RFC 3339), the level, the pid, the message, and the record's fields.
    """

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
