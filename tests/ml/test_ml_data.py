"""What an Estimator makes of a DataFrame before it is fed."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import functions as F

from tfspark.errors import ConfigurationError, SchemaError
from tfspark.ml.data import WEIGHT, balanced, fed_frame, fed_shapes, split_frames, with_weights
from tfspark.ml.labels import check_label_types, class_counts
from tfspark.ml.plan import BatchPlan


def test_balanced_weights_give_each_label_the_same_weight(spark: Any) -> None:
    df = spark.createDataFrame([(0, 1.0)] * 6 + [(1, 1.0)] * 2 + [(2, 4.0)], "label int, w float")
    assert balanced(df, F.lit(1.0), "label") == {0.0: 0.5, 1.0: 1.5, 2.0: 3.0}
    rows = with_weights(df, "w", "label", "balanced").groupBy("label").agg(F.sum(WEIGHT).alias("w"))
    assert [r.w for r in rows.collect()] == pytest.approx([3.0] * 3)
    found = with_weights(df, None, "label", {1: 3}).orderBy("label").collect()
    assert [r[WEIGHT] for r in found] == pytest.approx([9 / 13] * 6 + [27 / 13] * 2 + [9 / 13])


def test_weights_are_one_on_average_and_there_for_every_row(spark: Any) -> None:
    df = spark.createDataFrame([(1, 2.0), (2, 6.0)], "id int, w double")
    assert [r[WEIGHT] for r in with_weights(df, "w").orderBy("id").collect()] == [0.5, 1.5]
    assert with_weights(df.where("id > 2"), "w").collect() == []
    with pytest.raises(SchemaError, match="Column 'w' is null in 1 of 2 rows, so that they have no weight"):
        with_weights(df.selectExpr("if(id = 1, null, w) as w"), "w")
    with pytest.raises(ConfigurationError, match="average weight of the rows must be > 0, got 0"):
        with_weights(df.selectExpr("id - id as w"), "w")


def test_no_row_is_trained_on_and_validated_with(spark: Any) -> None:
    df = spark.range(0, 1000, 1, 3).selectExpr("id", "id % 10 = 0 as held", "if(id % 2 = 0, null, true) as odd")
    with split_frames(df, ["id"], None, 0.3, seed=4) as frames:
        ids = [{r.id for r in f.collect()} for f in (frames.training, frames.validation)]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == set(range(1000))
    assert 230 < len(ids[1]) < 370
    with split_frames(df, ["id", "id"], "held", 0.0, seed=0) as frames:
        assert frames.training.columns == ["id"]
        assert sorted(r.id for r in frames.validation.collect()) == list(range(0, 1000, 10))
        assert frames.training.count() == 900
    # A row of which nobody knows is trained on.
    with split_frames(df, ["id"], "odd", 0.0, seed=0) as frames:
        assert (frames.training.count(), frames.validation.count()) == (500, 500)
    with split_frames(df, ["id"], None, 0.0, seed=0) as frames:
        assert frames.validation is None


def test_only_shapes_that_are_declared_or_left_open_are_known_before_rows_are_seen(spark: Any) -> None:
    df = spark.sql("select 1d as x, array(1d, 2d) as a, array(array(1, 2, 3), array(4, 5, 6)) as m")
    assert fed_shapes(df, df.columns, {}, ()) == {}
    assert fed_shapes(df, df.columns, {"a": [None]}, ["m", "x"]) == {"a": [None], "m": [None, None]}
    assert fed_shapes(df, ["a"], {"a": 2}, ["a", "m"]) == {"a": 2}
    with pytest.raises(ConfigurationError, match=r"shapes refers to columns \['z'\] that are not fed"):
        fed_shapes(df, ["a"], {"z": 3}, ())


def test_labels_that_are_no_numbers_are_refused_by_their_type(spark: Any) -> None:
    df = spark.range(2).selectExpr(
        "id as n", "id % 2 = 0 as b", "cast(id as decimal(10,2)) as d", "array(array(1.0)) as a", "string(id) as s",
        "array('x') as sa", "current_date() as t", "current_timestamp() as ts", "null as nothing", "map('k', 1) as m",
        "named_struct('x', 1) as st",
    )  # fmt: skip
    check_label_types(df, "labelCol", ["n", "b", "d", "a"])
    with pytest.raises(SchemaError, match="labelCol names column 's' of type string, but labels must be numbers") as e:
        check_label_types(df, "labelCol", ["s"])
    assert e.value.hint is not None and "StringIndexer(inputCol='s'" in e.value.hint
    for column, kind in (("sa", "array<string>"), ("t", "date"), ("ts", "timestamp"), ("nothing", "void")):
        with pytest.raises(SchemaError, match=f"labelCols names column '{column}' of type {kind}"):
            check_label_types(df, "labelCols", ["n", column])
    for column in ("m", "st"):
        with pytest.raises(SchemaError, match=f"column '{column}' of type"):
            check_label_types(df, "labelCol", [column])


def test_a_string_indexer_tells_how_many_classes_a_label_has(spark: Any) -> None:
    from pyspark.ml.feature import StringIndexer

    df = spark.createDataFrame([("a", 0.0), ("b", 1.0), ("c", 1.0)], "kind string, plain double")
    df = StringIndexer(inputCol="kind", outputCol="label").fit(df).transform(df)
    counted = df.withColumn("n", F.col("plain").alias("n", metadata={"ml_attr": {"type": "nominal", "num_vals": 7}}))
    assert class_counts(counted, ["label", "plain", "n"]) == {"label": 3, "n": 7}


def test_columns_with_dots_are_fed_without(spark: Any) -> None:
    df = spark.createDataFrame([(1.0, 2.0, 3.0)], ["a.b", "a/b", "c"])
    plan = BatchPlan({"x": "a.b"}, "c", "w.w", padding={"a.b": -1.0}, classes={"c.d": 2})
    assert plan.as_fed() == BatchPlan({"x": "a/b"}, "c", "w/w", padding={"a/b": -1.0}, classes={"c/d": 2})
    assert fed_frame(df, ["a.b", "c"]).columns == ["a/b", "c"]
    with pytest.raises(SchemaError, match=r"Columns \['a\.b', 'a/b'\] have the same name"):
        fed_frame(df, ["a.b", "a/b"])
