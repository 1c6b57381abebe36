"""Standard error, written to by a thread: nobody who logs waits for whoever reads the log."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from .._process import in_forked_child
from .._threads import start as start_thread
from ..proxies._log import fields, logger

#: Characters that may wait to be written: some 20,000 lines of the usual length.
MOST_WAITING = 4 << 20

#: How long the end of the program may wait, in all, for its last lines to be written.
FLUSH_SECONDS = 1.0


class StderrHandler(logging.Handler):
    """Formats records where they are logged, and has them written by the thread."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines
        lines.say_lost = self._say_lost

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            # The standard library's own way is to print the traceback, and to wait for that.
            about = logger.makeRecord(
                logger.name,
                logging.ERROR,
                record.pathname,
                record.lineno,
                "a line of the log can't be formatted: %r",
                (record.msg,),
                sys.exc_info(),
            )
            line = self.format(about)
        self._lines.put(line)

    def flush(self) -> None:
        self._lines.flush()

    def _say_lost(self, count: int) -> str:
        return self.format(
            logger.makeRecord(
                logger.name,
                logging.WARNING,
                __file__,
                0,
                "%d lines of the log were dropped: they could not be written as fast as they came",
                (count,),
                None,
                extra=fields("log dropped", lines=count),
            )
        )


class Lines:
    """Lines on their way to a descriptor.

    Those for which there is no more room are dropped, and so are those that can't be written; how
    many is said in their place, as soon as something can be written.
    """

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        #: The line that says so.
        self.say_lost: Callable[[int], str] = lambda count: f"{count} lines were dropped"
        self._begin()
        in_forked_child(self._begin)

    def _begin(self) -> None:
        """Also in a forked child: it has no such thread, and its parent writes what waits."""
        self._changed = threading.Condition(threading.Lock())
        # In place of lines that were dropped their number.
        self._waiting: deque[str | int] = deque()
        self._size = 0
        self._undone = 0
        self._full = False
        self._ends_by: float | None = None
        self._thread: threading.Thread | None = None
        # The thread's own: lines lost since one could be written; whether one was cut off.
        self._lost = 0
        self._torn = False

    def put(self, line: str) -> None:
        """Have it written.  Never waits."""
        with self._changed:
            # Once it was full it is left alone until half is written, lest every other line be one
            # that says how many were dropped.
            if self._size > (MOST_WAITING // 2 if self._full else MOST_WAITING):
                self._full = True
                self._drop()
            else:
                self._full = False
                self._waiting.append(line)
                self._undone += 1
                self._size += len(line)
            if self._thread is None:
                with contextlib.suppress(RuntimeError):  # the next line tries it again
                    self._thread = start_thread(self._run, "standard error")
            self._changed.notify_all()

    def flush(self) -> None:
        """At the end of the program: wait until all is written, for FLUSH_SECONDS in all."""
        if self._ends_by is None:
            self._ends_by = time.monotonic() + FLUSH_SECONDS
        with self._changed:
            left = max(0.0, self._ends_by - time.monotonic())
            self._changed.wait_for(lambda: not self._undone, left)

    def _drop(self) -> None:
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, int):
            self._waiting[-1] = last + 1
        else:
            self._waiting.append(1)
            self._undone += 1

    def _run(self) -> None:
        while True:
            self._write_next()

    def _write_next(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            item = self._waiting.popleft()
        self._deliver(item)
        with self._changed:
            self._undone -= 1
            self._size -= 0 if isinstance(item, int) else len(item)
            self._changed.notify_all()

    def _deliver(self, item: str | int) -> None:
        lines = 1
        if isinstance(item, int):
            self._lost += item
            lines = 0
        if self._lost:
            if not self._write(self.say_lost(self._lost)):
                self._lost += lines
                return
            self._lost = 0
        if isinstance(item, str) and not self._write(item):
            self._lost = 1

    def _write(self, line: str) -> bool:
        text = f"\n{line}\n" if self._torn else f"{line}\n"
        data = memoryview(text.encode(self._encoding, "backslashreplace"))
        while data:
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:  # whoever shares it has made it non-blocking
                select.select((), (self._descriptor,), (), 1.0)
                continue
            except OSError:  # its reader has gone, the disk is full: later lines may be written
                return False
            data = data[written:]
            self._torn = bool(data)
        return True


_lines: Lines | None = None


def stderr_lines() -> Lines | None:
    """Those of this process; None where it has no standard error of the system's."""
    global _lines
    if _lines is None and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            _lines = Lines(sys.stderr.fileno(), sys.stderr.encoding)
    return _lines


def complain(line: str) -> None:
    """Say why the program ends, behind what was logged before."""
    lines = stderr_lines()
    if lines is None:
        print(line, file=sys.stderr)
    else:
        lines.put(line)
        lines.flush()
