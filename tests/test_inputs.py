"""Everything that can be fed besides a plain DataFrame: RDDs, pandas, iterators, streams, renamed columns."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.errors import StreamingQueryException
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import Row
from pyspark.sql.types import StructField, StructType, _parse_datatype_string

import tfspark
from tfspark.errors import ConfigurationError, FeedError, NodeFailed, SchemaError
from tfspark.executor.rows import infer_columns, record_batches


def collect(args: dict[str, Any], ctx: Any) -> list[dict[str, Any]]:
    """Return each epoch's columns as lists."""
    epochs = []
    dataset = ctx.dataset(args.get("batch_size", 10))
    for _ in ctx.epochs():
        found: dict[str, list[Any]] = {}
        for batch in dataset:
            for name, tensor in batch.items():
                values = tensor.to_list() if hasattr(tensor, "to_list") else tensor.numpy().tolist()
                found.setdefault(name, []).extend(values)
        epochs.append(found)
    return epochs


def fed(spark: Any, data: Any, **options: Any) -> list[dict[str, Any]]:
    with tfspark.Cluster(spark, collect, {}, workers=1) as cluster:
        cluster.feed(data, **options)
    return cluster.results["worker", 0]


def by(epoch: dict[str, Any], key: str) -> list[tuple[Any, ...]]:
    names = sorted(epoch)
    return sorted(zip(*[epoch[n] for n in [key, *[n for n in names if n != key]]], strict=True))


def test_rdds_of_every_kind_of_row(spark: Any) -> None:
    sc = spark.sparkContext
    ids = sc.parallelize(range(30), 3)

    def main(args: dict[str, Any], ctx: Any) -> list[Any]:
        found = []
        for _ in range(5):
            rows: dict[str, list[Any]] = {}
            for batch in ctx.dataset(7):
                for name, tensor in batch.items():
                    dtype = f"{name}: {tensor.dtype.name}{list(tensor.shape[1:])}"
                    rows.setdefault(dtype, []).extend(
                        tensor.to_list() if hasattr(tensor, "to_list") else tensor.numpy().tolist()
                    )
            found.append(rows)
        return found

    with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
        cluster.feed(ids.map(lambda i: (i, i / 2, f"s{i}")))
        cluster.feed(ids.map(lambda i: {"id": i, "x": np.full((2, 3), i, np.float32), "v": [i] * (i % 3)}))
        cluster.feed(ids.map(lambda i: Row(b=bytes([i]), a=i)))
        cluster.feed(ids.map(lambda i: np.array([i, -i], np.int16)), columns={"pair": "value"})
        cluster.feed(ids.map(float))
    tuples, dicts, rows, arrays, singles = cluster.results["worker", 0]
    assert by(tuples, "_1: int64[]") == [(i, i / 2, f"s{i}".encode()) for i in range(30)]
    assert sorted(dicts) == ["id: int64[]", "v: int64[None]", "x: float32[2, 3]"]
    assert by(dicts, "id: int64[]") == [(i, [i] * (i % 3), [[i] * 3] * 2) for i in range(30)]
    assert by(rows, "a: int64[]") == [(i, bytes([i])) for i in range(30)]
    assert sorted(arrays["pair: int16[2]"]) == [[i, -i] for i in range(30)]
    assert sorted(singles["value: float64[]"]) == [float(i) for i in range(30)]


def test_pandas_and_iterators_of_dataframes(spark: Any) -> None:
    frame = pd.DataFrame({"i": [1, 2, 3], "s": ["a", "b", "c"], "x": [[1.0, 2.0]] * 3})
    one, *others = fed(spark, iter([frame, spark.range(2).selectExpr("id i", "'z' s", "array(0D) x")]))
    assert by(one, "i") == [(1, b"a", [1.0, 2.0]), (2, b"b", [1.0, 2.0]), (3, b"c", [1.0, 2.0])]
    assert [by(e, "i") for e in others] == [[(0, b"z", [0.0]), (1, b"z", [0.0])]]


