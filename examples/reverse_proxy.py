"""An HTTP/1.1 reverse proxy: python examples/reverse_proxy.py LISTEN_PORT HOST:PORT

Each client has a connection to the server behind it, and both are kept alive.  h11 reads the heads,
and ``aio.transfer`` moves the bodies, which don't pass through the loop:

- What the reader has buffered behind a head goes first, by itself.  After a body the reader goes on
  with the next head: ``readuntil`` and ``transfer`` may alternate on one stream.
- While a body is moved one way, the other way is free: the server's answer is read and passed on
  while the client still sends its request (``Expect: 100-continue``, an early 413).

It takes h11 (``pip install 'freebsd-splice[proxy]'``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import re
import signal
import socket
import struct
from typing import Any

import h11

from freebsd_splice import Reason, aio

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Answer = h11.Response | h11.InformationalResponse
Message = h11.Request | Answer

#: Seconds: for the next request to come whole, in which a body must not stand still, until the
#: server must have begun to answer, and to connect to it.
NEXT_REQUEST, STANDSTILL, ANSWER, CONNECT = 60.0, 60.0, 60.0, 10.0

#: What is for the next hop alone (RFC 9110, 7.6.1), besides what ``Connection`` names.
HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding"),
    b"upgrade",
}
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")

#: May be sent once more where the server has closed a kept connection meanwhile (RFC 9110, 9.2.2).
REPEATABLE = (b"GET", b"HEAD", b"OPTIONS", b"TRACE")


class Body(enum.Enum):
    """How long a body is, where no number says it."""

    CHUNKED = enum.auto()
    UNTIL_EOF = enum.auto()


class RequestError(Exception):
    """The request is answered with ``status``, and the connection is closed."""

    def __init__(self, status: str, why: object) -> None:
        super().__init__(f"{status}: {str(why) or type(why).__name__}")
        self.status = status


class BodyError(Exception):
    """A body that isn't framed as it should be, or was cut short."""


