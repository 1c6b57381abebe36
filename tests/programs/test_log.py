"""The log for people, and the same as JSON for programs."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from freebsd_splice.proxies._log import JsonFormatter, TextFormatter, fields
from programs.processes import MAIN, Forwarder, Program, Server, exchange, reset

StartForwarder = Callable[..., Forwarder]

#: The first client meets a defect.
A_DEFECT = """
import freebsd_splice.proxies._targets as targets
dial = targets.Targets.dial
calls = []
async def fail_once(*arguments, **options):
    calls.append(0)
    if len(calls) == 1:
        raise ZeroDivisionError("a defect\\nof two lines")
    return await dial(*arguments, **options)
targets.Targets.dial = fail_once
targets.Targets.next_known = lambda self: None  # each client has a task
"""


def json_lines(run: Program) -> list[dict[str, Any]]:
    """Each line is an object."""
    return [json.loads(line) for line in list(run.lines)]


def event(run: Program, name: str) -> dict[str, Any]:
    """The first line of that event."""
    run.expect(f'"event": "{name}"')
    return next(line for line in json_lines(run) if line.get("event") == name)


def connect(front: Forwarder) -> socket.socket:
    host, _, port = event(front, "listening")["address"].rpartition(":")
    return socket.create_connection((host, int(port)), 30)


def test_a_connection_is_an_object(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, "--log-format", "json")
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    with connect(front) as client:
        name = "{}:{}".format(*client.getsockname())
        assert exchange(client, b"hello") == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    line = event(front, "connection")
    when = datetime.fromisoformat(line.pop("time"))
    assert before <= when <= datetime.now(timezone.utc) + timedelta(seconds=1)
    assert 0 <= line.pop("seconds") < 30
    assert re.fullmatch(
        r"(kernel|userspace)/(SO_SPLICE|os\.splice|copy)", " ".join(line.pop("backend"))
    )
    assert line.pop("message").startswith(f"{name} -> ")
    assert line == {
        "level": "info",
        "pid": front.pid,
        "event": "connection",
        "client": name,
        "target": "{}:{}".format(*echo_server.address),
        "bytes_up": 5,
        "bytes_down": 5,
        "reason": "eof",
        "failed": None,
        "error": None,
    }


def test_the_time_is_that_of_rfc_3339_with_its_offset(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--log-format", "json")
    time = event(front, "listening")["time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", time)


def test_what_went_wrong_with_a_connection_is_in_its_object(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--log-format", "json")
    client = connect(front)
    assert exchange(client, b"hello") == b"hello"
    reset(client)
    line = event(front, "connection")
    assert line["error"] == "Connection reset by peer"
    assert line["failed"] == "client"
    assert line["reason"] in ("source error", "drain error")


def test_a_refused_client_and_a_lost_target_are_events(
    refusing: socket.socket, echo_server: Server, forwarder: StartForwarder
) -> None:
    full = forwarder(echo_server.address, "--log-format", "json", "--max-per-client", "1")
    with connect(full) as client, connect(full) as another:
        assert exchange(client, b"hello") == b"hello"
        assert another.recv(1) == b""
        name = "{}:{}".format(*another.getsockname())
    line = event(full, "refused")
    assert (line["level"], line["client"]) == ("warning", name)

    astray = forwarder(refusing.getsockname(), "--log-format", "json")
    with connect(astray) as client:
        assert client.recv(1) == b""
        name = "{}:{}".format(*client.getsockname())
    line = event(astray, "failed")
    assert (line["level"], line["client"]) == ("warning", name)
    assert line["error"].startswith("cannot connect to ")


def test_a_traceback_stays_in_its_line(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, "--log-format", "json", patch=A_DEFECT)
    with connect(front) as client:
        assert client.recv(1) == b""
    with connect(front) as client:
        assert exchange(client, b"hello") == b"hello"
    event(front, "connection")
    (line,) = (line for line in json_lines(front) if line["level"] == "error")
    assert line["trace"].startswith("Traceback")
    assert line["trace"].endswith("ZeroDivisionError: a defect\nof two lines")
    assert front.stop() == 0
    assert json_lines(front)[-1]["message"].startswith("stopping: ")


A_FORGED_LINE = """
import freebsd_splice.proxies._targets as targets
async def fail(*arguments, **options):
    raise OSError("text\\n2026-01-01 00:00:00,000 INFO forged")
targets.Targets.dial = fail
targets.Targets.next_known = lambda self: None  # each client has a task
"""


def test_no_text_begins_a_line_of_its_own(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, patch=A_FORGED_LINE)
    with front.connect() as client:
        assert client.recv(1) == b""
    front.expect(r"WARNING 127\.0\.0\.1:\d+: text\\n2026-01-01 00:00:00,000 INFO forged$")


def test_all_that_workers_and_their_parent_say_are_objects(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--log-format", "json", "--workers", "2")
    with connect(front) as client:
        assert exchange(client, b"hello") == b"hello"
    worker = event(front, "connection")["pid"]
    assert worker != front.pid
    os.kill(worker, 9)
    line = event(front, "worker died")
    assert (line["level"], line["pid"], line["status"]) == ("error", front.pid, -9)
    assert line["worker"] in (0, 1)
    assert front.stop() == 0
    assert json_lines(front)


WORKERS_WITH_A_DEFECT = """
import freebsd_splice._cli.serving as serving
async def fail(*args):
    raise ZeroDivisionError
