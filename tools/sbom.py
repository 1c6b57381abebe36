"""Writes the software bill of materials of an sdist: ``python tools/sbom.py SDIST BILL``.

It lists, as CycloneDX in JSON, what an installation from the sdist consists of, the extra "proxy"
included, in the newest versions of the index. What only some systems or Pythons need is in it on
every one: whoever reads it may have another. It needs the index, and cyclonedx-bom.
"""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXTRA = "proxy"


def requirements(sdist: Path) -> list[str]:
    """What an installation with the extra takes on some system, without the systems' names."""
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        file = archive.extractfile(f"{top}/PKG-INFO")
        assert file is not None
        metadata = email.message_from_bytes(file.read())
    required = map(Requirement, metadata.get_all("Requires-Dist", []))
    return sorted({f"{one.name}{one.specifier}" for one in required if _is_taken(one)})


def _is_taken(requirement: Requirement) -> bool:
    """Whether no extra, or this one, asks for it."""
    marker = str(requirement.marker or "")
    return "extra ==" not in marker or f'extra == "{EXTRA}"' in marker


def main() -> int:
    sdist, bill = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as made:
        venv.create(made, symlinks=True)  # without pip, which would be in the bill
        python = str(Path(made, "bin", "python"))
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        subprocess.run([*install, str(sdist), *requirements(sdist)], check=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "cyclonedx_py", "environment", "--mc-type", "library"),
                *("--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"),
                *("--output-file", str(bill), python),
            ],
            check=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
