"""Columns in slots of shared memory: every type arrives as Spark's own Arrow has it, whatever readers do meanwhile."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark import cloudpickle
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql import types as T
from waiting import eventually

from tfspark.columns.slots import ExecutorMemory, batches_in_slots
from tfspark.columns.types import arrow_schema_of
from tfspark.spark.internals import executed_plan
from tfspark.spark.slot_rows import in_slots

# Tasks cannot import the files of tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROGRAM = Path(__file__).parents[1] / "programs" / "small_shared_memory.py"


def shipped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Send batches to the driver as they are; Spark would write their values anew."""
    for batch in batches:
        batch.validate(full=True)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        yield pa.RecordBatch.from_pydict({"batch": [sink.getvalue().to_pybytes()]})


def collected(df: Any, task: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]) -> list[pa.RecordBatch]:
    sent = [r.batch for r in df.mapInArrow(task, "batch binary").collect()]
    return [b for message in sent for b in pa.ipc.open_stream(message)]


def through_slots(df: Any) -> list[pa.RecordBatch]:
    slots, schema = in_slots(df), arrow_schema_of(df.schema)
    assert slots is not None
    return collected(slots, lambda rows: shipped(batches_in_slots(rows, schema)))


def rows_of(batches: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]


def test_every_type_arrives_as_spark_has_it(spark: Any) -> None:
    i = F.col("id")
    scalars = {
        "long": i,
        "int": i.cast("int"),
        "short": (i % 30000).cast("short"),
        "byte": (i % 100).cast("byte"),
        "double": i * 1.5,
        "bool": i % 3 == 0,
        "float": F.when(i % 7 != 0, i.cast("float")),
        "string": F.expr("if(id % 5 != 0, repeat(string(id), int(id % 20)), null)"),
        "binary": F.encode(i.cast("string"), "utf-8"),
        "date": F.date_add(F.lit("2020-01-01").cast("date"), i.cast("int")),
        "timestamp": F.timestamp_seconds(i),
        "timestamp_ntz": F.timestamp_seconds(i).cast("timestamp_ntz"),
        "decimal": i.cast("decimal(10,2)") - 500,
        "long_decimal": F.when(i % 11 != 0, i.cast("decimal(30,5)") * -1234567),
    }
    nested = {
        "array": F.array(i, i + 1),
        "nulls_inside": F.transform(
            F.sequence(F.lit(0), (i % 4).cast("int")), lambda x: F.when(x != 2, x.cast("float"))
        ),
        "no_array": F.when(i % 2 == 0, F.array(i.cast("decimal(9,3)"))),
        "arrays": F.array(F.array(i.cast("string")), F.array()),
        "bools": F.array(F.lit(True), i % 2 == 0),
        "struct": F.when(i % 2 == 0, F.struct(i.alias("a"), F.array(F.lit(True), F.lit(None)).alias("q"))),
    }
    df = spark.range(0, 20000, 1, 3).select(*[c.alias(n) for n, c in {**scalars, **nested}.items()])
    expected = rows_of(collected(df, shipped))
    assert len(expected) == 20000
    assert rows_of(through_slots(df)) == expected


