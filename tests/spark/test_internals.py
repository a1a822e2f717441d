"""The private calls into Spark: each does on this Spark what its callers count on, and none is made elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from py4j.java_gateway import GatewayClient

import tfspark
from tfspark.spark import internals
from tfspark.spark.expressions import bridge_of, bridge_of_column

PACKAGE = Path(tfspark.__file__).parent
PRIVATE = {"_jsc", "_jvm", "_jdf", "_jrdd", "_jc", "_jsparkSession", "_gateway", "_java_resource_profile"}
PRIVATE |= {"_active_spark_context", "_ensure_initialized", "_parse_datatype_string", "_find_spark_home"}
PRIVATE_OF_CONNECT = {"_explain_string", "_active_session"}


@pytest.mark.unit
def test_private_names_of_spark_are_used_in_one_module_only() -> None:
    assert users_of(PRIVATE) == {"spark/internals.py"}
    assert users_of(PRIVATE_OF_CONNECT) == {"spark/connect.py"}


def users_of(names: set[str]) -> set[str]:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.name if isinstance(node, ast.alias) else ""
            if name in names:
                found.add(str(file.relative_to(PACKAGE)))
    return found


def test_a_classic_session_has_a_jvm(spark: Any) -> None:
    assert internals.is_classic(spark) and not internals.is_stopped(spark)
    assert not internals.is_classic(SimpleNamespace())
    assert internals.jvm_of(spark) is internals.jvm_of_column(spark.range(1).id)
    assert internals.java_session(spark).version() == spark.version
    assert internals.active_context() is spark.sparkContext
    assert "spark.app.name" in internals.settings_of_gateway() or internals.settings_of_gateway() == {}
    assert (Path(internals.find_spark_home()) / "jars").is_dir()


def test_options_of_a_builder() -> None:
    from pyspark.sql import SparkSession

    assert internals.options_of(SparkSession.builder.config("spark.some", "x"))["spark.some"] == "x"


def test_an_error_of_the_connection_to_the_jvm_is_told_from_others(spark: Any) -> None:
    from py4j.protocol import Py4JNetworkError

    assert internals.is_connection_error(Py4JNetworkError("gone"))
    assert internals.is_connection_error(ConnectionRefusedError())
    assert not internals.is_connection_error(ValueError())


def test_types_are_parsed(spark: Any) -> None:
    assert internals.parse_type("a int, b array<float>").simpleString() == "struct<a:int,b:array<float>>"
    with pytest.raises(ValueError):
        internals.parse_type("a nothing")


def test_expressions_of_the_connector(spark: Any) -> None:
    bridge = bridge_of(spark)
    assert bridge is not None and bridge_of_column(spark.range(1).id) is not None
    df = spark.range(1)
    assert df.select(bridge.column(bridge.expression(df.id + 1)).alias("x")).collect()[0].x == 1
    jvm = internals.jvm_of(spark)
    found = internals.java_class(jvm, "java.util.HashMap")
    assert found is not None and internals.java_class(jvm, "java.util.HashMap") is found
    assert internals.java_class(jvm, "nothing.of.this.name") is None
    assert bridge.java_map({"a": "b"}).get("a") == "b"


def test_plans(spark: Any) -> None:
    df = spark.range(10)
    assert "Range" in internals.executed_plan(df)
    assert not internals.rows_can_move(df) and not internals.rows_can_move(df.rdd)
    moving = df.rdd.map(lambda row: row).repartition(2).map(lambda row: row)
    assert isinstance(internals.rows_can_move(moving), bool), "test_exactly_once has both answers"


def test_executors_and_profiles(spark: Any) -> None:
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    sc = spark.sparkContext
    assert internals.concurrent_tasks(sc) == 4
    assert internals.executors_of_default_profile(sc) == [(4, 0)]
    calls: list[str] = []
    send = GatewayClient.send_command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            GatewayClient, "send_command", lambda self, c, *a, **k: (calls.append(c), send(self, c, *a, **k))[1]
        )
        internals.executors_of_default_profile(sc)
    # Names of packages are asked for, too. None of the calls is about one executor.
    assert 0 < len(calls) < 25 and not any("totalCores" in c for c in calls)
    with pytest.raises(Exception, match="TaskResourceProfiles are only supported"):
        internals.register_profile(sc, ResourceProfileBuilder().require(TaskResourceRequests().cpus(2)).build)


def test_the_executor_of_a_task(spark: Any) -> None:
    from pyspark import TaskContext

    def numbers(_: Any) -> Any:
        context = TaskContext.get()
        assert context is not None
        yield context.stageId(), context.taskAttemptId()

    ((stage, task),) = spark.sparkContext.parallelize([0], 1).mapPartitions(numbers).collect()
    assert internals.executors_of_task(spark.sparkContext, stage, task) == ["driver"]
    assert internals.executors_of_task(spark.sparkContext, stage, task + 1) == []


def test_hadoops_file_systems(spark: Any, tmp_path: Path) -> None:
    target, files = internals.hadoop_file_system(spark, f"file://{tmp_path}")
    assert files.exists(target)
    assert internals.default_file_system(spark.sparkContext).startswith("file:")


def test_a_session_without_ui_takes_no_link(spark: Any) -> None:
    assert internals.add_redirect(spark, "/tfspark-test", "http://localhost/") is None


def test_a_task_knows_that_it_has_had_all_its_rows(spark: Any) -> None:
    def told(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = sum(b.num_rows for b in batches)
        yield pa.RecordBatch.from_pydict({"rows": [rows], "complete": [internals.input_is_complete()]})

    found = spark.range(0, 50_000, 1, 3).mapInArrow(told, "rows long, complete boolean").collect()
    assert sum(r.rows for r in found) == 50_000 and all(r.complete for r in found)

    def frames(rows: Iterator[Any]) -> Iterator[bool]:
        for _ in rows:
            pass
        import sys

        frame: Any = sys._getframe()
        names = []
        while frame is not None:
            names.append((frame.f_globals.get("__name__"), hasattr(frame.f_locals.get("infile"), "peek")))
            frame = frame.f_back
        yield ("pyspark.worker", True) in names

    assert all(spark.range(100).rdd.mapPartitions(frames).collect()), "this Spark names its stream otherwise"
