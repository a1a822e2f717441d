"""What a Python task makes of slots, beside columns that stay in the JVM: rows, plans, retries and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyspark import cloudpickle
from pyspark.errors import AnalysisException
from pyspark.sql import functions as F

from tfspark.columns.sent import map_beside
from tfspark.spark.internals import executed_plan

# Tasks cannot import the files of tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = 50_000
PROGRAM = Path(__file__).parents[1] / "programs" / "failing_map.py"


def doubled(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Answer with other batches than those that came."""
    columns = [b["x"] for b in batches]
    together = pa.chunked_array(columns, pa.int64()).combine_chunks()
    for start in range(0, len(together), 777):
        yield pa.RecordBatch.from_arrays([pc.multiply(together.slice(start, 777), 2)], ["y"])


def beside(df: Any, kept: list[str], task: Callable[..., Any] = doubled, x: str = "id") -> Any:
    made = map_beside(df, {"x": F.col(x)}, kept, task, "y long")
    assert made is not None
    return made


def test_rows_stay_beside_what_is_made_of_them(spark: Any) -> None:
    i = F.col("id")
    df = spark.range(0, ROWS, 1, 5).select(
        i,
        F.when(i % 3 > 0, i.cast("string")).alias("s"),
        F.array(i, -i).alias("a"),
        F.struct((i * 0.5).alias("h")).alias("t"),
    )
    rows = beside(df, ["s", "id", "t", "a"]).collect()
    assert len(rows) == ROWS and rows[0].__fields__ == ["s", "id", "t", "a", "y"]
    assert [r.id for r in rows] == list(range(ROWS)), "rows keep their order"
    for r in rows[:: ROWS // 97]:
        assert (r.s, r.a, r.t.h) == (str(r.id) if r.id % 3 else None, [r.id, -r.id], r.id * 0.5)
    assert all(r.y == 2 * r.id for r in rows)


@pytest.mark.parametrize("kept", [[], ["id"]])
def test_few_or_no_columns_are_kept(spark: Any, kept: list[str]) -> None:
    made = beside(spark.range(0, 1000, 1, 4), kept)
    assert made.columns == [*kept, "y"] and made.count() == 1000
    assert made.agg(F.sum("y")).first()[0] == 2 * sum(range(1000))


def test_a_thread_without_an_active_session_runs_a_plan(spark: Any) -> None:
    # Threads of CrossValidator are such threads.
    made = beside(spark.range(0, 100, 1, 2), ["id"])

    def count() -> int:
        spark._jvm.org.apache.spark.sql.SparkSession.clearActiveSession()
        return int(made.rdd.count())

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(count).result() == 100


def test_empty_partitions_and_no_rows(spark: Any) -> None:
    assert beside(spark.range(3).repartition(8), ["id"]).count() == 3
    assert beside(spark.range(100).where("id < 0"), ["id"]).collect() == []


def test_large_rows_wait_in_spark(spark: Any) -> None:
    df = spark.range(0, 2000, 1, 2).select("id", F.repeat(F.lit("0123456789"), 7500).alias("picture"))
    found = beside(df, ["picture", "id"]).select(F.length("picture").alias("n"), "id", "y").collect()
    assert {r.n for r in found} == {75_000} and all(r.y == 2 * r.id for r in found) and len(found) == 2000


def test_only_what_is_used_is_read(spark: Any, tmp_path: Path) -> None:
    spark.range(0, 5000, 1, 2).selectExpr("id", "id + 1 as other", "cast(id as string) as s").write.parquet(
        f"{tmp_path}/t"
    )
    made = beside(spark.read.parquet(f"{tmp_path}/t"), ["id", "other", "s"])

    def read(df: Any) -> str:
        (line,) = (line for line in executed_plan(df).splitlines() if "ReadSchema" in line)
        return line.split("ReadSchema: ")[1]

    assert read(made) == "struct<id:bigint,other:bigint,s:string>"
    assert read(made.select("y", "s")) == "struct<id:bigint,s:string>"
    assert read(made.select("y")) == "struct<id:bigint>" and "MapBeside" in executed_plan(made.select("y"))
    assert read(made.select("other")) == "struct<other:bigint>"
    assert "MapBeside" not in executed_plan(made.select("other")), "nobody asks for answers"
    assert "MapBeside" not in executed_plan(made.groupBy().count()) and made.count() == 5000
    assert sorted(r.y for r in made.select("y").collect()) == list(range(0, 10_000, 2))
    assert made.select("s", "y").where("y = 84").collect() == [("42", 84)]


@pytest.mark.parametrize("adaptive", ["true", "false"])
def test_plans_around_it_run_as_they_are(spark: Any, monkeypatch: pytest.MonkeyPatch, adaptive: str) -> None:
    session = spark.newSession()
    session.conf.set("spark.sql.adaptive.enabled", adaptive)
    df = session.range(0, 3000, 1, 6).withColumn("k", F.col("id") % 7)
    made = beside(df.repartition(5, "k"), ["id", "k"])
    totals = {r.k: r.t for r in made.groupBy("k").agg(F.sum("y").alias("t")).collect()}
    assert totals == {k: sum(2 * i for i in range(3000) if i % 7 == k) for k in range(7)}
    assert made.join(made.withColumnRenamed("y", "z"), ["id", "k"]).where("y = z").count() == 3000
    assert made.alias("a").join(made.alias("b"), F.col("a.id") == F.col("b.y")).count() == 1500
    assert made.union(made).count() == 6000 and made.union(made).agg(F.sum("y")).first()[0] == 2 * 3000 * 2999
    assert sorted(r.y for r in made.coalesce(1).collect()) == list(range(0, 6000, 2))
    assert sorted(r.y for r in made.limit(10).collect())[0] >= 0 and made.limit(10).count() == 10
    twice = beside(made.withColumnRenamed("y", "first"), ["id", "first"], x="first")
    assert all((r.first, r.y) == (2 * r.id, 4 * r.id) for r in twice.collect())
    cached = made.cache()
    assert (
        cached.count() == 3000 and cached.where("y > 10").count() == 2994 and cached.select("k").distinct().count() == 7
    )
    cached.unpersist()


def test_the_rows_of_a_small_table_join_every_partition(spark: Any) -> None:
    made = beside(spark.range(0, 40, 1, 4), ["id"])
    pairs = spark.range(0, 3, 1, 3).withColumnRenamed("id", "n").crossJoin(made).collect()
    assert sorted((r.n, r.y) for r in pairs) == [(n, 2 * i) for n in range(3) for i in range(40)]


def test_streams_are_mapped(spark: Any, tmp_path: Path) -> None:
    spark.range(0, 300, 1, 3).write.parquet(f"{tmp_path}/source")
    stream = spark.readStream.schema("id long").option("maxFilesPerTrigger", 1).parquet(f"{tmp_path}/source")
    query = (
        beside(stream, ["id"])
        .writeStream.format("parquet")
        .option("checkpointLocation", f"{tmp_path}/at")
        .trigger(availableNow=True)
        .start(f"{tmp_path}/sink")
    )
    assert query.awaitTermination(120)
    assert sorted(spark.read.parquet(f"{tmp_path}/sink").collect()) == [(i, 2 * i) for i in range(300)]


def test_a_task_that_fails_is_run_again() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"attempts": [0, 1], "right": 20_000, "rows": 20_000}


