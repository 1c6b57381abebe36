"""Any sequence of reads, writes and transfers over one pair of streams, cut in any way."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("hypothesis", reason="the cuts are hypothesis's")

from hypothesis import given, settings
from hypothesis import strategies as st

from freebsd_splice import aio

from .nets import MODELS, Net, play
from .test_seams import PATTERN

sizes = st.integers(0, 50) | st.integers(0, 30_000)
#: What the program does with its two streams, one after the other.
steps = st.lists(
    st.tuples(st.sampled_from(["transfer", "read", "write", "splice"]), sizes), max_size=8
)


@pytest.mark.parametrize("name", ["asyncio", *MODELS])
@given(
    pieces=st.lists(st.integers(1, 100) | st.integers(1, 40_000), min_size=1, max_size=6),
    plan=steps,
    limit=st.sampled_from([10, 1_000, 65_536]),
    small=st.booleans(),
    early=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_not_a_byte_is_lost(
    name: str,
    pieces: list[int],
    plan: list[tuple[str, int]],
    limit: int,
    small: bool,
    early: bool,
) -> None:
    async def case(net: Net) -> None:
        source, client = await net.stream(limit=limit)
        drain, server = await net.stream(small=small)
        total = sum(pieces)
        stream, expected, taken = PATTERN[:total], bytearray(), 0

        async def write() -> None:
            start = 0
            for size in pieces:
                await client.write(stream[start : start + size])
                start += size
            client.fin()

        received = bytearray()

        async def read() -> None:
            while data := await server.read(1):
                received.extend(data)
                received.extend(await server.read(len(expected) - len(received)))

        writing, reading = asyncio.ensure_future(write()), asyncio.ensure_future(read())
        if early:
            await net.until(writing.done)
        for what, wanted in plan:
            size = min(wanted, total - taken)
            piece = stream[taken : taken + size]
            if what == "transfer":
                expected += piece
                assert (await aio.transfer(source, drain, size)).bytes == size
            elif what == "splice":
                # Some of it the caller has read itself.
                ahead = await source[0].readexactly(size // 2)
                expected += piece
                await aio.splice(source, drain, max_bytes=size, initial=ahead)
            elif what == "read":
                assert await source[0].readexactly(size) == piece
            else:
                expected += b"w" * wanted
                drain[1].write(b"w" * wanted)
                size = 0
            taken += size
        expected += stream[taken:]
        await aio.splice(source, drain)
        drain[1].write_eof()
        await reading
        assert received == expected
        assert await source[0].read() == b""

    play(name, case)