serving._run = fail
"""


def test_what_a_worker_dies_of_stays_in_its_line(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    options = ("--log-format", "json", "--workers", "2")
    front = forwarder(echo_server.address, *options, patch=WORKERS_WITH_A_DEFECT)
    event(front, "worker died")
    (line, *_) = (line for line in json_lines(front) if "trace" in line)
    assert line["message"] in ("worker 0 has failed", "worker 1 has failed")
    assert line["trace"].endswith("ZeroDivisionError")


def test_targets_that_die_and_come_back_are_events(
    refusing: socket.socket, echo_server: Server, program: Callable[..., Program]
) -> None:
    dead = "{}:{}".format(*refusing.getsockname())
    alive = "{}:{}".format(*echo_server.address)
    options = ("--log-format", "json", "--retry-after", "0.1")
    front = program(*MAIN, "forward", *options, "127.0.0.1:0", dead, alive)
    with connect(front) as client:  # type: ignore[arg-type]
        assert exchange(client, b"hello") == b"hello"
    line = event(front, "target down")
    assert (line["level"], line["target"]) == ("warning", dead)
    assert "Connection refused" in line["error"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_text_has_the_process_where_there_are_several(
    workers: int, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, "--workers", str(workers))
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    process = r" \[\d+\]" if workers > 1 else ""
    front.expect("bytes up")
    for line in list(front.lines):
        assert re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}}{process} INFO [^\[]", line)


def test_an_error_before_the_start_is_a_line_for_people(program: Callable[..., Program]) -> None:
    run = program(*MAIN, "forward", "--log-format", "json", "192.0.2.1:1", "127.0.0.1:1")
    assert run.end() == 1
    (line,) = run.lines
    assert line.startswith("freebsd-splice: cannot listen on ")


def record(message: str, *arguments: object, **more: Any) -> logging.LogRecord:
    return logging.getLogger("test").makeRecord(
        "test", logging.WARNING, __file__, 1, message, arguments, None, **more
    )


def test_a_record_becomes_a_line_whatever_is_in_it() -> None:
    strange = 'a "quoted"\nline\u2028\u0000 \udcff'
    made = record("%s happened", strange, extra=fields("strange", what=strange, who={1, 2}.pop))
    line = JsonFormatter().format(made)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    read = json.loads(line)
    assert read["message"] == f"{strange} happened"
    assert read["what"] == strange
    assert read["event"] == "strange"
    assert read["pid"] == os.getpid()


def test_a_record_of_somebody_else_has_no_fields() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        made = record("asyncio's")
        made.exc_info = sys.exc_info()
    read = json.loads(JsonFormatter().format(made))
    assert set(read) == {"time", "level", "pid", "message", "trace"}


def test_a_text_for_people_is_a_line_without_control_characters() -> None:
    strange = "a\nb\r\t\0\x1b[2J\x7f\x85\u2028\u2029 \xe9"
    line = TextFormatter("%(levelname)s %(message)s").format(record("%s happened", strange))
    shown = "a\\nb\\r\\t\\x00\\x1b[2J\\x7f\\x85\\u2028\\u2029 \xe9"
    assert line == f"WARNING {shown} happened"


@pytest.mark.parametrize("number", [0x61C, 0x200B, 0x200F, 0x202E, 0x2066, 0x2069, 0xFEFF])
def test_nothing_invisible_changes_what_a_line_reads_like(number: int) -> None:
    """Such as U+202E, behind which a terminal shows everything from right to left."""
    made = record("%s happened", f"a{chr(number)}b")
    assert TextFormatter().format(made) == f"a\\u{number:04x}b happened"


def test_no_line_of_a_traceback_can_be_taken_for_one_of_the_log() -> None:
    try:
        raise ZeroDivisionError("a\n2026-01-01 00:00:00,000 INFO forged")
    except ZeroDivisionError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    first, *others = TextFormatter().format(made).split("\n")
    assert first == "failed"
    assert all(line.startswith("    ") for line in others)
    assert others[-1] == "    2026-01-01 00:00:00,000 INFO forged"


def test_a_traceback_for_people_keeps_its_lines() -> None:
    try:
        raise ZeroDivisionError("a\nb\x1b[2J")
    except ZeroDivisionError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    first, second, *_, last = TextFormatter().format(made).split("\n")
    assert (first, second) == ("failed", "    Traceback (most recent call last):")
    assert last == "    b\\x1b[2J"


def test_a_message_is_cut() -> None:
    shown = "x" * 2_000 + "... (3000 characters)"
    made = record("%s", "x" * 3_000, extra=fields("strange", error="x" * 3_000, number=1))
    assert TextFormatter().format(made) == shown
    read = json.loads(JsonFormatter().format(made))
    assert (read["message"], read["error"], read["number"]) == (shown, shown, 1)
    whole = record("%s", "x" * 2_000)
    assert TextFormatter().format(whole) == "x" * 2_000


def test_that_accepting_pauses_is_an_event(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, "--log-format", "json", "--max-connections", "1")
    with connect(front) as client, connect(front) as another:
        assert exchange(client, b"hello") == b"hello"
        line = event(front, "accepting paused")
        assert (line["level"], line["connections"]) == ("warning", 1)
        assert line["reason"] == "connection limit reached (--max-connections)"
        client.close()
        assert exchange(another, b"hello") == b"hello"
    event(front, "accepting resumed")