@pytest.mark.parametrize(("change", "said"), [(-1, "has answered for 4 of 5 rows"), (1, "more rows than the 5")])
def test_a_task_that_loses_or_invents_rows_is_an_error(spark: Any, change: int, said: str) -> None:
    def wrong(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        table = pa.Table.from_batches(list(batches))
        y = pa.array(range(table.num_rows + change), pa.int64())
        yield pa.RecordBatch.from_arrays([y], ["y"])

    with pytest.raises(Exception, match=said):
        beside(spark.range(0, 5, 1, 1), ["id"], wrong).collect()


def test_columns_may_get_new_ids_below_it(spark: Any) -> None:
    df = spark.range(0, 60, 1, 3).selectExpr("id", "id % 3 as k", "cast(id as string) as name")
    firsts = beside(df.dropDuplicates(["k"]), ["k", "name"]).collect()
    assert sorted(r.k for r in firsts) == [0, 1, 2] and all(2 * int(r.name) == r.y for r in firsts)
    sources = {
        "alias": df,
        "aggregate": df.groupBy("id").agg(F.max("k").alias("k")),
        "generator": df.select("id", F.explode(F.array("k")).alias("k")),
    }
    for kind, source in sources.items():
        made = beside(source, ["id", "k"])
        joined = made.alias("a").join(made.alias("b"), F.col("a.id") == F.col("b.id")).select("a.k", "b.y", "a.y")
        assert len(joined.collect()) == 60, kind
        assert joined.where(F.col("a.y") == F.col("b.y")).count() == 60, kind


def test_a_partition_may_be_computed_twice_at_a_time(spark: Any) -> None:
    rows = beside(spark.range(0, 3000, 1, 2), ["id"]).rdd
    assert all(y == 2 * i for y, i in rows.map(lambda r: r.y).zip(rows.map(lambda r: r.id)).collect())
    few = beside(spark.range(0, 20, 1, 2), ["id"]).rdd
    assert few.cartesian(few).count() == 400


@pytest.mark.long
def test_many_partitions_in_a_task_take_the_memory_of_one(spark: Any) -> None:
    pages = beside(spark.range(0, 20_000, 1, 400), ["id"]).coalesce(1).sortWithinPartitions(F.desc("y"))
    assert [r.y for r in pages.limit(3).collect()] == [39_998, 39_996, 39_994]


def test_columns_are_pruned_through_filters(spark: Any) -> None:
    df = spark.range(0, 100, 1, 2).selectExpr("id", "id + 1 as other")
    (line,) = (
        line
        for line in executed_plan(beside(df, ["id", "other"]).where("y > 5").select("y")).splitlines()
        if "MapBeside" in line
    )
    assert "id#" not in line and "other#" not in line, line
    made = beside(df, ["id", "other"]).where("other > 3")
    assert "MapBeside" not in executed_plan(made.select("id")) and made.select("id").count() == 97
    assert beside(df, ["id", "other"]).where("y > 5 and other > 90").select("id").count() == 10


def test_other_sessions_of_the_application_run_it(spark: Any) -> None:
    made = beside(spark.range(0, 10, 1, 2), ["id"])
    made.createOrReplaceGlobalTempView("beside")
    other = spark.newSession()
    assert other.table("global_temp.beside").count() == 10
    assert sorted(r.y for r in other.table("global_temp.beside").collect()) == list(range(0, 20, 2))
    spark.catalog.dropGlobalTempView("beside")


def test_plans_of_the_same_rows_are_equal(spark: Any) -> None:
    made = beside(spark.range(0, 100, 1, 2), ["id"])
    planned = [df._jdf.queryExecution().sparkPlan() for df in (made, made.select("id", "y"), made.select("y"))]
    assert planned[0].sameResult(planned[1]) and not planned[0].sameResult(planned[2])


def test_hidden_columns_of_files_are_no_longer_there(spark: Any, tmp_path: Path) -> None:
    spark.range(5).write.parquet(f"{tmp_path}/t")
    made = beside(spark.read.parquet(f"{tmp_path}/t"), ["id"])
    with pytest.raises(AnalysisException, match="_metadata"):
        made.select("y", "_metadata.file_path").collect()


def test_what_is_no_plain_selection_goes_another_way(spark: Any) -> None:
    assert map_beside(spark.range(5), {"x": F.rand()}, ["id"], doubled, "y long") is None
