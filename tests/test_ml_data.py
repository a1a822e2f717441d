"""What an Estimator makes of a DataFrame before it is fed."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import functions as F

from tfspark.errors import ConfigurationError, SchemaError
from tfspark.ml.data import WEIGHT, balanced, shapes_of, split_frames, with_weights


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
    with pytest.raises(SchemaError, match="1 of 2 rows have no weight: column 'w' is null"):
        with_weights(df.selectExpr("if(id = 1, null, w) as w"), "w")
    with pytest.raises(ConfigurationError, match="weights of the rows average 0"):
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


def test_shapes_are_those_of_the_first_row(spark: Any) -> None:
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.linalg import Vectors

    df = spark.createDataFrame(
        [(1.0, "s", [1.0, 2.0], [[1, 2, 3], [4, 5, 6]], Vectors.dense([1, 2, 3, 4]))],
        ["x", "s", "a", "m", "v"],
    )
    df = VectorAssembler(inputCols=["x"], outputCol="assembled").transform(df)
    found = shapes_of(df, df.columns, {"a": [None]})
    # A VectorAssembler notes the size, and feeding knows it from there.
    assert found == {"a": [None], "m": (2, 3), "v": (4,)}
    with pytest.raises(ConfigurationError, match=r"shapes names \['z'\], which are not fed"):
        shapes_of(df, ["a"], {"z": 3})
    nothing = df.where("x < 0")
    assert shapes_of(nothing, ["a"], {}) == {}
    with pytest.raises(SchemaError, match="first row of column 'a' is null"):
        shapes_of(df.withColumn("a", F.lit(None).cast("array<double>")), ["a"], {})
    with pytest.raises(SchemaError, match="empty array"):
        shapes_of(df.withColumn("a", F.array().cast("array<double>")), ["a"], {})
