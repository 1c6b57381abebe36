"""What many Python proxies are: a forwarder on asyncio's streams.  LISTEN_PORT TARGET_PORT"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def main(listen: int, target: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
        to_writer.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", listen)
    await server.serve_forever()


asyncio.run(main(*map(int, sys.argv[1:])))
