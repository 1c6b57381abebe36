"""A loop's splices beside children of the process, and other programs."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from faults.bystanders import PIECE
from faults.cells import cell
from freebsd_splice import Reason, aio
from support.leaks import descriptors_of_another_program

from .nets import LOOPS, Net, play


@cell(
    "fork",
    "aio",
    "moving",
    sees="the parent's goes on; a child that does not touch the loop changes nothing",
    counted="all",
)
@cell(
    "exec",
    "aio",
    "moving",
    sees="nothing; the other program is given none of the package's descriptors",
)
@pytest.mark.skipif(sys.platform == "win32", reason="fork and exec are POSIX's")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", LOOPS)
def test_children_and_other_programs_change_nothing(name: str) -> None:
    async def case(net: Net) -> None:
        left, client = await net.stream()
        right, server = await net.stream()
        before = descriptors_of_another_program()
        relaying = asyncio.ensure_future(aio.relay(left, right))
        await client.write(PIECE)
        assert await server.read(len(PIECE)) == PIECE
        assert descriptors_of_another_program() == before
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            os._exit(0)
        os.waitpid(child, 0)
        await client.write(PIECE)
        assert await server.read(len(PIECE)) == PIECE
        client.fin()
        assert await server.read(1) == b""
        server.fin()
        outcome = await relaying
        assert (outcome.reason, outcome.left_to_right.bytes) == (Reason.EOF, 2 * len(PIECE))

    play(name, case)
