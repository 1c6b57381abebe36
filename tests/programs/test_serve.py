"""All proxies of a file in one process, with real clients, and what is said of a wrong file."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freebsd_splice import _cli
from freebsd_splice._cli.options import MistakesError
from freebsd_splice.proxies._passwords import make_entry
from programs.clients import Certificates, curl, no_accidents, page
from programs.processes import (
    MAIN,
    PATIENCE,
    Program,
    Served,
    Server,
    connect_to,
    exchange,
    where,
)

if sys.version_info < (3, 11):
    pytest.importorskip("tomli")

StartProgram = Callable[..., Program]
StartServer = Callable[..., Server]
StartServed = Callable[..., Served]

ROOT = Path(__file__).parents[2]

#: It ends at once where it makes a socket or looks a name up (Python's audit events).
OFFLINE = """
import os, sys
def look(event, args):
    if event.startswith("socket."):
        os.write(1, event.encode())
        os._exit(3)
sys.addaudithook(look)
"""


ALL_FOUR = """
workers = {workers}

[[forward]]
listen = "127.0.0.1:0"
target = "{echo}"

[[connect]]
listen = "127.0.0.1:0"
rules = ["allow 127.0.0.0/8"]
passwords = "proxy.passwords"

[[socks5]]
listen = "127.0.0.1:0"
rules = ["deny *"]

[[socks5]]
listen = "127.0.0.1:0"
rules = ["deny *:1", "allow 127.0.0.0/8"]

[[sni]]
listen = "127.0.0.1:0"
default = "{echo}"
[[sni.route]]
name = "a.example"
target = ["{tls}"]
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_all_four_kinds_are_served_by_one_process(
    workers: int, served: StartServed, server: StartServer, tmp_path: Path, echo_server: Server
) -> None:
    pytest.importorskip("h11")
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)
    (tmp_path / "proxy.passwords").write_text(make_entry("alice", "secret") + "\n")
    web = server(page(b"a page"))
    secured = server(certificates.server(lambda client: client.sendall(b"by name"), "a.example"))
    run = served(ALL_FOUR.format(workers=workers, echo=where(echo_server), tls=where(secured)))
    forward, connect, closed, socks, sni = run.ports(5)
    with connect_to(forward) as client:
        assert exchange(client, b"hello") == b"hello"
    url = f"http://{where(web)}/"
    tunnel = ["--proxytunnel", "--proxy", f"http://127.0.0.1:{connect}"]
    assert curl(*tunnel, "--proxy-user", "alice:secret", url).stdout == b"a page"
    assert b"407" in curl(*tunnel, url).stderr
    assert curl("--proxy", f"socks5h://127.0.0.1:{closed}", url).returncode != 0
    assert curl("--proxy", f"socks5h://127.0.0.1:{socks}", url).stdout == b"a page"
    context = certificates.client()
    with context.wrap_socket(connect_to(sni), server_hostname="a.example") as tls:
        assert tls.recv(100) == b"by name"
    run.expect(r"denied by the rule \*$")
    assert run.stop() == 0
    assert len(run.find("stopping: ")) == 5 * workers
    no_accidents(run)


ONE = """
{top}
[[forward]]
listen = "127.0.0.1:0"
target = "{target}"
"""


def test_the_command_line_wins_over_the_file(served: StartServed, echo_server: Server) -> None:
    text = ONE.format(top='log-format = "text"\nworkers = 3', target=where(echo_server))
    run = served(text, "--log-format", "json", "--workers", "1")
    run.expect('"event": "listening"')
    assert run.stop() == 0
    run.expect(rf'"pid": {run.pid}, .*"stopping: 0 connections live')
    assert len(run.find("stopping")) == 1


def test_files_are_named_from_the_files_folder(
    served: StartServed, tmp_path: Path, echo_server: Server
) -> None:
    (tmp_path / "routes.toml").write_text(f'default = "{where(echo_server)}"')
    run = served('[[sni]]\nlisten = "127.0.0.1:0"\nroutes = "routes.toml"\n')
    assert run.ports(1)
    assert run.stop() == 0


WRONG = """
workrs = 2
[[forward]]
listen = "127.0.0.1:0"
target = "backend.example"
[[sni]]
routes = "missing.toml"
[[socks5]]
passwords = "proxies.toml"
"""


@pytest.mark.parametrize("options", [[], ["--check"]], ids=["start", "check"])
def test_all_mistakes_are_named_at_once(options: list[str], served: StartServed) -> None:
    run = served(WRONG, *options)
    assert run.end() == 2
    path, folder = run.path, run.path.parent
    assert run.lines == [
        f"freebsd-splice: {path}: unknown key 'workrs'; did you mean 'workers'?",
        f"freebsd-splice: {path}: [[forward]] 1: target: 'backend.example' is not an address: "
        "write host:port or [v6]:port",
        *(
            f"freebsd-splice: {path}: [[socks5]] 1: {path}, line {line}: the line must be "
            "user:$scrypt$ln=14,r=8,p=1$salt$hash"
            for line in range(2, 10)
        ),
        f"freebsd-splice: {path}: [[sni]] 1: {folder}/missing.toml: No such file or directory",
    ]


