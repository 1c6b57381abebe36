"""What happens around the machine, in one queue: each wait is for the next of these."""

from __future__ import annotations

import json
import queue
import re
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

#: The kernel has given up: FreeBSD's words, and Linux's.
_PANIC = re.compile(r"^panic: |^Fatal trap |Kernel panic - not syncing")

#: The kernel has come through its hardware to its first process.
_ALIVE = re.compile(r"Trying to mount root from|Run /\S+ as init process|systemd\[1\]")


class Event(NamedTuple):
    """``kind`` is "console", "panic", "alive", "qmp", "exit" or a program's name."""

    kind: str
    about: Any = None


class Events:
    """The queue."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Event] = queue.Queue()

    def put(self, kind: str, about: Any = None) -> None:
        self._queue.put(Event(kind, about))

    def next(self, seconds: float) -> Event | None:
        """The next event; None if none comes in time."""
        try:
            return self._queue.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None


class Deadline:
    """A time that was set once, for any number of waits."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


class Console:
    """The guest's serial console: its lines as events, the last of them for people."""

    def __init__(self, channel: socket.socket, events: Events, log: Path, watched: str) -> None:
        self._channel = channel
        self._events = events
        self._log = log
        self._watched = watched
        self._last: deque[str] = deque(maxlen=25)
        self.panic: str | None = None
        self.watched_seen = False
        self._reader = _start(self._read, "console")

    def last_lines(self) -> str:
        return "\n".join(f"    {line}" for line in self._last) or "    (nothing)"

    def join(self) -> None:
        """Everything that was said has been read; the machine has ended."""
        self._reader.join(10)

    def _read(self) -> None:
        rest = ""
        with self._channel, self._log.open("a") as log:
            while data := self._receive():
                text = data.decode("utf-8", "replace")
                log.write(text)
                log.flush()
                *lines, rest = (rest + text).replace("\r", "\n").split("\n")
                for line in lines:
                    self._line(_CONTROL.sub("", line).rstrip())
            self._line(rest)

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(65536)
        except OSError:
            return b""

    def _line(self, line: str) -> None:
        if not line:
            return
        self._last.append(line)
        if _PANIC.search(line.split("] ", 1)[-1] if line.startswith("[") else line):
            self.panic = self.panic or line
            self._events.put("panic", line)
        elif self._watched and self._watched in line:
            self.watched_seen = True
            self._events.put("console", line)
        elif _ALIVE.search(line):
            self._events.put("alive", line)


class Monitor:
    """QEMU's QMP: its events, and the one order to end."""

    def __init__(self, channel: socket.socket, events: Events) -> None:
        self._channel = channel
        self._events = events
        self._lines = channel.makefile("rb")
        try:
            self._say("qmp_capabilities")
        except OSError:
            pass  # it has ended, of which ``watch_process`` tells
        _start(self._read, "qmp")

    def quit(self) -> None:
        self._say("quit")

    def _say(self, command: str) -> None:
        self._channel.sendall(json.dumps({"execute": command}).encode() + b"\n")

    def _read(self) -> None:
        with self._channel, self._lines:
            try:
                for line in self._lines:
                    said = json.loads(line)
                    if "event" in said:
                        self._events.put("qmp", said)
            except OSError:
                pass  # the machine has ended


def watch_process(process: subprocess.Popen[Any], name: str, events: Events) -> None:
    """Have the end of a process put into the queue."""
    _start(lambda: events.put(name, process.wait()), f"wait for {name}")


def _start(target: Callable[[], object], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


#: Colours and cursor movements, of which boot loaders are full.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1f]")