def test_columns_are_chosen_ordered_and_renamed(spark: Any) -> None:
    def main(args: dict[str, Any], ctx: Any) -> list[dict[str, Any]]:
        (first,), (second,) = ([{k: t.numpy().tolist() for k, t in b.items()} for b in ctx.dataset(5)] for _ in "12")
        return [first, second]

    df = spark.range(0, 5, 1, 1).selectExpr("id", "id * 2 as `a.b`", "'x' as unused")
    with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
        cluster.feed(df, columns={"double": "a.b", "id": "id"})
        cluster.feed(df.drop("unused"))
    chosen, all_of_them = cluster.results["worker", 0]
    assert list(chosen) == ["double", "id"] and by(chosen, "id") == [(i, 2 * i) for i in range(5)]
    assert list(all_of_them) == ["id", "a.b"] and by(all_of_them, "id") == [(i, 2 * i) for i in range(5)]


def nested(feeds: int, ctx: Any) -> list[Any]:
    """Return the only batch of each feed as nested dicts of lists, and the shapes of its dataset."""
    leaves = lambda d, f: {k: leaves(v, f) if isinstance(v, dict) else f(v) for k, v in d.items()}  # noqa: E731
    found = []
    for _ in range(feeds):
        dataset = ctx.dataset(100)
        (batch,) = list(dataset)
        shapes = leaves(dataset.element_spec, lambda s: s.shape.as_list())
        found.append((leaves(batch, lambda t: t.numpy().tolist()), shapes))
    return found


def test_structs_vectors_and_masks(spark: Any) -> None:
    vectors = [(1, Vectors.dense(1.0, 2.0)), (2, Vectors.sparse(2, [1], [5.0]))]
    df = VectorAssembler(inputCols=["v", "id"], outputCol="features").transform(
        spark.createDataFrame(vectors, ["id", "v"]).coalesce(1)
    )
    df = df.selectExpr(
        "features",
        "named_struct('n', id, 'deep', named_struct('s', concat('s', id))) as outer",
        "if(id = 1, null, 7L) as maybe",
        "if(id = 1, null, date'1970-01-03') as day",
    )
    with tfspark.Cluster(spark, nested, 2, workers=1) as cluster:
        cluster.feed(df, mask=["maybe", "day"])
        with pytest.raises(SchemaError, match=r"mask names \['nope'\]"):
            cluster.feed(df, mask=["nope"])
        with pytest.raises(ConfigurationError, match="mask is for DataFrames"):
            cluster.feed(spark.sparkContext.parallelize([(1,)]), mask=["_1"])
        cluster.feed(df.select("outer"))
    (values, shapes), (only_outer, _) = cluster.results["worker", 0]
    assert values == {
        "features": [[1.0, 2.0, 1.0], [0.0, 5.0, 2.0]],
        "outer": {"n": [1, 2], "deep": {"s": [b"s1", b"s2"]}},
        "maybe": [0, 7],
        "day": [0, 2],
        "maybe_mask": [False, True],
        "day_mask": [False, True],
    }
    assert shapes["features"] == [None, 3]
    assert only_outer == {"outer": values["outer"]}


