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
from tfspark.columns.leaves import planned
from tfspark.columns.python_rows import infer_columns, record_batches
from tfspark.errors import ConfigurationError, FeedError, NodeFailed, SchemaError
from tfspark.feeding.sources import source_of
from tfspark.spark.home import is_spark_3


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
    other = spark.range(2).selectExpr("id i", "'z' s", "array(0D) x")
    one, *others = fed(spark, iter([frame, other]), shapes={"x": None})
    assert by(one, "i") == [(1, b"a", [1.0, 2.0]), (2, b"b", [1.0, 2.0]), (3, b"c", [1.0, 2.0])]
    assert [by(e, "i") for e in others] == [[(0, b"z", [0.0]), (1, b"z", [0.0])]]


def test_pandas_columns_of_arrays_of_two_dimensions_and_no_rows(spark: Any) -> None:
    frame = pd.DataFrame({"a": [np.full((2, 3), i, np.float32) for i in range(3)], "n": [1, 2, 3]})
    frame.loc[1, "a"] = None
    with pytest.raises(SchemaError, match="'a' holds 1 null"):
        fed(spark, frame)
    (epoch,) = fed(spark, frame.dropna())
    assert sorted(zip(epoch["n"], epoch["a"], strict=True)) == [(1, [[0.0] * 3] * 2), (3, [[2.0] * 3] * 2)]
    with pytest.raises(FeedError, match="The data has no rows"):
        fed(spark, frame.iloc[:0])


def test_an_epoch_that_is_left_early_is_skipped(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> list[int]:
        return [epoch for epoch in ctx.epochs() for _ in ctx.dataset(8).take(1)]

    with tfspark.Cluster(spark, main, workers=1) as cluster:
        # The spool holds a part of the rows.
        assert cluster.feed(spark.range(0, 40_000, 1, 8), epochs=3).rows == 40_000
    assert cluster.results["worker", 0] == [0, 1, 2]


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
        with pytest.raises(SchemaError, match=r"mask refers to unknown columns \['nope'\]"):
            cluster.feed(df, mask=["nope"])
        with pytest.raises(ConfigurationError, match="mask works for DataFrames"):
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
    with pytest.raises(FeedError, match="stream that feeds the cluster failed"), cluster:
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
            (sc.parallelize([{"a": 1}, {"b": 1}]), SchemaError, "Some rows lack the column 'a'"),
        ]:
            with pytest.raises(error, match=message):
                cluster.feed(data)
        with pytest.raises(SchemaError, match=r"unknown columns \['nope'\]; the columns are \['_1'\]"):
            cluster.feed(sc.parallelize([(1,)]), columns={"x": "nope"})
        with pytest.raises(ConfigurationError, match="takes a streaming DataFrame"):
            cluster.feed_stream(spark.range(1))
        cluster.feed(sc.parallelize([(1,)]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1,)] * 500 + [("x",)], "'_1' do not all fit int64"),
        ([np.zeros(2)] * 500 + [np.zeros(3)], "'value' holds arrays of double and shape"),
        ([np.zeros(2, int)] * 500 + [np.array([0.5, 0.9])], "an array of float64 holds values that do not fit"),
        ([(1,)] * 500 + [(0.5,)], "'_1' do not all fit int64"),
        ([{"a": 1}] * 500 + [{"b": 1}], "Some rows lack the column 'a'"),
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


@pytest.mark.unit
@pytest.mark.parametrize(
    ("rows", "dtype", "values"),
    [
        ([np.array([1, 2]), np.array([0.5, 0.9])], "double", [[1, 2], [0.5, 0.9]]),
        ([np.array([1], np.int32), np.array([2**40])], "int64", [[1], [2**40]]),
        ([np.array([1], np.uint8), np.array([-1], np.int8)], "int16", [[1], [-1]]),
        ([np.array([True]), np.array([2])], "int64", [[1], [2]]),
        ([np.array([1, 2]), np.array([0.5])], "list<item: double>", [[1, 2], [0.5]]),
        ([np.array([[1, 2]]), np.array([[3], [4]])], "list<item: list<item: int64>>", [[[1, 2]], [[3], [4]]]),
        ([np.array([1], ">i4")], "int32", [[1]]),
        ([np.array(["a"]), np.array(["bcd"])], "string", [["a"], ["bcd"]]),
        ([np.uint8(1), np.int64(-1)], "int64", [1, -1]),
    ],
)
def test_numpy_values_get_a_type_that_holds_all_of_them(rows: list[Any], dtype: str, values: list[Any]) -> None:
    columns = infer_columns(rows)
    assert str(columns[0].type) == dtype
    (batch,) = record_batches(rows, columns)
    assert batch.column(0).to_pylist() == values


