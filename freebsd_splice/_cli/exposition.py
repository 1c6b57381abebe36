"""The HTTP server for whoever reads the metrics, on a thread and an event loop of its own.

So no scraper holds up the proxy, and no busy proxy a scraper. h11 parses the requests, and
prometheus-client answers them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple

import h11
from prometheus_client import CollectorRegistry, make_wsgi_app

from .._platform.process import in_forked_child
from .._platform.threads import start as start_thread
from ..proxies._accepting import OF_ONE_CLIENT
from ..proxies._connecting import reason_of
from ..proxies._log import logger
from .collecting import Collected, Collecting
from .families import Families

#: Seconds for a scraper, from its accepting to the last byte of its answer.
DEADLINE = 5.0

#: Seconds of those in which the workers have to answer.
_COLLECTING = 3.0

#: Scrapers that are served at the same time; more of them wait in the system's queue.
_MOST = 16

#: The most bytes of a request.
_LARGEST = 8192

#: Bytes that are read at once.
_PIECE = 4096

#: Seconds until accepting is tried again after it has failed, for want of descriptors mostly.
_RETRY_AFTER = 1.0

#: Seconds that the end of the program waits for the thread.
_CLOSING = 1.0


class Exposition:
    """Answers scrapers, and collects from workers what they are answered.

    Args:
        listeners: the sockets to accept scrapers from; they are closed at the end.
    """

    def __init__(self, listeners: Iterable[socket.socket]) -> None:
        self._listeners = list(listeners)
        self._collecting = Collecting()
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread: threading.Thread | None = None
        #: All sockets but the loop's own, which a forked child closes as well.
        self._sockets = set(self._listeners)
        self._tasks: set[asyncio.Task[None]] = set()
        in_forked_child(self._close_sockets)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the system can't start another thread.
        """
        self._thread = start_thread(self._run, "metrics")

    def add_worker(self, number: int, channel: socket.socket) -> None:
        """Collect from a worker too, on whose other end ``answer`` is running."""
        channel.setblocking(False)
        self._sockets.add(channel)
        listening = self._collecting.listen
        try:
            self._loop.call_soon_threadsafe(
                lambda: self._begin(listening(number, channel), channel)
            )
        except RuntimeError:  # the loop has closed, which the log has said
            channel.close()

    def close(self) -> None:
        """End the thread, and close all sockets."""
        if self._thread is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it has closed meanwhile
                self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(_CLOSING)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:  # a defect; clients go on, and scrapers are refused from now on
            logger.exception("the metrics can't be read any more")
        finally:
            self._loop.close()
            self._close_sockets()

    async def _serve(self) -> None:
        places = asyncio.Semaphore(_MOST)
        for listener in self._listeners:
            self._begin(self._accept(listener, places), listener)
        await self._stopped.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, call: Coroutine[Any, Any, None], sock: socket.socket) -> None:
        """Run ``call``, and close the socket at its end."""
        task = self._loop.create_task(call)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._sockets.discard(sock)
            sock.close()
            if not task.cancelled() and task.exception() is not None:
                logger.error("metrics: failed", exc_info=task.exception())

        task.add_done_callback(ended)

    async def _accept(self, listener: socket.socket, places: asyncio.Semaphore) -> None:
        is_failing = False
        while True:
            await places.acquire()
            try:
                sock, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                places.release()
                if not is_failing and error.errno not in OF_ONE_CLIENT:
                    is_failing = True
                    logger.warning("metrics: cannot accept: %s", reason_of(error))
                await asyncio.sleep(_RETRY_AFTER)
                continue
            is_failing = False
            self._sockets.add(sock)
            self._begin(self._scraped(sock, places), sock)

    async def _scraped(self, sock: socket.socket, places: asyncio.Semaphore) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.TimeoutError):  # the scraper's own affair
                await asyncio.wait_for(self._answer(sock), DEADLINE)
        finally:
            places.release()

    async def _answer(self, sock: socket.socket) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST)
        try:
            request = await self._read_request(connection, sock)
            if request is None:
                return
            answer = respond(request, await self._collecting.collect(_COLLECTING))
        except h11.RemoteProtocolError as error:
            answer = Answer(error.error_status_hint, "Bad Request", [], b"")
        await self._loop.sock_sendall(sock, answer.to_bytes(connection))

    async def _read_request(
        self, connection: h11.Connection, sock: socket.socket
    ) -> h11.Request | None:
        """Return the request; None where the scraper has closed before it was complete.

        Raises:
            h11.RemoteProtocolError: it is not HTTP, or too long.
        """
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await self._loop.sock_recv(sock, _PIECE))
        return event if isinstance(event, h11.Request) else None

    def _close_sockets(self) -> None:
        for sock in list(self._sockets):  # another thread may be adding one
            sock.close()


class Answer(NamedTuple):
    """An HTTP response; ``body`` is what a GET has."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    is_head: bool = False

    def to_bytes(self, connection: h11.Connection) -> bytes:
        length = [("Content-Length", str(len(self.body))), ("Connection", "close")]
        response = h11.Response(
            status_code=self.status, reason=self.reason, headers=[*self.headers, *length]
        )
        return (connection.send(response) or b"") + (b"" if self.is_head else self.body)


def respond(request: h11.Request, collected: Collected) -> Answer:
    """Return what prometheus-client answers: to GET the metrics, whatever the path is."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Families(collected))
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        started.append((status, headers))

    app: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
    body = b"".join(app(_environment(request), start_response))
    ((status, headers),) = started
    named = [header for header in headers if header[0]]  # a browser's icon comes with an empty one
    number, _, reason = status.partition(" ")
    return Answer(int(number), reason, named, body, request.method == b"HEAD")


def _environment(request: h11.Request) -> dict[str, str]:
    """Return as much of a WSGI environment (PEP 3333) as is looked at."""
    path, _, query = request.target.decode("ascii").partition("?")
    headers = {name: value.decode("latin-1") for name, value in request.headers}
    method = request.method.decode("ascii")
    return {
        "REQUEST_METHOD": "GET" if method == "HEAD" else method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_ACCEPT": headers.get(b"accept", ""),
        "HTTP_ACCEPT_ENCODING": headers.get(b"accept-encoding", ""),
    }
