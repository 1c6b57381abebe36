"""The bill of materials of what is published: tools/sbom.py."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from project.test_packaging import copy_of_the_tree

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/sbom.py"


@pytest.fixture
def sbom() -> ModuleType:
    pytest.importorskip("packaging", reason="reads requirements")
    spec = importlib.util.spec_from_file_location("sbom", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_any_system_needs_is_in_the_bill(sbom: ModuleType, tmp_path: Path) -> None:
    """Whichever system writes it; what only other extras bring is not."""
    required = [
        'cffi>=1.17; platform_system == "FreeBSD" or platform_system == "OpenBSD"',
        'h11>=0.16; extra == "proxy"',
        'tomli>=2; python_version < "3.11" and extra == "proxy"',
        'h11>=0.16; extra == "test"',
        'pytest>=8; extra == "test"',
    ]
    text = "".join(f"Requires-Dist: {line}\n" for line in required)
    sdist = tmp_path / "made-1.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        entry = tarfile.TarInfo("made-1.0/PKG-INFO")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    assert sbom.requirements(sdist) == ["cffi>=1.17", "h11>=0.16", "tomli>=2"]


@pytest.mark.slow  # it needs the package index
@pytest.mark.skipif(sys.platform == "win32", reason="for the release's own system")
def test_the_bill_of_the_sdist(tmp_path: Path) -> None:
    for module in ("build", "cyclonedx_py"):
        pytest.importorskip(module, reason="makes the sdist or its bill: the extra dev")
    tree = copy_of_the_tree(tmp_path / "tree")
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(tree)], check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    bill = tmp_path / "bill.json"
    made = subprocess.run(
        [sys.executable, str(TOOL), str(sdist), str(bill)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    read = json.loads(bill.read_text())
    assert read["bomFormat"] == "CycloneDX"
    assert read["metadata"]["component"]["name"] == "freebsd-splice"
    names = {component["name"] for component in read["components"]}
    assert names == {"cffi", "h11", "pycparser", "tomli"}