@pytest.mark.unit
@pytest.mark.parametrize(
    ("first", "later"),
    [
        (np.array([1]), np.array([0.5])),
        (np.array([1], np.int32), np.array([2**40])),
        (np.array([1]), np.array([np.nan])),
        (np.array([1]), np.array([2**63], np.uint64)),
        (np.array([1], np.int8), np.array([255], np.uint8)),
        (np.array([1], np.uint8), np.array([-1])),
        (np.array([1.5]), np.array([2**53 + 1])),
        (np.array([1.5], np.float32), np.array([0.1])),
        (np.array([True]), np.array([2])),
        (np.array(["a"]), np.array([1])),
        (1, 0.5),
        (1, float("nan")),
        (1, True),
        (True, 2),
        ("a", 1),
        (0.5, 2**53 + 1),
        (np.float32(0.5), np.float64(0.1)),
        ([1], [0.5]),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_an_error(first: Any, later: Any) -> None:
    columns = infer_columns([{"x": first}])
    with pytest.raises(SchemaError, match="'x'"):
        list(record_batches([{"x": later}], columns))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("first", "later", "values"),
    [
        (np.array([1]), np.array([2.0]), [[2]]),
        (np.array([0.5]), np.array([2]), [[2.0]]),
        (np.array([0.5], np.float32), np.array([0.25, np.nan][:1]), [[0.25]]),
        (1, 2.0, [2]),
        (0.5, 2, [2.0]),
        ([1], [2.0], [[2]]),
    ],
)
def test_a_value_of_another_type_is_taken_if_it_is_the_same(first: Any, later: Any, values: list[Any]) -> None:
    columns = infer_columns([{"x": first}])
    (batch,) = record_batches([{"x": later}], columns)
    assert batch.column(0).to_pylist() == values


class DerivedFrame(pd.DataFrame):
    """A class of somebody's own."""


def test_pandas_columns_of_every_dtype(spark: Any) -> None:
    frame = DerivedFrame(
        {
            "u8": np.array([1, 255], np.uint8),
            "u32": pd.Series([1, 2**32 - 1], dtype="UInt32"),
            "f16": np.array([0.5, 2], np.float16),
            "b": pd.Series([True, False], dtype="boolean"),
            "s": pd.Series(["a", "b"], dtype="string"),
            "i": pd.Series([1, 2], dtype="int16[pyarrow]"),
            "n": pd.Series([1, None], dtype="Int64"),
            "l": pd.Series([[1], [2]], dtype=pd.ArrowDtype(pa.list_(pa.uint8()))),
            "a": [np.array([1, 2], np.uint8)] * 2,
            "c": pd.Categorical(["x", "y"]),
            "t": pd.to_datetime(["1970-01-02", "1970-01-03"]),
            "sp": pd.arrays.SparseArray([0, 1]),
        }
    )
    (epoch,) = fed(spark, frame, fill={"n": -1})
    order = sorted(range(2), key=lambda row: epoch["u8"][row])
    epoch = {k: [v[row] for row in order] for k, v in epoch.items()}
    assert {k: v for k, v in epoch.items() if k != "t"} == {
        "u8": [1, 255],
        "u32": [1, 2**32 - 1],
        "f16": [0.5, 2.0],
        "b": [True, False],
        "s": [b"a", b"b"],
        "i": [1, 2],
        "n": [1, -1],
        "l": [[1], [2]],
        "a": [[1, 2], [1, 2]],
        "c": [b"x", b"y"],
        "sp": [0, 1],
    }
    assert epoch["t"] == [86_400_000_000, 2 * 86_400_000_000]


def test_columns_that_cannot_be_told_apart_or_have_no_tensor_are_named(spark: Any) -> None:
    one = spark.range(1)
    # Spark 3.5 itself raises an error for the schema of such a DataFrame.
    intervals = () if is_spark_3() else (spark.sql("select make_interval(1) x"),)
    interval = pd.DataFrame({"x": pd.interval_range(0, 2), "y": [1, 2]})
    for data, message in [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"must be unique, but \['a'\] occur more than once"),
        (interval, "Column 'x' of the pandas DataFrame has dtype interval"),
        (pd.DataFrame({"x": pd.Series([2**63], dtype="uint64")}), "Column 'x' .*not in range"),
        (pd.DataFrame({"x": [1, "a"]}), "Column 'x' "),
        (pd.DataFrame({"x": pd.to_timedelta([1], unit="s")}), "Column 'x' has type duration.*cannot become a tensor"),
        (one.select("id", "id"), r"must be unique, but \['id'\] occur more than once"),
        (one.selectExpr("id", "1 as ID"), r"must be unique, but \['ID', 'id'\]"),
        (spark.sql("select interval 1 day x"), "Column 'x' has type duration.*cannot become a tensor"),
        (spark.sql("select interval 1 month x"), "Column 'x' has type interval month.*cannot become a tensor"),
        *((df, "Column 'x' has type interval.*cannot become a tensor") for df in intervals),
        (spark.sql("select named_struct('a', 1) s, 2 `s.a`"), r"\['s.a', 's.a'\] would be fed under one name"),
    ]:
        with pytest.raises(SchemaError, match=message):
            planned_of(spark, data)
    assert [c.name for c in planned_of(spark, interval, columns=["y"])] == ["y"]
    assert [c.name for c in planned_of(spark, one.selectExpr("id", "1 as ID", "2 as x"), columns=["x"])] == ["x"]


