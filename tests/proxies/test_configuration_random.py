"""Any file of ``serve`` has an outcome: a plan, or mistakes that have a text."""

from __future__ import annotations

import argparse

import pytest

pytest.importorskip("hypothesis", reason="the files are hypothesis's")

from hypothesis import given, settings
from hypothesis import strategies as st

from freebsd_splice._cli.configuration import parse
from freebsd_splice._cli.keys import keys_of
from proxies.test_configuration import FORWARD, KINDS

SEEDS = [
    FORWARD.encode(),
    b'workers = 2\nidle-timeout = 1.5\nlog-level = "info"\n[[socks5]]\nrules = ["deny *"]\n',
    b'[[sni]]\ndefault = "a:1"\n[[sni.route]]\nname = "*.a"\nalpn = ["h2"]\ntarget = ["b:1"]\n',
    b'[[connect]]\nlisten = "[::1]:1"\nhandshake-size = 0x10\naccept-proxy = ["::1"]\n',
    b'[[forward]]\nlisten = ":0"\ntarget = ["1", "2"]\nkeepalive = false\nsend-proxy = "v1"\n',
    b"grace = 1979-05-27T07:32:00Z\nuser = '''a'''\npasswords = \"\\u00e9\"\nx = {a.b = [inf]}\n",
]
NAMES = st.sampled_from([*keys_of(KINDS["forward"]), *keys_of(KINDS["sni"]), "rules", "x"])
VALUES = st.sampled_from(
    ['""', '"a:1"', "1", "-1", "1e400", "true", "[]", '["a", 1]', "{}", "07:32:00", "nan", "[[[]]]"]
)
LINES = st.tuples(NAMES, VALUES).map(" = ".join) | st.sampled_from(
    ["[[forward]]", "[[sni]]", "[[socks5]]", "[sni]", "[[sni.route]]", "[workers]"]
)


def check_any_bytes(data: bytes) -> None:
    plan, found = parse(data, "p.toml", KINDS, argparse.Namespace())
    assert all(mistake.startswith("p.toml: ") for mistake in found)
    assert plan.proxies or found
    for planned in plan.proxies:
        assert planned.options.listen.port in range(65536)


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES, max_size=12))
def test_any_lines_have_an_outcome(lines: list[str]) -> None:
    check_any_bytes("\n".join(lines).encode())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 200), st.integers(0, 5), st.binary(max_size=4))
def test_a_file_that_was_tampered_with_has_an_outcome(
    data: bytes, place: int, gone: int, put: bytes
) -> None:
    check_any_bytes(data[:place] + put + data[place + gone :])