def test_a_check_opens_and_resolves_nothing(served: StartServed, tmp_path: Path) -> None:
    pytest.importorskip("h11")
    (tmp_path / "proxy.passwords").write_text(make_entry("alice", "secret") + "\n")
    text = ALL_FOUR.format(workers=2, echo="backend.example:80", tls="backend.example:443")
    run = served(text, "--check", patch=OFFLINE)
    assert run.end() == 0
    assert run.lines == [f"{run.path}: 5 proxies, no mistakes"]


def test_a_missing_file_is_named_in_a_line(program: StartProgram, tmp_path: Path) -> None:
    run = program(*MAIN, "serve", str(tmp_path / "no.toml"))
    assert run.end() == 2
    assert run.lines == [f"freebsd-splice: {tmp_path}/no.toml: No such file or directory"]


def check(path: Path, text: str) -> None:
    """As --check does, in this process; raises MistakesError."""
    if "[[connect]]" in text:
        pytest.importorskip("h11")
    path.write_text(text)
    options = _cli._parser().parse_args(["serve", "--check", str(path)])
    assert options.run(options) == 0


def test_the_line_of_a_syntax_error_is_named(tmp_path: Path) -> None:
    with pytest.raises(MistakesError) as caught:
        check(tmp_path / "p.toml", 'workers = 2\n[[forward]]\nlisten = "127.0.0.1:0\n')
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{tmp_path}/p.toml: ")
    assert "line 3" in mistake


def test_a_port_that_is_taken_is_no_mistake_of_the_file(
    served: StartServed, echo_server: Server
) -> None:
    """The exit status is 1: a supervisor may try again."""
    listen = f'[[forward]]\nlisten = "{where(echo_server)}"\ntarget = "a:1"\n'
    run = served(f'[[socks5]]\nlisten = "127.0.0.1:0"\n{listen}')
    assert run.end() == 1
    assert run.lines == [
        f"freebsd-splice: cannot listen on {where(echo_server)}: Address already in use"
    ]


def test_without_tomli_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MistakesError) as caught:
        check(tmp_path / "p.toml", ONE.format(top="", target="a:1"))
    (mistake,) = caught.value.mistakes
    advice = 'pip install "freebsd-splice[proxy]"'
    assert mistake.endswith(f"TOML can't be read without {name}: {advice}")


# Sockets of systemd

TAKES_OVER = """
import os, socket, sys
made = [socket.create_server(("127.0.0.1", 0)) for _ in range({count})]
high = [os.dup2(listener.fileno(), 50 + number) for number, listener in enumerate(made)]
for number, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + number)
os.environ.update(LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()))
with open(sys.argv[-1], "w") as file:
    for listener in made[:2]:
        file.write('[[forward]]\\nlisten = "%s:%d"\\n' % listener.getsockname())
        file.write('target = "{target}"\\n')
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_each_socket_of_systemd_goes_where_it_listens(
    program: StartProgram, tmp_path: Path, echo_server: Server
) -> None:
    start = TAKES_OVER.format(count=2, target=where(echo_server))
    path = tmp_path / "proxies.toml"
    run = program("-c", start, *MAIN, "serve", str(path))
    for found in run.expect(r"listening on 127\.0\.0\.1:(\d+)$", 2):
        with socket.create_connection(("127.0.0.1", int(found[1])), PATIENCE) as client:
            assert exchange(client, b"hello") == b"hello"
        assert f":{found[1]}" in path.read_text()
    run.signal(15)
    assert run.end() == 0


def test_a_socket_of_systemd_for_nobody_is_an_error(
    program: StartProgram, tmp_path: Path, echo_server: Server
) -> None:
    start = TAKES_OVER.format(count=3, target=where(echo_server))
    run = program("-c", start, *MAIN, "serve", str(tmp_path / "proxies.toml"))
    assert run.end() == 2
    (line,) = run.lines
    assert "LISTEN_FDS has a socket of 127.0.0.1:" in line


# The page

SERVE = (ROOT / "docs" / "serve.md").read_text()


def test_the_example_of_the_page_runs_as_printed(
    served: StartServed, echo_server: Server, tmp_path: Path
) -> None:
    """But for its ports, and for its targets, which are far away."""
    (text,) = re.findall(r"^```toml\n(# proxies.toml\n.*?)^```$", SERVE, re.M | re.S)
    check(tmp_path / "printed.toml", text)
    text, ports = re.subn(
        r'^listen = "127\.0\.0\.1:\d+"', 'listen = "127.0.0.1:0"', text, flags=re.M
    )
    assert ports == 4
    text, targets = re.subn(r"www\.example\.org:\d+", where(echo_server), text)
    assert targets == 2
    run = served(text)
    forward, *_ = run.ports(4)
    with connect_to(forward) as client:
        assert exchange(client, b"hello") == b"hello"
    assert run.stop() == 0
    no_accidents(run)


def test_the_example_of_the_help_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _cli._parser().parse_args(["serve", "--help"])
    example = capsys.readouterr().out.partition("\nexample:\n")[2]
    lines = re.findall(r"^  (?:[\w-]+ = |\[\[).*", example, re.M)
    assert len(lines) == 7
    check(tmp_path / "p.toml", "\n".join(lines))


def test_all_toml_of_the_page_is_right(tmp_path: Path) -> None:
    (tmp_path / "proxy.passwords").write_text(make_entry("alice", "secret") + "\n")
    blocks = re.findall(r"^```toml\n(.*?)^```$", SERVE, re.M | re.S)
    assert len(blocks) >= 2
    for block in blocks:
        check(tmp_path / "p.toml", block)