def test_names_with_dots_are_names_in_every_argument(spark: Any) -> None:
    df = spark.sql("select array(1, 2) `a.b`, named_struct('c.d', 1, 'e', array(1, 2)) s, int(null) `n.m`")
    rules: dict[str, Any] = {"shapes": {"a.b": 2, "s.e": None}, "fill": {"n.m": 7, "s.c.d": 2}, "mask": ["n.m"]}
    found = {c.label: c for c in planned_of(spark, df, **rules)}
    assert list(found) == ["a.b", "s.c.d", "s.e", "n.m", "n.m_mask"]
    assert found["a.b"].shape == (2,) and found["s.e"].ragged == 1 and not found["s.e"].open
    assert (found["n.m"].fill, found["s.c.d"].fill) == (7, 2)
    assert planned_of(spark, df, shapes={"s/e": 2})[2].shape == (2,)
    for rule in ({"shapes": {"x.y": 2}}, {"fill": {"x.y": 2}}, {"mask": ["x.y"]}, {"sparse": ["x.y"]}):
        with pytest.raises(SchemaError, match=r"unknown columns \['x.y'\]; the columns are \['a.b', 's.c.d', 's.e'"):
            planned_of(spark, df, **rule)
    with pytest.raises(SchemaError, match=r"shapes refers to \['n.m'\], which are not array columns"):
        planned_of(spark, df, shapes={"n.m": 2})
    for columns in ("a.b", ["a.b", "a.b"], [], [1]):
        with pytest.raises(SchemaError, match="columns must"):
            planned_of(spark, df, columns=columns)

    def main(args: Any, ctx: Any) -> Any:
        ((features, label),) = list(ctx.dataset(4, ["a.b", "s.e"], label="s.c.d"))
        return features["a.b"].numpy().tolist(), features["s"]["e"].to_list(), label.numpy().tolist()

    with pytest.raises(SchemaError, match=r"Column 'n.m' holds 1 null"), tfspark.Cluster(spark, main, workers=1) as c:
        c.feed(df)
    with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
        cluster.feed(df, **rules)
    assert cluster.results["worker", 0] == ([[1, 2]], [[1, 2]], [1])


def planned_of(spark: Any, data: Any, **rules: Any) -> tuple[Any, ...]:
    """Return the columns that some data would be fed as."""
    columns, mask, sparse = rules.pop("columns", None), rules.pop("mask", ()), rules.pop("sparse", ())
    source = source_of(spark, data, columns, mask, sparse)
    return planned(source.schema, source.shapes, rules.get("shapes"), rules.get("fill"), mask, sparse)


def test_arguments_of_feed_are_checked(spark: Any) -> None:
    with tfspark.Cluster(spark, collect, {}, workers=1) as cluster:
        for wrong in ({"seed": -1}, {"seed": "1"}, {"seed": True}, {"epochs": 1.5}, {"cache": "ram"}, {"name": 5}):
            with pytest.raises(ConfigurationError, match=next(iter(wrong))):
                cluster.feed(spark.range(1), **wrong)  # type: ignore[arg-type]
        cluster.feed(spark.range(1))


def test_a_stream_has_an_output_mode(spark: Any, tmp_path: Path) -> None:
    def main(args: Any, ctx: Any) -> dict[int, int]:
        return {int(k): int(n) for b in ctx.stream(8) for k, n in zip(b["k"], b["count"], strict=True)}

    spark.range(0, 10, 1, 1).selectExpr("id % 2 as k").write.parquet(str(tmp_path / "in"))
    counts = spark.readStream.schema("k long").parquet(str(tmp_path / "in")).groupBy("k").count()
    with tfspark.Cluster(spark, main, {}, workers=1) as cluster:
        where = str(tmp_path / "c")
        query = cluster.feed_stream(
            counts, outputMode="complete", checkpointLocation=where, trigger={"availableNow": True}
        )
        query.awaitTermination()
    assert cluster.results["worker", 0] == {0: 5, 1: 5}