@pytest.mark.parametrize("source", ["cached", "cached, adaptive", "parquet", "orc", "partitioned parquet"])
@pytest.mark.parametrize("nulls", [False, True], ids=["without nulls", "with nulls"])
def test_column_vectors_of_scans_arrive_as_their_rows(source: str, nulls: bool, spark: Any, tmp_path: Path) -> None:
    i = F.col("id")
    columns = {
        "long": i,
        "int": (i * 3).cast("int"),
        "short": (i % 30000).cast("short"),
        "byte": (i % 100).cast("byte"),
    }
    columns |= {"double": i * 1.5, "float": (i / 7).cast("float"), "bool": i % 3 == 0, "few": i % 5}
    if not source.startswith("cached"):
        columns |= {"date": F.date_add(F.lit("2020-01-01").cast("date"), i.cast("int"))}
        columns |= {"timestamp": F.timestamp_seconds(i), "timestamp_ntz": F.timestamp_seconds(i).cast("timestamp_ntz")}
    if nulls:
        columns = {n: F.when((i + k) % (k + 2) != 0, c) for k, (n, c) in enumerate(columns.items())}
    # More rows than a slot and than a batch of vectors hold.
    made = spark.range(0, 300_000, 1, 2).select(*[c.alias(n) for n, c in columns.items()], (i % 3).alias("part"))
    spark.conf.set("spark.sql.adaptive.enabled", "adaptive" in source)
    if source.startswith("cached"):
        df = made.cache()
    else:
        kind = source.rpartition(" ")[2]
        writer = made.write.format(kind)
        (writer.partitionBy("part") if "partitioned" in source else writer).save(str(tmp_path / "files"))
        df = spark.read.format(kind).load(str(tmp_path / "files"))
    try:
        slots = in_slots(df)
        assert slots is not None
        assert "of column vectors" in executed_plan(slots.mapInArrow(lambda rows: rows, slots.schema))
        found, expected = (pa.Table.from_batches(b) for b in (through_slots(df), collected(df, shipped)))
        # Spark's Arrow marks timestamps with a time zone by another name, and nothing else differs.
        assert found.num_rows == 300_000 and found.cast(expected.schema).equals(expected)
    finally:
        df.unpersist()
        spark.conf.unset("spark.sql.adaptive.enabled")


def test_columns_that_a_query_computes_and_those_of_no_fixed_size_are_read_as_rows(spark: Any) -> None:
    df = spark.range(0, 100, 1, 2).withColumn("s", F.col("id").cast("string")).cache()
    try:
        for query in (df, df.select((F.col("id") + 1).alias("id")), df.select("id").where("id % 2 = 0")):
            slots = in_slots(query)
            assert slots is not None
            assert "of rows" in executed_plan(slots.mapInArrow(lambda rows: rows, slots.schema))
            assert rows_of(through_slots(query)) == [r.asDict() for r in query.collect()]
        slots = in_slots(df.select("id"))
        assert slots is not None
        assert rows_of(through_slots(df.select("id"))) == [{"id": i} for i in range(100)]
    finally:
        df.unpersist()


def test_vectors(spark: Any) -> None:
    rows = [(Vectors.dense([1.0, 2.0]),), (Vectors.sparse(3, {1: 4.0}),), (None,)]
    df = spark.createDataFrame(rows, T.StructType([T.StructField("v", VectorUDT())]))
    assert rows_of(through_slots(df)) == rows_of(collected(df, shipped))


def test_a_row_larger_than_a_slot_and_rows_of_nearly_one(spark: Any) -> None:
    lengths = [3_900_000, 10, 5_000_000, 2_000_000, 2_000_001, 0, 4_190_000, 1]
    df = spark.createDataFrame([(n,) for n in lengths], "n int").coalesce(1)
    df = df.select("n", F.expr("repeat('x', n)").alias("s"))
    assert [len(r["s"]) for r in rows_of(through_slots(df))] == lengths


@pytest.mark.long
def test_five_thousand_columns(spark: Any) -> None:
    df = spark.range(0, 300, 1, 2).select(*[(F.col("id") + i).alias(f"c{i}") for i in range(5000)])
    batches = through_slots(df)
    table = pa.Table.from_batches(batches)
    assert table.num_rows == 300
    assert table["c4999"].to_pylist() == [i + 4999 for i in range(300)]


def test_empty_partitions_and_no_rows(spark: Any) -> None:
    assert through_slots(spark.range(0, 100, 1, 4).where("id < 0")) == []
    assert sorted(r["id"] for r in rows_of(through_slots(spark.range(0, 3, 1, 4)))) == [0, 1, 2]


