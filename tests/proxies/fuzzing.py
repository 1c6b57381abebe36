"""Bytes that reach every branch of a parser, by atheris, which follows the coverage."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

_FUZZER = """
import sys

import atheris

with atheris.instrument_imports(include=["freebsd_splice.{module}"]):
    from proxies.{test} import check_any_bytes

atheris.Setup(sys.argv, check_any_bytes)
atheris.Fuzz()
"""


def fuzz(
    module: str, test: str, seeds: Iterable[bytes], directory: Path, *, seconds: int, longest: int
) -> None:
    """Run ``check_any_bytes`` of a test's module on bytes that begin as one of the seeds.

    They reach the branches of ``module``, named without the package. ``longest`` is how many bytes
    there are at most. Where there is no atheris for this Python and system, the test is skipped.
    """
    site, corpus, program = directory / "site", directory / "corpus", directory / "fuzzer.py"
    fetch = ["-m", "pip", "install", "--only-binary", ":all:", "--target", str(site), "atheris"]
    fetched = _run(*fetch, cwd=directory)
    if "No matching distribution" in fetched.stdout:
        pytest.skip("there is no atheris for this Python and system")
    assert fetched.returncode == 0, fetched.stdout
    program.write_text(_FUZZER.format(module=module, test=test))
    corpus.mkdir()
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)
    paths = (site, *Path(__file__).resolve().parents[1:3])
    fuzzed = _run(
        *(str(program), f"-max_total_time={seconds}", f"-max_len={longest}", str(corpus)),
        cwd=directory,  # where it leaves the bytes that fail
        environment={"PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    assert fuzzed.returncode == 0, fuzzed.stdout
    assert "Done" in fuzzed.stdout, fuzzed.stdout


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