def test_arrays_of_arrays_and_sparse_vectors(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> Any:
        import tensorflow as tf

        found, specs = [], {}
        for batch in ctx.dataset(2):
            specs = {k: (type(t).__name__, t.shape.as_list()) for k, t in batch.items()}
            dense = {k: tf.sparse.to_dense(t) if isinstance(t, tf.SparseTensor) else t for k, t in batch.items()}
            found.append({k: t.to_list() if hasattr(t, "to_list") else t.numpy().tolist() for k, t in dense.items()})
        return found, specs

    rows = [
        ([[1], [2, 3]], [[1.0, 2.0]], [[1, 2], [3, 4], [5, 6]], Vectors.sparse(4, [1, 3], [1.5, 2.5])),
        ([], [], [[0, 0], [0, 0], [0, 1]], Vectors.dense([0.0, 0.0, 7.0, 8.0])),
        ([[]], [[3.0, 4.0], [5.0, 6.0]], [[9, 8], [7, 6], [5, 4]], Vectors.sparse(4, [], [])),
    ]
    ddl = "r array<array<int>>, p array<array<float>>, d array<array<int>>, s vector"
    types = [t.split() for t in ddl.split(", ")]
    schema = StructType([StructField(n, VectorUDT() if t == "vector" else _parse_datatype_string(t)) for n, t in types])
    df = spark.createDataFrame(rows, schema).coalesce(1)
    with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
        with pytest.raises(SchemaError, match="The size of the vectors in 's'"):
            cluster.feed(df, sparse=["s"])
        with pytest.raises(SchemaError, match="array of depth 2"):
            cluster.feed(df.select("d"), shapes={"d": (3, 2, 1)})
        cluster.feed(df, shapes={"p": (None, 2), "d": (3, 2), "s": 4}, sparse=["s"])
    (first, second), specs = cluster.results["worker", 0]
    for i, name in enumerate("rpd"):
        assert first[name] + second[name] == [row[i] for row in rows], name
    assert first["s"] + second["s"] == [row[3].toArray().tolist() for row in rows]
    assert specs == {
        "r": ("RaggedTensor", [1, None, None]),
        "p": ("RaggedTensor", [1, None, 2]),
        "d": ("EagerTensor", [1, 3, 2]),
        "s": ("SparseTensor", [1, 4]),
    }


def test_a_stream_is_one_dataset_that_ends_with_it(spark: Any, tmp_path: Path) -> None:
    def main(args: dict[str, Any], ctx: Any) -> list[list[int]]:
        return [batch["id"].numpy().tolist() for batch in ctx.stream(8)]

    source = str(tmp_path / "in")
    options = {"checkpointLocation": str(tmp_path / "checkpoint"), "trigger": {"availableNow": True}}
    seen: list[int] = []
    for begin in (0, 30):
        for part in range(3):
            df = spark.range(begin + 10 * part, begin + 10 * part + 10, 1, 1)
            df.write.mode("append").parquet(source)
        with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
            stream = spark.readStream.schema("id long").option("maxFilesPerTrigger", 1).parquet(source)
            query = cluster.feed_stream(stream, **options)
            assert query.awaitTermination(120) and query.exception() is None
        batches = cluster.results["worker", 0]
        assert [len(b) for b in batches] == [8, 8, 8, 6], "batches run across micro-batches"
        seen += [i for b in batches for i in b]
    assert sorted(seen) == list(range(60)), "a restarted stream goes on where it had stopped"


def test_wait_waits_for_a_stream(spark: Any, tmp_path: Path) -> None:
    def main(args: dict[str, Any], ctx: Any) -> list[int]:
        return [i for batch in ctx.stream(8) for i in batch["id"].numpy().tolist()]

    source = str(tmp_path / "in")
    spark.range(0, 40, 1, 4).write.parquet(source)
    stream = spark.readStream.schema("id long").option("maxFilesPerTrigger", 1).parquet(source)
    with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
        query = cluster.feed_stream(stream)
        with pytest.raises(TimeoutError):
            cluster.wait(0.5)
        query.processAllAvailable()
        query.stop()
    assert sorted(cluster.results["worker", 0]) == list(range(40))

    cluster = tfspark.Cluster(spark, main, {}, workers=1).start()
    cluster.feed_stream(stream, trigger={"availableNow": True})
    assert sorted(cluster.wait(120)["worker", 0]) == list(range(40))


@pytest.mark.parametrize("ended", [False, True], ids=["while it is waited for", "before"])
def test_a_stream_that_fails_fails_the_cluster(ended: bool, spark: Any, tmp_path: Path) -> None:
    def main(args: dict[str, Any], ctx: Any) -> int:
        return sum(1 for _ in ctx.stream(8))

    source = tmp_path / "in"
    source.mkdir()
    (source / "part-0.parquet").write_text("this is no Parquet file")
    stream = spark.readStream.schema("id long").parquet(str(source))
    cluster = tfspark.Cluster(spark, main, {}, workers=1).start()
    with pytest.raises(FeedError, match="stream that was fed has failed"), cluster:
        query = cluster.feed_stream(stream)
        if ended:
            with pytest.raises(StreamingQueryException):
                query.awaitTermination(60)
    assert not [t for t in threading.enumerate() if t.name == "tfspark-streams"]


def test_rows_of_a_stream_that_break_a_rule_are_named(spark: Any, tmp_path: Path) -> None:
    def main(args: dict[str, Any], ctx: Any) -> int:
        return sum(1 for _ in ctx.stream(8))

    spark.createDataFrame([(1,), (None,)], "id long").write.parquet(str(tmp_path / "in"))
    stream = spark.readStream.schema("id long").parquet(str(tmp_path / "in"))
    cluster = tfspark.Cluster(spark, main, {}, workers=1).start()
    query = cluster.feed_stream(stream)
    with pytest.raises(StreamingQueryException):
        query.awaitTermination(60)
    with pytest.raises(SchemaError, match=r"'id' holds 1 null\(s\)"):
        cluster.wait(60)


def test_a_node_that_fails_fails_the_stream(spark: Any, tmp_path: Path) -> None:
    def main(args: dict[str, Any], ctx: Any) -> None:
        next(iter(ctx.stream(4)))
        raise ValueError("the model has exploded")

    spark.range(20).write.parquet(str(tmp_path / "in"))
    stream = spark.readStream.schema("id long").option("maxFilesPerTrigger", 1).parquet(str(tmp_path / "in"))
    cluster = tfspark.Cluster(spark, main, {}, workers=1).start()
    query = cluster.feed_stream(stream)
    with pytest.raises(NodeFailed, match="the model has exploded"):
        cluster.wait(60)
    spark.range(20).write.mode("append").parquet(str(tmp_path / "in"))
    with pytest.raises(StreamingQueryException, match=r"exploded|worker 0|stopped"):
        query.awaitTermination(60)


def test_what_cannot_be_fed_is_refused(spark: Any) -> None:
    sc = spark.sparkContext
    with tfspark.Cluster(spark, collect, {}, workers=1) as cluster:
        for data, error, message in [
            ({"a": 1}, ConfigurationError, "not dict"),
            (sc.parallelize([], 1), FeedError, "The RDD has no rows"),
            (sc.parallelize([(None,)] * 3), SchemaError, "'_1' is null in the first 3 rows"),
            (sc.parallelize([(1,), ("a",)]), SchemaError, "'_1' have no common type"),
            (sc.parallelize([{"a": 1}, {"b": 1}]), SchemaError, "Not every row has the column 'a'"),
        ]:
            with pytest.raises(error, match=message):
                cluster.feed(data)
        with pytest.raises(SchemaError, match=r"\['nope'\], which are no columns"):
            cluster.feed(sc.parallelize([(1,)]), columns={"x": "nope"})
        with pytest.raises(ConfigurationError, match="takes a streaming DataFrame"):
            cluster.feed_stream(spark.range(1))
        cluster.feed(sc.parallelize([(1,)]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1,)] * 500 + [("x",)], "'_1' do not all fit int64"),
        ([np.zeros(2)] * 500 + [np.zeros(3)], "'value' holds arrays of shape"),
        ([{"a": 1}] * 500 + [{"b": 1}], "Not every row has the column 'a'"),
    ],
)
def test_rows_that_do_not_fit_fail_the_feed_by_name(spark: Any, rows: list[Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message), tfspark.Cluster(spark, collect, {}, workers=1) as cluster:
        cluster.feed(spark.sparkContext.parallelize(rows, 1))


@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(), st.lists(st.booleans())), min_size=1)
)
def test_rows_become_the_columns_that_they_hold(rows: list[tuple[Any, ...]]) -> None:
    columns = infer_columns(rows[:20])
    lists = next((r[3] for r in rows[:20] if r[3]), None)
    if lists is None and any(r[3] for r in rows):
        return
    table = pa.Table.from_batches(record_batches(iter(rows), columns))
    assert table.column_names == ["_1", "_2", "_3", "_4"]
    for name, values in zip(table.column_names, zip(*rows, strict=True), strict=True):
        np.testing.assert_equal(table[name].to_pylist(), list(values))


def test_epochs_see_the_same_rows_wherever_they_are_kept(spark: Any) -> None:
    def main(args: int, ctx: Any) -> Any:
        def read() -> list[int]:
            return sorted(i for b in ctx.dataset(16, shuffle=True) for i in b["id"].numpy())

        return [(ctx.fed_epochs, [read() for _ in range(3)]) for _ in range(args)]

    caches = ["disk", "memory", None]
    with tfspark.Cluster(spark, main, len(caches), workers=1) as cluster:
        for cache in caches:
            made = spark.sparkContext.accumulator(0)

            def count(batches: Any, made: Any = made) -> Any:
                for batch in batches:
                    made.add(batch.num_rows)
                    yield batch

            df = spark.range(0, 100, 1, 3).mapInArrow(count, "id long")
            report = cluster.feed(df, epochs=3, cache=cache)
            assert made.value == (300 if cache is None else 100)
            assert report.rows == (300 if cache is None else 100) and report.epochs == 3
        with pytest.raises(ConfigurationError, match="cache must be"):
            cluster.feed(df, cache="tape")
    assert cluster.results["worker", 0] == [(3, [list(range(100))] * 3)] * 3
