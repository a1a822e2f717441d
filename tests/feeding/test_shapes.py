"""The shapes of array columns that nobody has declared: settled by the first rows, for all workers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import tfspark
from tfspark.columns.lengths import OtherLength, expected_lengths, lengths_of, other_length, settled
from tfspark.columns.prepare import prepare_batch
from tfspark.columns.spec import ColumnSpec, arrow_schema, plan_columns
from tfspark.errors import SchemaError
from tfspark.feeding.shapes import Shapes
from tfspark.spec import NodeId

LISTS = pa.list_(pa.int64())
FIRST, SECOND = NodeId("worker", 0), NodeId("worker", 1)


def prepared(rows: list[Any], t: pa.DataType = LISTS) -> tuple[pa.RecordBatch, tuple[ColumnSpec, ...]]:
    batch = pa.RecordBatch.from_arrays([pa.array(rows, t)], names=["x"])
    columns = plan_columns(batch.schema)
    return prepare_batch(batch, columns, arrow_schema(columns)), columns


@pytest.mark.unit
@pytest.mark.parametrize(
    ("t", "rows", "lengths", "shape"),
    [
        (LISTS, [[1, 2], [3, 4]], (2,), (2,)),
        (LISTS, [[1, 2], [3]], (None,), (None,)),
        (LISTS, [[], []], (None,), (None,)),
        (pa.list_(pa.string()), [["a"], ["b"]], (1,), (1,)),
        (pa.list_(LISTS), [[[1, 2]], [[3, 4]]], (1, 2), (1, 2)),
        (pa.list_(LISTS), [[[1, 2]], [[3, 4], [5, 6]]], (None, 2), (None, 2)),
        (pa.list_(LISTS), [[[1, 2], [3]]], (2, None), (None, None)),
        (pa.list_(LISTS), [[], []], (None, None), (None, None)),
        (pa.list_(pa.list_(pa.int64(), 3)), [[[1, 2, 3]] * 2] * 2, (2,), (2, 3)),
        (pa.list_(LISTS, 2), [[[1, 2], [3, 4]]], (2, 2), (2, 2)),
    ],
)
def test_the_lengths_that_rows_have_become_a_shape(
    t: pa.DataType, rows: list[Any], lengths: tuple[int | None, ...], shape: tuple[int | None, ...]
) -> None:
    batch, columns = prepared(rows, t)
    assert columns[0].open and lengths_of(batch, columns) == {"x": lengths}
    shapes = Shapes(columns)
    assert shapes.settled is None and shapes.has_open
    shapes.saw(FIRST, lengths_of(batch, columns))
    (column,) = shapes.settle()
    assert (*[None] * column.ragged, *column.shape) == shape and not column.open
    assert other_length(batch, columns, expected_lengths(columns, shapes.settled)) is None
    assert shapes.found() == {"x": shape if column.shape else None}
    # Declared so, the next feed has the same tensor.
    (declared,) = plan_columns(pa.schema([("x", t)]), {"x": shapes.found()["x"]})
    assert (declared.shape, declared.ragged, declared.open) == (column.shape, column.ragged, False)


@pytest.mark.unit
def test_a_declared_shape_or_one_that_the_type_tells_is_not_open() -> None:
    for shape in (None, 2, (None,), (2,)):
        assert not plan_columns(pa.schema([("x", LISTS)]), {"x": shape})[0].open
    assert not plan_columns(pa.schema([("x", pa.list_(pa.int64(), 2))]))[0].open
    assert not plan_columns(pa.schema([("x", pa.int64())]))[0].open
    shapes = Shapes(plan_columns(pa.schema([("x", LISTS)]), {"x": None}))
    assert shapes.settled == shapes.planned and not shapes.has_open and shapes.found() == {}


@pytest.mark.unit
def test_one_batch_of_each_worker_settles_it_and_no_later_one() -> None:
    shapes = Shapes(prepared([[1]])[1])
    shapes.saw(FIRST, {"x": (3,)})
    assert not shapes.has_seen([FIRST, SECOND]) and shapes.has_seen([FIRST])
    shapes.saw(FIRST, {"x": (4,)})
    shapes.saw(SECOND, {"x": (3,)})
    assert shapes.has_seen([FIRST, SECOND])
    assert shapes.settle() == (ColumnSpec("x", "int64", (3,), levels=0),)
    shapes.begin()
    shapes.saw(SECOND, {"x": (None,)})
    assert shapes.settle()[0].shape == (3,), "it is the same after a restart"
    for second in ((4,), (None,)):
        shapes = Shapes(prepared([[1]])[1])
        shapes.saw(FIRST, {"x": (3,)})
        shapes.saw(SECOND, {"x": second})
        assert shapes.settle()[0].ragged == 1


@pytest.mark.unit
def test_arrays_of_another_length_fail_what_becomes_dense_and_nothing_else() -> None:
    batch, columns = prepared([[1, 2, 3]] * 5 + [[1, 2]])
    other = other_length(batch, columns, {"x": (3,)})
    assert other == OtherLength("x", "x", 0, 3, 2)
    for lengths in ((3,), (None,)):
        shapes = Shapes(columns)
        shapes.saw(FIRST, {"x": (3,)})
        shapes.saw_other(other)
        shapes.saw(SECOND, {"x": lengths})
        if lengths == (None,):
            assert shapes.settle()[0].ragged == 1
        else:
            with pytest.raises(SchemaError, match=r"'x' has arrays of length 3 in the first rows, .*length 2") as e:
                shapes.settle()
            assert "shapes={'x': None}" in str(e.value)
            shapes.begin()
            shapes.saw(FIRST, {"x": (3,)})
            assert shapes.settle()[0].shape == (3,), "the next attempt begins anew"
    inner, columns = prepared([[[1, 2]], [[3, 4, 5]]], pa.list_(LISTS))
    assert other_length(inner, columns, {"x": (1, 2)}) == OtherLength("x", "x", 1, 2, 3)
    assert other_length(inner, columns, {"x": (1, None)}) is None
    assert settled(columns[0], []).ragged == 2


def read(args: dict[str, Any], ctx: Any) -> list[Any]:
    """Return, for each epoch, the shape of column ``x`` in the dataset, and its sum."""
    import tensorflow as tf

    found = []
    for _ in ctx.epochs():
        dataset = ctx.dataset(7)
        total = sum(float(tf.reduce_sum(batch["x"])) for batch in dataset)
        spec = dataset.element_spec["x"]
        found.append(("ragged" if isinstance(spec, tf.RaggedTensorSpec) else "dense", spec.shape.as_list()[1:], total))
    return found


def arrays(spark: Any, lengths: str, rows: int = 40, partitions: int = 4) -> Any:
    """Return rows whose arrays of ones have the length that an SQL expression of ``id`` says."""
    df = spark.range(0, rows, 1, partitions)
    return df.selectExpr(f"transform(sequence(1, {lengths}), i -> 1F) x")


def test_arrays_of_one_length_are_dense_on_all_workers(spark: Any) -> None:
    with tfspark.Cluster(spark, read, {}, workers=2) as cluster:
        cluster.feed(arrays(spark, "3"))
        # Fewer partitions than workers: one of them never gets a row.
        cluster.feed(arrays(spark, "20", partitions=1))
        # Settled once for all epochs, and for all that an iterator gives.
        cluster.feed(arrays(spark, "3"), epochs=2, cache=None, seed=1)
        cluster.feed(iter([arrays(spark, "if(id % 10 = 9, 4, 3)"), arrays(spark, "3")]))
        cluster.feed(arrays(spark, "3"), shapes={"x": None})
        cluster.feed(arrays(spark, "1 + id div 20", partitions=2))
    both = list(cluster.results.values())
    shapes = [[(kind, shape) for kind, shape, _ in of_one] for of_one in both]
    dense, ragged = ("dense", [3]), ("ragged", [None])
    assert shapes[0] == shapes[1] == [dense, ("dense", [20]), dense, dense, ragged, ragged, ragged, ragged]
    totals = [a[2] + b[2] for a, b in zip(*both, strict=True)]
    assert totals == [120, 800, 120, 120, 124, 120, 120, 60]


def test_a_later_row_of_another_length_names_column_lengths_and_the_way_out(spark: Any) -> None:
    # The array is not in the first batch. With two workers nothing is settled before the feed ends.
    df = arrays(spark, "if(id = 110000, 5, 3)", 120_000, 1)
    for workers in (1, 2):
        message = r"Column 'x' has arrays of length 3 in the first rows, but a later row has one of length 5"
        with pytest.raises(SchemaError, match=message) as e, tfspark.Cluster(spark, read, {}, workers=workers) as c:
            c.feed(df)
        assert "shapes={'x': None}" in str(e.value)


def test_a_stream_has_the_shape_of_its_first_rows(spark: Any, tmp_path: Path) -> None:
    def main(args: Any, ctx: Any) -> tuple[list[Any], int]:
        dataset = ctx.stream(8)
        return dataset.element_spec["x"].shape.as_list(), sum(len(batch["x"]) for batch in dataset)

    for _ in range(3):
        arrays(spark, "3", 10, 1).write.mode("append").parquet(str(tmp_path / "in"))
    stream = spark.readStream.schema("x array<float>").option("maxFilesPerTrigger", 1).parquet(str(tmp_path / "in"))
    with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
        query = cluster.feed_stream(stream, checkpointLocation=str(tmp_path / "c"), trigger={"availableNow": True})
        query.awaitTermination()
    assert cluster.results["worker", 0] == ([None, 3], 30) and len(cluster.feed_reports) == 3


def test_a_restart_reads_what_was_settled_before(spark: Any, tmp_path: Path) -> None:
    def main(args: Any, ctx: Any) -> list[list[Any]]:
        import os
        import signal

        shapes = []
        for epoch in ctx.epochs():
            dataset = ctx.dataset(8)
            shapes.append(dataset.element_spec["x"].shape.as_list())
            assert sum(len(batch["x"]) for batch in dataset) > 0
            if ctx.restarts == 0 and epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return shapes

    with tfspark.Cluster(spark, main, {}, workers=1, max_restarts=1) as cluster:
        cluster.feed(arrays(spark, "3", 10, 1))
        cluster.feed(arrays(spark, "5", 10, 1))
    assert cluster.results["worker", 0] == [[None, 3], [None, 5]] and len(cluster.restarts) == 1


def test_parameter_servers_workers_read_settled_columns(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> tuple[list[Any], int]:
        import tensorflow as tf

        with ctx.strategy().scope():
            seen = tf.Variable(0.0)
        dataset_shapes = []

        def data() -> Any:
            dataset = ctx.dataset(8)
            dataset_shapes.append(dataset.element_spec["x"].shape.as_list())
            return dataset

        def step(batch: dict[str, tf.Tensor]) -> None:
            seen.assign_add(tf.reduce_sum(batch["x"]))

        rows = sum(ctx.train_epoch(step, data) for _ in ctx.epochs())
        return dataset_shapes[0], rows

    with tfspark.Cluster(spark, main, {}, workers=1, ps=1) as cluster:
        cluster.feed(arrays(spark, "3", 40, 2), epochs=2)
    assert cluster.results["chief", 0] == ([None, 3], 80)
