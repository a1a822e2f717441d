"""A Python environment that executors do not have, shipped with the job by ``--archives``."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
from standalone import Standalone

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parents[1] / "programs" / "shipped.py"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with tfspark and the package ``parcel``, packed by venv-pack.

    TensorFlow and the rest, which would make it 2 GB, it takes from this Python's own packages by a path file; so what
    this shows is that executors run the shipped interpreter with the shipped packages, not that TensorFlow can be
    shipped.
    """
    directory = tmp_path_factory.mktemp("shipping")
    sources = directory / "sources"
    shutil.copytree(ROOT / "tfspark", sources / "tfspark", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "connectors", sources / "connectors")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    (directory / "parcel").mkdir()
    (directory / "parcel" / "parcel.py").write_text("CONTENT = 'from afar'\n")
    (directory / "parcel" / "setup.cfg").write_text("[metadata]\nname = parcel\n[options]\npy_modules = parcel\n")
    (directory / "parcel" / "pyproject.toml").write_text("[build-system]\nrequires = []\n")

    environment = directory / "env"
    venv.create(environment, symlinks=True)
    packages = next((environment / "lib").glob("python3*")) / "site-packages"
    # venv-pack refuses path files that name directories elsewhere, which are mostly editable installations.
    (packages / "rest.pth").write_text(f"import sys; sys.path += {[p for p in sys.path if p.endswith('-packages')]}\n")
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--disable-pip-version-check", sources, directory / "parcel"],
        check=True,
    )
    packed = directory / "env.tar.gz"
    subprocess.run([sys.executable, "-m", "venv_pack", "-q", "-p", environment, "-o", packed], check=True)
    return packed


@pytest.mark.long
def test_executors_run_the_python_that_is_shipped(standalone: Standalone, archive: Path) -> None:
    assert importlib.util.find_spec("parcel") is None
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert any(name.endswith("site-packages/tfspark/executor/task.py") for name in names)
    assert any("/tfspark_cluster-" in name for name in names), "its distribution's name, which is not the package's"
    done = standalone.submit(
        PROGRAM,
        conf=["--archives", f"{archive}#environment"],
        env={"PYSPARK_PYTHON": "./environment/bin/python"},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    workers = json.loads(done.stdout.strip().splitlines()[-1])
    for worker in workers:
        assert worker["parcel"] == "from afar"
        for path in (worker["python"], worker["tfspark"]):
            assert Path(path).is_relative_to(standalone.directory) and "environment" in Path(path).parts
    assert sum(worker["rows"] for worker in workers) == 100
