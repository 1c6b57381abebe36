"""What the command line makes of its options, and what it has to say about them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freebsd_splice import _cli
from freebsd_splice._cli import connect_socks5, forward, serving
from freebsd_splice._cli.options import limits_of
from freebsd_splice.proxies import Limits, Rules
from freebsd_splice.proxies._passwords import make_entry
from programs.processes import MAIN, Program, Proxy

StartProgram = Callable[..., Program]
StartProxy = Callable[..., Proxy]

WITHOUT_H11 = """
import sys
sys.modules["h11"] = None
"""


def parsed(*arguments: str) -> argparse.Namespace:
    return _cli._parser().parse_args(arguments)


def order_of(options: argparse.Namespace) -> list[str]:
    return [("+" if rule.allow else "-") + rule.text for rule in options.rules]


@pytest.mark.parametrize("command", ["connect", "socks5"])
def test_rules_keep_their_order_across_the_options(command: str) -> None:
    options = parsed(
        *(command, "--allow", "a.example", "--deny", "*.b.example:80", "--allow", "10.0.0.0/8"),
        *("--deny", "*", "--allow", "c.example"),
    )
    assert order_of(options) == [
        *("+a.example", "-*.b.example:80", "+10.0.0.0/8", "-*", "+c.example"),
    ]
    assert order_of(parsed(command)) == []


def test_the_rules_are_what_the_proxy_is_made_with() -> None:
    """``-*`` before ``+*`` is the other answer."""
    made: list[dict[str, Any]] = []

    def proxy(**options: Any) -> Any:
        made.append(options)

    for order in (["--allow", "*", "--deny", "*"], ["--deny", "*", "--allow", "*"]):
        connect_socks5.make(parsed("socks5", *order), proxy)
    allowing, denying = (options["rules"] for options in made)
    assert isinstance(allowing, Rules)
    assert [rule.allow for rule in allowing._rules] == [True, False]
    assert [rule.allow for rule in denying._rules] == [False, True]


@pytest.mark.parametrize("option", ["--allow", "--deny"])
@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("a..b", "'a..b' is neither a host name nor a network"),
        ("example.org:99999", "99999"),
        ("10.0.0.1/8", "10.0.0.1/8"),
        ("", "''"),
        ("https://example.org", "'https://example.org': not a URL: write host or host:port"),
    ],
)
def test_a_bad_rule_is_wrong_usage(
    option: str, rule: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _cli.main(["socks5", option, rule])
    assert caught.value.code == 2
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith(f"freebsd-splice socks5: error: argument {option}: ")
    assert wrong in last


@pytest.mark.parametrize(
    "arguments",
    [
        ["--backlog", "2147483648"],
        ["--buffer-size", "2147483648"],
        ["--buffer-size", "0"],
        ["--buffer-size", "64k"],
        ["--max-connections", "0"],
        ["--workers", "-1"],
        ["--log-format", "xml"],
    ],
    ids=" ".join,
)
def test_a_number_that_the_system_cannot_take_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _cli.main(["forward", *arguments, "127.0.0.1:0", "127.0.0.1:80"])
    assert caught.value.code == 2
    assert f"error: argument {arguments[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--handshake-timeout", "--handshake-size"])
def test_the_handshakes_limits_are_for_those_that_have_one(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["connect"], ["socks5"], ["sni", "routes.toml"]):
        assert limits_of(parsed(*command, option, "7")) != Limits()
    forward = ("forward", option, "7", "127.0.0.1:1", "127.0.0.1:80")
    if option == "--handshake-timeout":  # a PROXY header may have to come
        assert limits_of(parsed(*forward)) != Limits()
        return
    with pytest.raises(SystemExit):
        parsed("forward", option, "7", "127.0.0.1:80")
    assert option in capsys.readouterr().err


def test_the_limits_are_what_the_options_say() -> None:
    options = parsed(
        *("socks5", "--max-connections", "5", "--max-per-client", "4"),
        *("--handshake-timeout", "3", "--handshake-size", "2"),
    )
    assert limits_of(options) == Limits(5, 4, 3.0, 2)
    for command in (["connect"], ["socks5"], ["sni", "routes.toml"], ["forward", "1", "b:2"]):
        assert limits_of(parsed(*command)) == Limits()


def test_without_h11_connect_says_what_to_install(proxy: StartProxy) -> None:
    run = proxy("connect", "127.0.0.1:0", patch=WITHOUT_H11)
    assert run.end() == 1
    (line,) = run.lines
    assert line.startswith(
        'freebsd-splice: connect needs h11: pip install "freebsd-splice[proxy]" ('
    )


def test_the_others_do_without_h11(proxy: StartProxy) -> None:
    run = proxy("socks5", "127.0.0.1:0", patch=WITHOUT_H11)
    assert run.port
    assert run.stop() == 0


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", "0"])
def test_a_proxy_for_this_machine_alone_needs_no_warning(listen: str, proxy: StartProxy) -> None:
    run = proxy("socks5", listen)
    assert run.port
    assert run.stop() == 0
    assert not run.find("WARNING")


@pytest.mark.parametrize(
    ("listen", "reachable"),
    [
        ("0.0.0.0:0", r"0\.0\.0\.0:\d+"),
        ("[::]:0", r"\[::\]:\d+"),
        (":0", r"(\[::\]|0\.0\.0\.0):\d+( and (\[::\]|0\.0\.0\.0):\d+)?"),
    ],
)
def test_a_proxy_for_everybody_is_warned_of(listen: str, reachable: str, proxy: StartProxy) -> None:
    run = proxy("socks5", "--workers", "2", listen)
    assert run.port
    warning = rf"WARNING everybody who can reach {reachable} can use it: no --passwords$"
    assert run.find(warning), run.text  # before anybody is served
    assert run.stop() == 0
    assert len(run.find("WARNING")) == 1


def test_with_passwords_nobody_needs_a_warning(proxy: StartProxy, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text(make_entry("alice", "secret") + "\n")
    run = proxy("socks5", "--passwords", str(tmp_path / "passwords"), "0.0.0.0:0")
    assert run.port
    assert run.stop() == 0
    assert not run.find("WARNING")


def test_sockets_of_systemd_are_warned_of_whatever_listen_says(program: StartProgram) -> None:
    start = """