class Client:
    """A client's connection, and the one to the server that goes with it."""

    def __init__(self, stream: Stream, target: tuple[str, int]) -> None:
        self._reader, self._writer = self._stream = stream
        self._target = target
        self._server: Stream | None = None
        self._name = self._writer.get_extra_info("peername")[0]

    async def serve(self) -> None:
        """Until the client or the server wants it closed."""
        try:
            while await self._exchange():
                pass
        except RequestError as error:
            report(self._name, error)
            await self._refuse(error.status)
        except (OSError, EOFError, asyncio.TimeoutError, BodyError) as error:
            report(self._name, error)
            reset(self._writer)
        except asyncio.CancelledError:
            reset(self._writer)
            raise
        finally:
            self._forget_server()
            self._writer.close()

    async def _exchange(self) -> bool:
        """A request and its answer; whether another request may follow."""
        request = await self._read_request()
        if request is None:
            return False
        answer, sending = await self._ask_server(request)
        try:
            if answer.status_code == 101:
                return await self._switch(answer)
            kept = await self._pass_on(request, answer)
            if kept and not sending.done():
                await asyncio.wait([sending], timeout=1)
            if not sending.done() or sending.exception() or not sending.result():
                kept = False  # the server has answered without the rest of the request
            if not kept or closes(answer) or answer.http_version < b"1.1":
                self._forget_server()
            if not kept:
                await farewell(self._stream)
            return kept
        finally:
            await stop(sending)

    async def _read_request(self) -> h11.Request | None:
        """None: the client has closed, or says nothing more."""
        try:
            head = await asyncio.wait_for(read_head(self._reader), NEXT_REQUEST)
        except (EOFError, asyncio.TimeoutError):
            return None
        except asyncio.LimitOverrunError as error:
            raise RequestError("431 Request Header Fields Too Large", error) from None
        connection = h11.Connection(h11.SERVER)
        try:
            connection.receive_data(head)
            request = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise RequestError("400 Bad Request", error) from None
        assert isinstance(request, h11.Request)
        if request.method == b"CONNECT":
            raise RequestError("501 Not Implemented", "this is not a proxy for CONNECT")
        names = dict(request.headers)
        if len(names.get(b"content-length", b"")) > 18:
            raise RequestError("413 Content Too Large", "more bytes than a transfer can have")
        if b"transfer-encoding" in names and (
            b"content-length" in names or request.http_version < b"1.1"
        ):
            # The server could see another end of the body than this proxy (RFC 9112, 6.3).
            raise RequestError("400 Bad Request", "the length of the body is ambiguous")
        return request

    async def _ask_server(self, request: h11.Request) -> tuple[Answer, asyncio.Task[bool]]:
        """The head of its answer, and the sending of the body, which may go on."""
        body = body_of(request, 0)
        again = self._server is not None and not body and request.method in REPEATABLE
        while True:
            server = await self._connect()
            connection = h11.Connection(h11.CLIENT)
            head = connection.send(self._for_server(request, body))
            assert head is not None
            server[1].write(head)
            sending = asyncio.ensure_future(self._send_body(server, body))
            try:
                return await self._read_answer(connection, server[0], sending), sending
            except (OSError, EOFError) as error:
                await stop(sending)
                self._forget_server()
                begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
                if not again or begun:
                    raise RequestError("502 Bad Gateway", error) from None
                again = False  # the next is on a connection of its own
            except BaseException:
                await stop(sending)
                raise

    async def _send_body(self, server: Stream, body: int | Body) -> bool:
        """False where the server takes no more: its answer may say why."""
        try:
            await move(self._stream, server, body)
        except aio.IncompleteTransferError as error:
            if error.outcome.reason is not Reason.DRAIN_ERROR:
                raise RequestError("408 Request Timeout", error) from None
            return False
        except (EOFError, BodyError, asyncio.LimitOverrunError) as error:
            raise RequestError("400 Bad Request", error) from None
        except asyncio.TimeoutError:
            raise RequestError("408 Request Timeout", "the body stands still") from None
        except OSError:
            return False
        return True

    async def _read_answer(
        self, connection: h11.Connection, reader: asyncio.StreamReader, sending: asyncio.Task[bool]
    ) -> Answer:
        """What comes before it (100 Continue) is passed on."""
        while True:
            reading = asyncio.ensure_future(read_head(reader))
            try:
                await asyncio.wait([reading, sending], return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    sending.result()  # raises what is wrong with the request
                # The time begins when the server has the whole request.
                connection.receive_data(await asyncio.wait_for(reading, ANSWER))
                answer = connection.next_event()
            except asyncio.TimeoutError:
                raise RequestError("504 Gateway Timeout", "no answer in time") from None
            except (asyncio.LimitOverrunError, h11.RemoteProtocolError) as error:
                raise RequestError("502 Bad Gateway", error) from None
            finally:
                await stop(reading)
            assert isinstance(answer, Answer)
            if answer.status_code == 101 or isinstance(answer, h11.Response):
                return answer
            self._writer.write(head_of(answer, {}))

    async def _pass_on(self, request: h11.Request, answer: Answer) -> bool:
        """The answer to the client; whether the client's connection can be used on."""
        assert self._server is not None
        no_body = request.method == b"HEAD" or answer.status_code in (204, 304)
        body = 0 if no_body else body_of(answer, Body.UNTIL_EOF)
        old = request.http_version < b"1.1"
        kept = not (old or closes(request) or body is Body.UNTIL_EOF)
        headers = {} if kept else {b"Connection": b"close"}
        if body is Body.CHUNKED and not old:
            headers[b"Transfer-Encoding"] = b"chunked"
        self._writer.write(head_of(answer, headers))
        await move(self._server, self._stream, body, framed=not old)
        await asyncio.wait_for(self._writer.drain(), STANDSTILL)
        return kept

    async def _switch(self, answer: Answer) -> bool:
        """Another protocol from here on, of which nothing needs to be known."""
        assert self._server is not None
        upgrade = dict(answer.headers).get(b"upgrade", b"")
        self._writer.write(head_of(answer, {b"Connection": b"Upgrade", b"Upgrade": upgrade}))
        await aio.relay(self._stream, self._server, close=True)
        self._server = None
        return False

    async def _connect(self) -> Stream:
        if self._server is not None and self._server[0].at_eof():
            self._forget_server()
        if self._server is None:
            try:
                opening = asyncio.open_connection(*self._target)
                self._server = await asyncio.wait_for(opening, CONNECT)
            except asyncio.TimeoutError:
                raise RequestError("504 Gateway Timeout", "the server doesn't answer") from None
            except OSError as error:
                raise RequestError("502 Bad Gateway", error) from None
        return self._server

    def _for_server(self, request: h11.Request, body: int | Body) -> h11.Request:
        headers = passed_on(request)
        if body is Body.CHUNKED:
            headers.append((b"Transfer-Encoding", b"chunked"))
        upgrade = dict(request.headers).get(b"upgrade")
        if upgrade and b"upgrade" in connection_options(request):
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
        headers += [(b"Via", b"1.1 freebsd-splice"), (b"X-Forwarded-For", self._name.encode())]
        return h11.Request(method=request.method, target=request.target, headers=headers)

    async def _refuse(self, status: str) -> None:
        text = f"{status}\n"
        self._writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            f"Connection: close\r\n\r\n{text}".encode()
        )
        await farewell(self._stream)

    def _forget_server(self) -> None:
        if self._server is not None:
            self._server[1].transport.abort()
            self._server = None


