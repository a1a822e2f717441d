"""`tfspark.configure`, `tfspark.session` and the connector's jar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tfspark
from tfspark.errors import ConfigurationError, DependencyError
from tfspark.spark import connector
from tfspark.spark.cache import cache_dir
from tfspark.spark.session import ARROW_BATCH_BYTES

PROGRAM = Path(__file__).parents[1] / "programs" / "show_session.py"


def show(command: list[str], **environment: str) -> dict[str, Any]:
    without = ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_CONF_DIR")
    inherited = {k: v for k, v in os.environ.items() if k not in without}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, env={**inherited, "PATH": path, **environment}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_new_session_has_it_all(tmp_path: Path) -> None:
    shown = show([sys.executable, str(PROGRAM), "local[2]", str(tmp_path / "x")])
    assert shown["jars"] == [str(connector.connector_jar())]
    assert shown["python"] == shown["driver_python"] == sys.executable
    assert shown["arrow"] == "true" and shown["arrow_bytes"] == str(ARROW_BATCH_BYTES)
    assert shown["rows"] == 10


def test_what_the_user_has_set_is_kept(tmp_path: Path) -> None:
    (tmp_path / "spark-defaults.conf").write_text(
        "# comment\nspark.sql.execution.arrow.maxBytesPerBatch  5m\n"
        f"spark.jars = {tmp_path}/own.jar\nspark.pyspark.python:{sys.executable}\n"
    )
    (tmp_path / "own.jar").write_bytes(connector.connector_jar().read_bytes())
    shown = show(
        [sys.executable, str(PROGRAM), "local-cluster[1,2,1024]", str(tmp_path / "x")], SPARK_CONF_DIR=str(tmp_path)
    )
    assert [Path(j).name for j in shown["jars"]] == ["own.jar", connector.connector_jar().name]
    assert shown["arrow_bytes"] == "5m"
    assert shown["python"] == sys.executable
    assert shown["rows"] == 10


def test_under_spark_submit(tmp_path: Path) -> None:
    setting = "spark.sql.execution.arrow.maxBytesPerBatch=7m"
    submit = [str(Path(sys.executable).parent / "spark-submit"), "--master", "local[2]", "--conf", setting]
    shown = show([*submit, str(PROGRAM), "-", str(tmp_path / "x")])
    assert shown["arrow_bytes"] == "7m" and shown["rows"] == 10
    assert shown["master"] == "local[2]"


def test_a_running_session_is_given_the_connector(tmp_path: Path) -> None:
    assert show([sys.executable, str(PROGRAM), "running", str(tmp_path / "x")])["rows"] == 10


def test_names_of_settings(spark: Any) -> None:
    same = tfspark.session("other", spark_sql_shuffle_partitions=5)
    try:
        assert same.conf.get("spark.sql.shuffle.partitions") == "5"
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    with pytest.raises(ConfigurationError, match="'master_url' is not a Spark setting"):
        tfspark.session("other", master_url="x")


def test_processes_that_build_at_once_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFSPARK_CACHE", str(tmp_path))

    def ask(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tfspark.cli", "jar"], capture_output=True, text=True, timeout=200)

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(ask, range(3)))
    assert {d.returncode for d in done} == {0}
    assert len({d.stdout for d in done}) == 1
    assert sum("compiling" in d.stderr for d in done) == 1
    assert [p.name for p in tmp_path.glob("*.jar*")] == [Path(done[0].stdout.strip()).name]


def test_sources_that_do_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFSPARK_CACHE", str(tmp_path / "cache"))
    sources = tmp_path / "connectors"
    (sources / "tfrecord" / "src").mkdir(parents=True)
    (sources / "tfrecord" / "META-INF").mkdir()
    (sources / "tfrecord" / "src" / "A.scala").write_text("class A { def x: Int = 'no' }")
    monkeypatch.setattr(connector, "connector_sources", lambda: sources)
    with pytest.raises(DependencyError, match="does not compile against Spark"):
        connector.connector_jar()
    assert not list((tmp_path / "cache").glob("*.jar*"))


@pytest.mark.unit
def test_the_cache_of_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> Any:
        raise KeyError("getpwuid(): uid not found")

    for name in ("TFSPARK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = cache_dir()
    assert found == tmp_path / f"tfspark-{os.getuid()}" and found.is_dir()
    assert found.stat().st_mode & 0o777 == 0o700


@pytest.mark.unit
def test_a_jar_of_the_wheel_is_taken_only_for_its_spark_its_scala_and_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "SHIPPED", tmp_path)
    sources = connector.connector_sources()
    jar = connector.shipped_jar(sources)
    jar.write_bytes(b"")
    assert connector.connector_jar() == jar
    assert jar.name.startswith("tfrecord-spark4.3-scala2.13-")
    monkeypatch.setattr("tfspark.spark.home.spark_version", lambda: "4.2.1")
    assert connector.shipped_jar(sources) != jar