def test_types_that_are_not_known_go_the_old_way(spark: Any) -> None:
    assert in_slots(spark.sql("SELECT map(1, 2) AS m")) is None
    assert in_slots(spark.sql("SELECT INTERVAL '1' MONTH AS m")) is None


def test_adaptive_execution_caching_and_pruning_are_as_before(spark: Any) -> None:
    df = spark.range(0, 1000, 1, 3).select((F.col("id") % 50).alias("k"), F.col("id").alias("unused"))
    grouped = df.groupBy("k").count()
    assert sorted(r["k"] for r in rows_of(through_slots(grouped))) == list(range(50))
    sent = in_slots(grouped).mapInArrow(lambda rows: rows, in_slots(grouped).schema)
    plan = executed_plan(sent)
    assert "AdaptiveSparkPlan" in plan and "SlotRows" in plan and "unused" not in plan
    cached = df.cache()
    try:
        assert cached.count() == 1000
        plan = in_slots(cached).mapInArrow(lambda rows: rows, in_slots(cached).schema)
        assert "InMemoryTableScan" in executed_plan(plan)
    finally:
        cached.unpersist()


def test_settings_of_the_session_hold_for_what_follows(spark: Any) -> None:
    """Only the reader of slots is given rows one by one."""
    df = spark.range(0, 5000, 1, 1)
    slots, schema = in_slots(df), arrow_schema_of(df.schema)

    def ids(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches_in_slots(rows, schema):
            yield pa.RecordBatch.from_arrays(batch.columns, names=["id"])

    def sizes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"rows": pa.array([b.num_rows for b in batches], pa.int32())})

    assert [r.rows for r in slots.mapInArrow(ids, "id long").mapInArrow(sizes, "rows int").collect()] == [5000]
    assert spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") == "10000"


