"""``help()`` of each public name says all that a user needs, and its examples run."""

from __future__ import annotations

import inspect
import re
import socket
import textwrap
from typing import Any

import pytest

import freebsd_splice
from conformance.harness import Harness
from freebsd_splice import Backend, Outcome, Reason, Relay, RelayOutcome, Splice, aio

PUBLIC = [name for name in freebsd_splice.__all__ if name != "SO_SPLICE"]  # a number
RECORDS = [Outcome, RelayOutcome, Backend]
METHODS = [
    f"{kind.__name__}.{name}"
    for kind in (Splice, Relay)
    for name, method in inspect.getmembers(kind, inspect.isroutine)
    if not name.startswith("_") and "For the package's own use" not in (method.__doc__ or "")
]
ASYNC = [f"aio.{name}" for name in aio.__all__ if name[0].islower()]
PROPERTIES = [f"{kind}.{name}" for kind in ("Splice", "Relay") for name in ("bytes", "done")]
#: ``unsplice`` and ``spliced_bytes`` have one argument, which the summary line names.
CALLED = ["Splice", "Relay", "splice", "backend", "shutdown", *METHODS, *ASYNC]


def _value(path: str) -> Any:
    found: Any = freebsd_splice
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _described(documented: object, section: str) -> set[str]:
    """The names that a section of the docstring describes."""
    text = inspect.getdoc(documented) or ""
    found = re.search(rf"^{section}:\n((?: .*\n|\n)*)", f"{text}\n", re.M)
    return set(re.findall(r"^    (\w+): ", found[1], re.M)) if found else set()


@pytest.mark.parametrize("record", RECORDS)
def test_each_field_is_described(record: type) -> None:
    fields = record.__match_args__  # type: ignore[attr-defined]
    assert _described(record, "Attributes") == set(fields)


def test_each_reason_is_described() -> None:
    assert _described(Reason, "Attributes") == set(Reason.__members__)


@pytest.mark.parametrize("name", CALLED)
def test_each_parameter_is_described(name: str) -> None:
    called = _value(name)
    parameters = set(inspect.signature(called).parameters) - {"self"}
    assert _described(called, "Args") == parameters


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS, *PROPERTIES, *ASYNC])
def test_each_docstring_begins_with_a_summary(name: str) -> None:
    first = (inspect.getdoc(_value(name)) or "").split("\n")[0]
    assert re.fullmatch(r"[A-Z`].*[.:]", first), first


def _example(documented: object) -> str:
    text = inspect.getdoc(documented) or ""
    found = re.search(r"^Example::\n\n((?: {4}.*\n|\n)+)", f"{text}\n", re.M)
    assert found is not None
    return textwrap.dedent(found[1])


def test_the_example_of_a_splice_runs(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    source, sender = harness.pair()
    drain, reader = harness.pair()
    sender.finish(b"b" * 300)
    given = {"source": source, "drain": drain, "socket": socket}
    exec(_example(Splice), {**given, **vars(freebsd_splice)})
    assert reader.read_to_end() == b"b" * 300
    assert re.match(r"300 bytes, eof, \d+\.\d{3} s, \w+/\S+\n", capsys.readouterr().out)


def test_the_example_of_a_relay_runs(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    client, asking = harness.pair()
    target, answering = harness.pair()
    asking.finish(b"question")
    answering.finish(b"the answer")
    given = {"client": client, "target": target}
    exec(_example(Relay), {**given, **vars(freebsd_splice)})
    assert (asking.read_to_end(), answering.read_to_end()) == (b"the answer", b"question")
    printed = capsys.readouterr().out
    assert printed.startswith("8 bytes left to right, 10 bytes right to left, eof, ")


@pytest.mark.parametrize("outcome", [Outcome, RelayOutcome])
def test_the_lines_that_are_printed_are_in_its_docs(outcome: type) -> None:
    text = inspect.getdoc(outcome) or ""
    lines = re.findall(r"^    (\d+ bytes.*)$", text, re.M)
    shape = r"\d+ bytes( left to right, \d+ bytes right to left)?, [\w ]+( \(.+\))?, \d+\.\d{3} s, "
    assert lines
    for line in lines:
        assert re.match(shape, line), line