import os, socket, sys
made = socket.create_server(("0.0.0.0", 0))
os.dup2(os.dup2(made.fileno(), 4), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
    run = program("-c", start, *MAIN, "socks5", "127.0.0.1:1")
    run.expect(r"WARNING everybody who can reach 0\.0\.0\.0:\d+ can use it")
    run.expect("listening on")
    run.signal(15)
    assert run.end() == 0


@pytest.mark.parametrize(
    ("command", "port"), [(["connect"], 3128), (["socks5"], 1080), (["sni", "routes.toml"], 8443)]
)
def test_without_listen_it_is_a_port_of_this_machine_alone(command: list[str], port: int) -> None:
    assert parsed(*command).listen == ("127.0.0.1", port)


def test_nothing_ends_without_traffic_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(serving, "ProxyServer", lambda _, **options: made.append(options))
    for given in ([], ["--idle-timeout", "0"], ["--idle-timeout", "7"]):
        options = parsed("forward", *given, "127.0.0.1:0", "127.0.0.1:80")
        serving._make_server(options, forward.make(options).open_target)
    assert [options["idle_timeout"] for options in made] == [3600.0, None, 7.0]


@pytest.mark.parametrize("wrong", ["no such file", "a directory", "not a line of it"])
def test_a_password_file_that_cannot_be_used(
    wrong: str, program: StartProgram, tmp_path: Path
) -> None:
    file = tmp_path / "passwords"
    if wrong == "a directory":
        file.mkdir()
    elif wrong == "not a line of it":
        file.write_text("alice:secret\n")
    run = program(*MAIN, "socks5", "--passwords", str(file), "127.0.0.1:0")
    assert run.end() == 1
    (line,) = run.lines
    assert line.startswith("freebsd-splice: ")
    assert "secret" not in line
