"""The wheel and the source distribution, installed where there is no tfspark, by a user without a home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from environments import python_without

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "tests" / "programs" / "installed.py"

pytestmark = pytest.mark.packaging


def run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a wheel that carries the jar of this Spark, and a source distribution."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("packages")
    for name in ("tfspark", "connectors"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "jars"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    sdist = f"from setuptools.build_meta import build_sdist; build_sdist({str(made)!r})"
    run(sys.executable, "-c", sdist, cwd=source)
    run(sys.executable, "-m", "tfspark", "jar", "--ship", cwd=source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made), "."]
    run(*pip, cwd=source)
    return made


@pytest.mark.parametrize(("kind", "compiles"), [("*.whl", False), ("*.tar.gz", True)], ids=["wheel", "sdist"])
def test_a_package_runs_where_it_is_installed(kind: str, compiles: bool, packages: Path, tmp_path: Path) -> None:
    python = python_without(tmp_path / "fresh", "tfspark")
    (package,) = packages.glob(kind)
    run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", str(package))
    unset = ("HOME", "XDG_CACHE_HOME", "TFSPARK_CACHE", "PYTHONPATH", "PYSPARK_PYTHON")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    cache = tmp_path / "cache"
    if compiles:
        environment["TFSPARK_CACHE"] = str(cache)
    found = json.loads(
        run(python, str(PROGRAM), str(tmp_path / "rows"), cwd=tmp_path, env=environment).splitlines()[-1]
    )
    assert found["rows"] == 5
    assert Path(found["package"]).is_relative_to(tmp_path / "fresh")
    assert Path(found["jar"]).parent == (cache if compiles else Path(found["package"]).parent / "spark" / "jars")
