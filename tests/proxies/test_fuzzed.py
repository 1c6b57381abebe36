"""Each parser on bytes that reach every branch of it, two parsers at a time.

FREEBSD_SPLICE_FUZZ_SECONDS is for how long, in place of the slow tier's times: an hour by night.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("h11")
pytest.importorskip("hypothesis", reason="some modules with checks have its tests, too")
if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

from proxies.fuzzing import CORPUS, PARSERS, fetch, fuzz, inputs

SECONDS = os.environ.get("FREEBSD_SPLICE_FUZZ_SECONDS")

#: The two that are newest have the most time.
PAIRS = [
    (("client_hello", "socks5"), 60),
    (("connect", "written"), 60),
    (("proxy_protocol", "configuration"), 600),
]
_longest = float(SECONDS or max(seconds for _, seconds in PAIRS))


@pytest.mark.slow
@pytest.mark.timeout(_longest + 300)
@pytest.mark.parametrize(
    ("names", "seconds"), PAIRS, ids=lambda each: "-".join(each) if isinstance(each, tuple) else ""
)
def test_bytes_that_reach_every_branch_have_an_outcome(
    names: tuple[str, str], seconds: float, tmp_path: Path
) -> None:
    fetch(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(fuzz, directory=tmp_path, seconds=float(SECONDS or seconds)), names))


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus_has_outcomes(name: str) -> None:
    """Also where there is no atheris: on every system and Python."""
    check, count = PARSERS[name].check, 0
    for data in inputs(name):
        check(data)
        count += 1
    assert count > 5


def test_each_parser_is_fuzzed_and_its_corpus_is_small() -> None:
    assert sorted(name for names, _ in PAIRS for name in names) == sorted(PARSERS)
    assert {path.stem for path in CORPUS.iterdir()} == set(PARSERS)
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 200_000
