"""The distribution's name, in metadata, hints and pages: ``tfspark`` on the package index is another project's."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tfspark
from tfspark.distribution import NAME, distribution_name, install_command

ROOT = Path(__file__).parents[2]


def test_the_name_is_that_of_setup_cfg_and_of_what_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["name"] == NAME == distribution_name()
    assert importlib.metadata.version(NAME) == tfspark.__version__
    assert install_command() == f"pip install {NAME}" and install_command("java") == f"pip install '{NAME}[java]'"


@pytest.mark.parametrize(
    ("installed", "name"),
    [
        ({}, NAME),
        ({"tfspark": "1.3.5"}, NAME),
        ({"tfspark": tfspark.__version__}, NAME),
        ({"tfspark": "1.3.5", "acme-tfspark": tfspark.__version__}, "acme-tfspark"),
        ({"acme-tfspark": tfspark.__version__, NAME: tfspark.__version__}, NAME),
    ],
)
def test_hints_follow_the_installed_metadata_and_never_name_a_stranger(
    tmp_path: Path, installed: dict[str, str], name: str
) -> None:
    (tmp_path / "tfspark").symlink_to(ROOT / "tfspark")
    for distribution, version in installed.items():
        directory = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (directory / "top_level.txt").write_text("tfspark\n")
    program = f"import sys; sys.path.append({str(tmp_path)!r})\n"
    program += "from tfspark.distribution import distribution_name; print(distribution_name())"
    # Without site-packages, this environment's own metadata is not there.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


def test_no_file_installs_the_other_project() -> None:
    install = re.compile(r"pip3? (?:install|download|wheel)[^\n#&;]*[\s'\"]tfspark(?![\w/.-])")
    assert install.search("pip install 'tfspark[gpu]'") and not install.search(install_command("gpu"))
    files = [f for f in ROOT.iterdir() if f.is_file()]
    for directory in ("benchmarks", "conf", "connectors", "docker", "docs", "jobs", "tfspark"):
        files += [f for f in (ROOT / directory).rglob("*") if f.is_file() and f.suffix not in (".pyc", ".png")]
    assert len(files) > 200
    assert [f for f in files if install.search(f.read_text(errors="replace"))] == []
    readme = (ROOT / "README.md").read_text()
    assert NAME in readme and "is another project" in readme
