"""Bytes that reach every branch of a parser, by atheris, which follows the coverage.

Each parser has a small corpus, ``corpus/NAME.txt``, with a line of hexadecimal digits for each
input; the fuzzer begins with these. A line is added for an input that has found a fault, or that
reaches what no other reaches.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

CORPUS = Path(__file__).with_name("corpus")


class Parser(NamedTuple):
    #: The module in this folder and the function there that checks what must hold of any bytes.
    module: str
    function: str
    #: Whose branches are to be reached, named without the package.
    branches: list[str]
    #: The most bytes of an input.
    longest: int

    @property
    def check(self) -> Callable[[bytes], None]:
        found: Callable[[bytes], None] = getattr(
            importlib.import_module(f"proxies.{self.module}"), self.function
        )
        return found


PARSERS = {
    "client_hello": Parser("test_client_hello", "check_any_bytes", ["proxies._client_hello"], 700),
    "socks5": Parser("any_bytes", "check_socks5", ["proxies._socks5_messages"], 300),
    "connect": Parser("any_bytes", "check_connect", ["proxies.connect", "proxies._addresses"], 400),
    "written": Parser(
        "any_bytes",
        "check_what_is_written",
        [
            f"proxies.{name}"
            for name in (
                "_addresses",
                "_passwords",
                "_proxy_headers",
                "_routes",
                "_rules",
                "_services",
            )
        ],
        400,
    ),
    "proxy_protocol": Parser(
        "test_proxy_protocol", "check_any_bytes", ["proxies._proxy_protocol"], 400
    ),
    "configuration": Parser("test_configuration_random", "check_any_bytes", ["_cli"], 400),
}

_FUZZER = """
import sys

import atheris

with atheris.instrument_imports(include={include}):
    from proxies.{module} import {function}

atheris.Setup(sys.argv, {function})
atheris.Fuzz()
"""


def inputs(name: str) -> Iterator[bytes]:
    """The inputs of a parser's corpus."""
    for line in (CORPUS / f"{name}.txt").read_text("ascii").splitlines():
        yield bytes.fromhex(line)


def fetch(directory: Path) -> None:
    """Install atheris there; where there is none for this Python and system, skip the test."""
    options = ["--only-binary", ":all:", "--target", str(directory / "site"), "atheris"]
    fetched = _run("-m", "pip", "install", *options, cwd=directory)
    if "No matching distribution" in fetched.stdout:
        pytest.skip("there is no atheris for this Python and system")
    assert fetched.returncode == 0, fetched.stdout


def fuzz(name: str, directory: Path, *, seconds: float) -> None:
    """Fuzz a parser for so long, with atheris from where ``fetch`` has put it."""
    parser, own = PARSERS[name], directory / name
    program, corpus = own / "fuzzer.py", own / "corpus"
    corpus.mkdir(parents=True)
    _write(inputs(name), corpus)
    include = [f"freebsd_splice.{branch}" for branch in parser.branches]
    program.write_text(
        _FUZZER.format(include=include, module=parser.module, function=parser.function)
    )
    paths = (directory / "site", *Path(__file__).resolve().parents[1:3])
    fuzzed = _run(
        *(str(program), f"-max_total_time={int(seconds)}", f"-max_len={parser.longest}"),
        str(corpus),
        cwd=own,  # where it leaves the bytes that fail
        environment={"PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    assert fuzzed.returncode == 0, fuzzed.stdout
    assert "Done" in fuzzed.stdout, fuzzed.stdout


def _write(found: Iterable[bytes], directory: Path) -> None:
    for number, data in enumerate(found):
        (directory / str(number)).write_bytes(data)


def _run(
    *arguments: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