# Heads


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """All up to the empty line.  Empty lines before it are ignored (RFC 9112, 2.2)."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).lstrip(b"\r\n")
        if head:
            return head


def body_of(message: Message, otherwise: int | Body) -> int | Body:
    """How many bytes, or how they end."""
    headers = dict(message.headers)  # h11 has seen to it that each is right, and there once
    if b"transfer-encoding" in headers:
        return Body.CHUNKED
    length = headers.get(b"content-length")
    return otherwise if length is None else int(length)


def connection_options(message: Message) -> set[bytes]:
    values = [value.lower() for name, value in message.headers if name == b"connection"]
    return {option.strip() for value in values for option in value.split(b",")}


def closes(message: Message) -> bool:
    return b"close" in connection_options(message)


def passed_on(message: Message) -> list[tuple[bytes, bytes]]:
    """The headers that aren't for this hop alone."""
    own = HOP_BY_HOP | connection_options(message)
    if b"transfer-encoding" in dict(message.headers):
        own.add(b"content-length")  # an answer may have both, and the first counts
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in own]


def head_of(message: Answer, headers: dict[bytes, bytes]) -> bytes:
    """Of an answer, to be sent: h11 would choose the framing, which is the server's here."""
    lines = [*passed_on(message), *headers.items()]
    text = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (message.status_code, message.reason, text)


# Bodies


async def move(source: Stream, drain: Stream, body: int | Body, *, framed: bool = True) -> None:
    """Move a body, and raise where it is cut short."""
    if body is Body.CHUNKED:
        await move_chunks(source, drain, framed=framed)
    elif body is Body.UNTIL_EOF:
        outcome = await aio.splice(source, drain, idle_timeout=STANDSTILL)
        if outcome.reason is not Reason.EOF:
            raise BodyError(f"the body was cut short: {outcome.reason.value}")
    elif isinstance(body, int) and body:
        await aio.transfer(source, drain, body, idle_timeout=STANDSTILL)


async def move_chunks(source: Stream, drain: Stream, *, framed: bool) -> None:
    """As chunks again, or without their lines for who doesn't know these.  Trailers are dropped."""
    reader, writer = source[0], drain[1]
    while True:
        line = await asyncio.wait_for(reader.readuntil(b"\r\n"), STANDSTILL)
        found = CHUNK_LINE.fullmatch(line)
        if found is None:
            raise BodyError(f"not the line of a chunk: {line[:40]!r}")
        size = int(found[1], 16)
        if not size:
            break
        if framed:
            writer.write(b"%x\r\n" % size)
        await aio.transfer(source, drain, size, idle_timeout=STANDSTILL)
        if await asyncio.wait_for(reader.readexactly(2), STANDSTILL) != b"\r\n":
            raise BodyError("a chunk is longer than its line says")
        if framed:
            writer.write(b"\r\n")
    for _ in range(100):
        if await asyncio.wait_for(reader.readuntil(b"\r\n"), STANDSTILL) == b"\r\n":
            break
    else:
        raise BodyError("more trailers than anybody needs")
    if framed:
        writer.write(b"0\r\n\r\n")


# Ends


async def stop(task: asyncio.Future[Any]) -> None:
    """End it, whatever it ends with."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # which is looked at: asyncio would log it else


def reset(writer: asyncio.StreamWriter) -> None:
    """In the middle of an answer: a FIN would tell the client that it was whole."""
    with contextlib.suppress(OSError):
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()


async def farewell(stream: Stream) -> None:
    """Let the client read its answer: closing with bytes unread would reset the connection."""
    reader, writer = stream

    async def read_on() -> None:
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        for _ in range(256):
            if not await reader.read(4096):
                break

    with contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(read_on(), 2)


def report(name: str, error: Exception) -> None:
    print(f"{name}: {str(error) or type(error).__name__}", flush=True)


async def main(port: int, target: tuple[str, int]) -> None:
    """Serve until SIGINT or SIGTERM, which cut what is under way."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    clients: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(Client((reader, writer), target).serve())
        clients.add(task)
        task.add_done_callback(clients.discard)

    server = await asyncio.start_server(accepted, "127.0.0.1", port)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stopped.wait()
    server.close()
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An HTTP/1.1 reverse proxy")
    parser.add_argument("port", type=int, metavar="LISTEN_PORT", help="0: a free one")
    parser.add_argument("target", type=address, metavar="HOST:PORT")
    given = parser.parse_args()
    asyncio.run(main(given.port, given.target))
