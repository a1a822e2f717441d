"""A cluster in a real Spark with real TensorFlow processes: start, feed, results, failure."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import tfspark
from tfspark.errors import ClusterStopped, ConfigurationError, FeedError, NodeFailed, ResourceError, SchemaError


def drain(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Read every fed epoch and say what came."""
    epochs = []
    dataset = ctx.dataset(args["batch_size"])
    for _ in ctx.epochs():
        ids, batches = [], 0
        for batch in dataset:
            ids += batch["id"].numpy().tolist()
            batches += 1
        epochs.append((ids, batches))
    spec = {k: (str(v.dtype), v.shape.as_list(), type(v).__name__) for k, v in dataset.element_spec.items()}
    return {"epochs": epochs, "spec": spec, "workers": ctx.num_workers, "chief": ctx.is_chief}


def test_rows_of_all_types_reach_the_workers_once_per_epoch(spark: Any) -> None:
    df = spark.range(0, 1000, 1, 7).selectExpr(
        "id",
        "cast(id as float) f",
        "cast(id as string) s",
        "array(1.0f, cast(id as float)) v",
        "sequence(0, id % 3) r",
    )
    with tfspark.Cluster(spark, drain, {"batch_size": 64}, workers=2) as cluster:
        report = cluster.feed(df, epochs=2, shapes={"v": 2})
    results = cluster.results
    assert report.rows == 1000
    assert set(results) == {("worker", 0), ("worker", 1)}
    assert [results["worker", i]["chief"] for i in (0, 1)] == [True, False]
    for epoch in (0, 1):
        ids = [i for r in results.values() for i in r["epochs"][epoch][0]]
        assert sorted(ids) == list(range(1000))
    for node, r in results.items():
        rows = report.rows_by_worker[node]
        assert [b for _, b in r["epochs"]] == [-(-rows // 64)] * 2, "only the last batch may be short"
    assert results["worker", 0]["spec"] == {
        "id": ("<dtype: 'int64'>", [None], "TensorSpec"),
        "f": ("<dtype: 'float32'>", [None], "TensorSpec"),
        "s": ("<dtype: 'string'>", [None], "TensorSpec"),
        "v": ("<dtype: 'float32'>", [None, 2], "TensorSpec"),
        "r": ("<dtype: 'int64'>", [None, None], "RaggedTensorSpec"),
    }


def test_a_failing_main_names_the_node_and_shows_its_traceback_and_last_lines(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        print("about to divide", flush=True)
        if ctx.index == 1:
            raise ZeroDivisionError("in main")
        while not ctx.stopping:
            ctx._link.stopping.wait(1)

    began = time.monotonic()
    with pytest.raises(NodeFailed) as caught:
        tfspark.run(spark, main, workers=2)
    error = caught.value
    assert (error.role, error.index) == ("worker", 1)
    assert "ZeroDivisionError: in main" in error.reason
    assert "raise ZeroDivisionError" in error.remote_traceback
    assert any("about to divide" in line for line in error.log_tail)
    assert time.monotonic() - began < 60
    assert not [t.name for t in threading.enumerate() if t.name.startswith("tfspark")]


def test_a_null_fails_the_feed_with_the_name_of_the_column(spark: Any) -> None:
    df = spark.range(10).selectExpr("id", "case when id = 3 then null else id end x")
    with (
        pytest.raises(SchemaError, match="'x' holds 1 null"),
        tfspark.Cluster(spark, drain, {"batch_size": 4}, workers=1) as c,
    ):
        c.feed(df)


def test_bad_feeds_are_refused(spark: Any) -> None:
    with tfspark.Cluster(spark, drain, {"batch_size": 4}, workers=1) as cluster:
        with pytest.raises(ConfigurationError, match="takes a Spark DataFrame"):
            cluster.feed([1, 2, 3])  # type: ignore[arg-type]
        with pytest.raises(SchemaError, match="'m'"):
            cluster.feed(spark.range(3).selectExpr("map('a', id) m"))
        with pytest.raises(ConfigurationError, match="epochs"):
            cluster.feed(spark.range(3), epochs=0)
        cluster.feed(spark.range(3))
    with pytest.raises(ClusterStopped):
        cluster.feed(spark.range(3))


def test_an_empty_dataframe_is_refused(spark: Any) -> None:
    with (
        pytest.raises(FeedError, match="no rows"),
        tfspark.Cluster(spark, drain, {"batch_size": 4}, workers=1) as cluster,
    ):
        cluster.feed(spark.range(0))


def test_a_partition_larger_than_the_spool_is_refused(spark: Any) -> None:
    df = spark.range(0, 100_000, 1, 1)
    with (
        pytest.raises(FeedError, match="does not fit the spool"),
        tfspark.Cluster(spark, drain, {"batch_size": 4}, workers=1, spool_bytes=1000) as cluster,
    ):
        cluster.feed(df)


def test_more_nodes_than_slots_is_refused_before_anything_is_launched(spark: Any) -> None:
    with pytest.raises(ResourceError, match=r"4 task slot\(s\), but 9 are needed") as caught:
        tfspark.run(spark, drain, workers=9)
    assert "local[9]" in str(caught.value)


def test_main_that_cannot_be_pickled_is_refused(spark: Any) -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        tfspark.Cluster(spark, lambda args, ctx: lock, workers=1)
