"""A relay on asyncio's streams, written with care.  LISTEN_PORT TARGET_PORT WORKERS"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

#: As much as a transport reads at once; the default of a stream's limit is a quarter of it.
BLOCK = 1 << 18


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(BLOCK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def main(listener: socket.socket, target: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                there = await asyncio.open_connection("127.0.0.1", target, limit=BLOCK)
            except OSError as error:
                print(f"cannot connect to {target}: {error}", file=sys.stderr)
                return
            with contextlib.closing(there[1]):
                await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = await asyncio.start_server(serve, sock=listener, limit=BLOCK, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    listen, target, workers = map(int, sys.argv[1:])
    listener = socket.create_server(("127.0.0.1", listen), backlog=1024)
    while workers > 1 and os.fork():
        workers -= 1
    asyncio.run(main(listener, target))
