"""Environments of Python beside the one that runs the tests."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def python_without(directory: Path, package: str) -> str:
    """Make an interpreter that has all that this one has, but for one package."""
    venv.create(directory, symlinks=True)
    installed = Path(sysconfig.get_path("purelib"))
    target = directory / "lib" / installed.parent.name / "site-packages"
    for entry in installed.iterdir():
        if package not in entry.name.lower() and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    return str(directory / "bin" / "python")
