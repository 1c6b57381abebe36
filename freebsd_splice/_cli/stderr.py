"""Standard error, written to by a thread: code that logs doesn't wait for the log's reader."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from itertools import accumulate

from .._platform.process import in_forked_child
from .._platform.threads import start as start_thread
from ..proxies._log import fields, logger

#: Characters that may wait to be written: some 20,000 lines of the usual length.
MOST_WAITING = 4 << 20

#: Characters that are taken at once, unless a line is longer.
MOST_AT_ONCE = 1 << 15

#: Bytes that are written by one call, unless a line is longer. With more than these, what other
#: processes write to the same pipe (workers do) could come in the middle of a line (write(2)).
PIPE_BYTES: int = getattr(select, "PIPE_BUF", 512)

#: For how many seconds lines are gathered after one that was written at once.
GATHER_SECONDS = 0.01

#: For how many seconds, in all, the end of the program waits until its last lines are written.
FLUSH_SECONDS = 1.0


class StderrHandler(logging.Handler):
    """Formats records where they are logged; a thread writes them."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines
        lines.say_lost = self._say_lost

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            # The standard library would print the traceback, and wait until that is written.
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

    Lines that find no room, and lines that can't be written, are dropped. As soon as something can
    be written again, a line in their place says how many they were.
    """

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        #: Makes the line that says how many were dropped.
        self.say_lost: Callable[[int], str] = lambda count: f"{count} lines were dropped"
        self._begin()
        in_forked_child(self._begin)

    def _begin(self) -> None:
        """Begin without lines and thread, also in a forked child: the parent writes what waits."""
        # ``put`` takes no lock: the garbage collector can run anywhere, in the thread's own code as
        # well, and call finalizers that log.
        self._queue: queue.SimpleQueue[str | _Dropped | threading.Event] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._given = 0  # characters that were put
        self._full = False
        self._dropping: _Dropped | None = None  # the last in the queue, if lines are dropped now
        self._ends_by: float | None = None
        # Used by the thread alone: characters taken, lines lost since one could be written, the
        # dropped lines that were counted last, and whether a line was cut off.
        self._taken = 0
        self._lost = 0
        self._heard_of: _Dropped | None = None
        self._next: _Dropped | threading.Event | None = None
        self._torn = False

    def put(self, line: str) -> None:
        """Have the thread write a line. Never waits."""
        # Once the queue was full, lines are dropped until half of it is written: otherwise every
        # other line would be one that says how many were dropped.
        most = MOST_WAITING // 2 if self._full else MOST_WAITING
        self._full = self._given - self._taken > most
        if self._full:
            self._drop()
        else:
            self._dropping = None
            self._given += len(line)
            self._queue.put(line)
        if self._thread is None and self._starting.acquire(blocking=False):
            try:
                with contextlib.suppress(RuntimeError):  # the next line tries again
                    self._thread = start_thread(self._run, "standard error")
            finally:
                self._starting.release()

    def flush(self) -> None:
        """Wait at the program's end until all lines are written, for FLUSH_SECONDS in all."""
        if self._ends_by is None:
            self._ends_by = time.monotonic() + FLUSH_SECONDS
        written = threading.Event()
        self._queue.put(written)
        if self._thread is not None:
            written.wait(max(0.0, self._ends_by - time.monotonic()))

    def _drop(self) -> None:
        dropping = self._dropping
        if dropping is None:
            dropping = self._dropping = _Dropped()
            self._queue.put(dropping)
        dropping.lines.append(None)

    def _run(self) -> None:
        while True:
            if self._write_next() < MOST_AT_ONCE:
                # To be woken for each line would cost whoever logs more than the line does.
                time.sleep(GATHER_SECONDS)

    def _write_next(self) -> int:
        """What comes next, and with a line those that wait behind it; gives their characters."""
        following, self._next = self._next, None
        item = self._queue.get() if following is None else following
        if isinstance(item, str):
            lines = self._gather(item)
            self._deliver(lines)
            size = sum(map(len, lines))
            self._taken += size
            return size
        if isinstance(item, _Dropped):
            self._dropping = None  # lines dropped from now on come after what is in the queue
        self._deliver(item)
        if isinstance(item, threading.Event):
            item.set()
        return 0

    def _gather(self, first: str) -> list[str]:
        lines, size = [first], len(first)
        while size < MOST_AT_ONCE:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if not isinstance(item, str):
                self._next = item
                break
            lines.append(item)
            size += len(item)
        return lines

    def _deliver(self, item: list[str] | _Dropped | threading.Event) -> None:
        if self._heard_of is not None:
            self._lost += self._heard_of.heard()  # lines that were dropped at that very moment
        if isinstance(item, _Dropped):
            self._heard_of = item
            self._lost += item.heard()
        lines = item if isinstance(item, list) else []
        while lines or self._lost:
            if self._lost and not self._write([self.say_lost(self._lost)]):
                self._lost += len(lines[:1])
                lines = lines[1:]
            else:
                written = self._write(lines)
                self._lost = int(written < len(lines))
                lines = lines[written + 1 :]
            if not lines:  # else what comes behind one that is lost may be written
                return

    def _write(self, lines: list[str]) -> int:
        """How many of them were written whole."""
        texts = [f"{line}\n".encode(self._encoding, "backslashreplace") for line in lines]
        written = 0
        while written < len(texts):
            together = _fitting(texts[written:])
            whole = self._write_at_once(together)
            written += whole
            if whole < len(together):
                break
        return written

    def _write_at_once(self, texts: list[bytes]) -> int:
        if self._torn:
            texts[0] = b"\n" + texts[0]
        data = memoryview(b"".join(texts))
        whole = len(data)
        while data:
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:  # another process that shares it has made it non-blocking
                select.select((), (self._descriptor,), (), 1.0)
                continue
            except OSError:  # the reader has gone, the disk is full: later lines may be written
                written = whole - len(data)
                return sum(end <= written for end in accumulate(map(len, texts)))
            data = data[written:]
            self._torn = bool(data)
        return len(texts)


def _fitting(texts: list[bytes]) -> list[bytes]:
    """The first of them, and those behind it that can be written by the same call."""
    count = sum(end <= PIPE_BYTES for end in accumulate(map(len, texts)))
    return texts[: max(1, count)]


class _Dropped:
    """Stands in the queue for lines that were dropped."""

    def __init__(self) -> None:
        self.lines: list[None] = []  # one item for each line: append needs no lock
        self._heard = 0

    def heard(self) -> int:
        """Return how many more lines there are than at the last call."""
        count = len(self.lines)
        more, self._heard = count - self._heard, count
        return more


_lines: Lines | None = None


def stderr_lines() -> Lines | None:
    """Return this process's ``Lines``; None where it has no standard error."""
    global _lines
    if _lines is None and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            _lines = Lines(sys.stderr.fileno(), sys.stderr.encoding)
    return _lines


def complain(line: str) -> None:
    """Print why the program ends, after what was logged before."""
    lines = stderr_lines()
    if lines is None:
        print(line, file=sys.stderr)
    else:
        lines.put(line)
        lines.flush()
