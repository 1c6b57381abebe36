"""Another revision of the package beside this one: a worktree with an import path of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .peers import ROOT, import_path


class RevisionError(Exception):
    """It can't be checked out, or built, or wouldn't be what is imported."""


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A worktree of it, with the extension where the system has SO_SPLICE; removed at the end."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name).resolve() / "tree"
        _run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), revision])
        try:
            if sys.platform.startswith(("freebsd", "openbsd")):
                _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree)
            _check(tree)
            yield tree
        finally:
            _run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)])


def _check(tree: Path) -> None:
    """Nothing else that is installed comes before it."""
    program = "import freebsd_splice; print(freebsd_splice.__file__)"
    found = Path(_run([sys.executable, "-c", program], tree).strip())
    if not found.resolve().is_relative_to(tree):
        raise RevisionError(f"the package would be imported from {found}, not from {tree}")


def _run(command: list[str], tree: Path | None = None) -> str:
    environment = os.environ | (import_path(tree) if tree else {})
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RevisionError(f"{' '.join(command)}: {run.stderr.strip()}")
    return run.stdout