def test_a_slot_reaches_python_when_it_is_full_and_rows_before_it_come_in_large_batches(spark: Any) -> None:
    def sizes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield pa.RecordBatch.from_pydict({"rows": pa.array([batch.num_rows] * batch.num_rows, pa.int64())})

    # All in one stage, so in one task: the settings of the reader must not reach what is before it.
    slots = in_slots(spark.range(0, 2_000_000, 1, 1).mapInArrow(sizes, "rows long"))
    schema = pa.schema([("rows", pa.int64())])

    def seen(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        places = []

        def noted() -> Iterator[pa.RecordBatch]:
            for batch in rows:
                places.append(batch.num_rows)
                yield batch

        smallest = min(b.column(0).to_numpy().min() for b in batches_in_slots(noted(), schema))
        yield pa.RecordBatch.from_pydict({"smallest": [int(smallest)], "places": [places]})

    (found,) = slots.mapInArrow(seen, "smallest long, places array<long>").collect()
    assert found.smallest == 10_000
    assert len(found.places) >= 3 and set(found.places) == {1}


def test_a_reader_that_keeps_all_batches_gets_them(spark: Any) -> None:
    """Slots are few; a reader that lets go of none must not wait for ever, nor see its rows change."""
    df = spark.range(0, 4_000_000, 1, 1)
    slots, schema = in_slots(df), arrow_schema_of(df.schema)

    def add_up(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        kept = list(batches_in_slots(rows, schema))
        total = sum(int(b.column(0).to_numpy().sum()) for b in kept)
        yield pa.RecordBatch.from_pydict({"total": [total], "batches": [len(kept)]})

    (found,) = slots.mapInArrow(add_up, "total long, batches long").collect()
    assert found.total == sum(range(4_000_000))
    assert found.batches > 8


def test_answers_that_are_not_read_do_not_stop_the_rows(spark: Any) -> None:
    """The reader writes more than a socket holds, while slots wait in the socket that it reads."""
    df = spark.range(0, 2_000_000, 1, 1)
    slots, schema = in_slots(df), arrow_schema_of(df.schema)

    def echo(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches_in_slots(rows, schema):
            yield pa.RecordBatch.from_arrays(batch.columns, names=["id"])

    counted = slots.mapInArrow(echo, "id long").agg(F.count("id"), F.sum("id")).first()
    assert tuple(counted) == (2_000_000, sum(range(2_000_000)))


def test_nothing_has_a_name_and_slots_are_used_again(spark: Any) -> None:
    def written(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in rows:
            yield pa.RecordBatch.from_arrays([batch.column("start")], names=["start"])

    df = in_slots(spark.range(0, 3_000_000, 1, 4))
    starts = {r.start for _ in range(5) for r in df.mapInArrow(written, "start long").collect()}
    # Four tasks at a time, with six slots each; 0 stands for rows that came through the socket.
    assert len(starts - {0}) <= 24
    assert not [f for f in os.listdir("/dev/shm") if f.startswith("tfspark-")]


def test_a_task_that_has_ended_gets_no_other_rows(tmp_path: Path) -> None:
    memory = _memory(tmp_path, ticket=7)
    hold = memory.hold(64, 7)
    assert hold.is_mine
    _words(tmp_path)[0] = 9
    assert not hold.is_mine
    del hold
    gc.collect()
    # What somebody else has by now stays theirs.
    assert _words(tmp_path)[0] == 9
    hold = memory.hold(64, 9)
    message = memory.message(4096, 100, hold)
    del hold
    assert _words(tmp_path)[0] == 9
    del message
    assert _words(tmp_path)[0] == 0


def test_memory_of_another_process_is_refused(tmp_path: Path) -> None:
    memory = _memory(tmp_path, ticket=1)
    with pytest.raises(OSError, match="is not the memory of the executor"):
        ExecutorMemory(str(tmp_path / "memory"), b"z" * 32)
    with pytest.raises(OSError, match="beyond the end"):
        memory.message(8000, 1000, memory.hold(64, 1))


def _memory(directory: Path, ticket: int) -> ExecutorMemory:
    (directory / "memory").write_bytes(b"k" * 32 + bytes(8192 - 32))
    _words(directory)[0] = ticket
    return ExecutorMemory(str(directory / "memory"), b"k" * 32)


def _words(directory: Path) -> Any:
    return np.memmap(directory / "memory", np.int64, "r+", offset=64, shape=(1,))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems of its own")
@pytest.mark.parametrize("options", [pytest.param("size=9m", marks=pytest.mark.long), "size=64k", "ro"])
def test_shared_memory_that_is_small_or_cannot_be_written(options: str) -> None:
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm && exec {sys.executable} {PROGRAM}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["total"] == sum(range(3_000_000))
    assert said["by_slot"] > 0
    assert said["by_socket"] > 0 if options == "size=9m" else True


def test_slots_of_a_killed_task_are_free_again(spark: Any) -> None:
    context = spark.sparkContext

    def held(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from threading import Event

        kept = list(batches_in_slots(rows, pa.schema([("id", pa.int64())])))
        Event().wait(len(kept) and 300)
        yield from ()

    from threading import Thread

    def run() -> None:
        context.setJobGroup("held", "held", True)
        with pytest.raises(Exception, match="cancelled"):
            in_slots(spark.range(0, 3_000_000, 1, 4)).mapInArrow(held, "id long").collect()

    thread = Thread(target=run)
    thread.start()
    assert eventually(lambda: len(context.statusTracker().getJobIdsForGroup("held")) == 1, 60)
    assert eventually(lambda: _running(context, "held") == 4, 60)
    context.cancelJobGroup("held")
    thread.join(60)
    assert not thread.is_alive()
    assert sum(r["id"] for r in rows_of(through_slots(spark.range(0, 1_000_000, 1, 4)))) == sum(range(1_000_000))


def _running(context: Any, group: str) -> int:
    tracker = context.statusTracker()
    jobs = [tracker.getJobInfo(j) for j in tracker.getJobIdsForGroup(group)]
    stages = [tracker.getStageInfo(s) for j in jobs if j is not None for s in j.stageIds]
    return sum(s.numActiveTasks for s in stages if s is not None)
