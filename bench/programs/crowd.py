"""Many connections that are held, through a relay to an echo, and checked byte by byte.

    PORT NUMBER FIRST

PORT is the relay's. The connections have the numbers from FIRST on; what each of them sends is its
own, so that bytes of another are noticed. A JSON object is printed once all are there, and one for
each line that is read:

    each SIZE             a message there and back on each connection, all under way at once
    move SECONDS EVERY SIZE
                          a message on every second connection each EVERY seconds
    end                   each is closed for sending, and nothing but the EOF comes back
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time

from .load import PATIENCE, WrongPayloadError, connect
from .pollers import Poller

#: What all messages are cut from.
PATTERN = random.Random("crowd").randbytes(1 << 16)
HEAD = struct.Struct("!II")


class Connection:
    """One of them, and the message whose answer hasn't come back whole."""

    def __init__(self, port: int, number: int) -> None:
        self.number = number
        self.sock = connect(port)
        self.messages = 0
        self._expected = memoryview(b"")

    @property
    def waits(self) -> bool:
        return bool(self._expected)

    def send(self, size: int) -> None:
        message = made(self.number, self.messages, size)
        self.messages += 1
        self._expected = memoryview(message)
        self.sock.sendall(message)

    def take(self) -> int:
        """Compare what has come; returns how many bytes that was."""
        data = self.sock.recv(1 << 16)
        if data != self._expected[: len(data)] or not data:
            said = f"{data[:9]!r} instead of {bytes(self._expected[:9])!r}"
            raise WrongPayloadError(f"connection {self.number}, message {self.messages}: {said}")
        self._expected = self._expected[len(data) :]
        return len(data)

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def ended(self) -> None:
        if data := self.sock.recv(1):
            raise WrongPayloadError(f"connection {self.number}: {data!r} where EOF was to come")
        self.sock.close()


class Crowd:
    """All connections of this process."""

    def __init__(self, port: int, number: int, first: int) -> None:
        self._poller = Poller()
        self._connections = []
        self._by_descriptor: dict[int, Connection] = {}
        for each in range(first, first + number):
            connection = Connection(port, each)
            connection.send(HEAD.size)
            while connection.waits:
                connection.take()
            self._connections.append(connection)
            self._by_descriptor[connection.sock.fileno()] = connection
            self._poller.add(connection.sock.fileno())

    def each(self, size: int) -> dict[str, float]:
        for connection in self._connections:
            connection.send(size)
        taken = 0
        while taken < size * len(self._connections):
            taken += self._take(PATIENCE)
        return {"messages": len(self._connections), "bytes": taken}

    def move(self, seconds: float, every: float, size: int) -> dict[str, float]:
        moving = self._connections[::2]
        messages = round(seconds / every * len(moving))
        taken, started = 0, time.perf_counter()
        for count in range(messages):
            due = started + count * every / len(moving)
            while (left := due - time.perf_counter()) > 0:
                taken += self._take(left, needed=False)
            connection = moving[count % len(moving)]
            while connection.waits:
                taken += self._take(PATIENCE)
            connection.send(size)
        while taken < messages * size:
            taken += self._take(PATIENCE)
        return {"messages": messages, "bytes": taken}

    def end(self) -> dict[str, float]:
        for connection in self._connections:
            connection.end()
        for connection in self._connections:
            connection.ended()
        return {"ended": len(self._connections)}

    def _take(self, seconds: float, *, needed: bool = True) -> int:
        """Compare what comes; it is an error if nothing does within that time and it is needed."""
        ready = self._poller.wait(seconds)
        if needed and not ready:
            raise TimeoutError(f"no answer came within {seconds:.0f} s")
        return sum(self._by_descriptor[descriptor].take() for descriptor in ready)


def made(number: int, message: int, size: int) -> bytes:
    """That message of that connection: it names both, and goes on with its part of the pattern."""
    place = (number * 8191 + message * 509) % (len(PATTERN) // 2)
    return (HEAD.pack(number, message) + PATTERN[place : place + size])[:size]


def main(port: int, number: int, first: int) -> None:
    started = time.perf_counter()
    crowd = Crowd(port, number, first)
    say({"set up": time.perf_counter() - started})
    for line in sys.stdin:
        command, *arguments = line.split()
        started = time.perf_counter()
        if command == "each":
            result = crowd.each(int(arguments[0]))
        elif command == "move":
            seconds, every, size = arguments
            result = crowd.move(float(seconds), float(every), int(size))
        else:
            result = crowd.end()
        say({**result, "seconds": time.perf_counter() - started})


def say(result: dict[str, float]) -> None:
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
