"""`tfspark.predict` on a newcomer's table: numbers of other types, arrays of any length, structs, names twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F

import tfspark
from tfspark.errors import SchemaError

FAILED = (PySparkException, Py4JJavaError)


def save(path: Path, fn: Any, *specs: Any) -> str:
    """Write a function of tensors as a SavedModel."""
    import tensorflow as tf

    module = tf.Module()
    module.fn = tf.function(fn, input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.fn})
    return str(path)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: Any) -> str:
    """A model of an int32, a uint8 and an array of 20 floats, and their sums."""
    import tensorflow as tf

    def fn(i: Any, u: Any, x: Any) -> Any:
        return {"sum": tf.cast(i + tf.cast(u, tf.int32), tf.float32) + tf.reduce_sum(x, 1)}

    specs = [tf.TensorSpec([None], tf.int32, "i"), tf.TensorSpec([None], tf.uint8, "u")]
    return save(tmp_path_factory.mktemp("numbers") / "1", fn, *specs, tf.TensorSpec([None, 20], tf.float32, "x"))


@pytest.fixture(scope="module")
def totals(tmp_path_factory: Any) -> str:
    """A model of rows of any length: their sum, and how long they are in the batch."""
    import tensorflow as tf

    def fn(x: Any) -> Any:
        return {"sum": tf.reduce_sum(x, 1), "length": tf.fill(tf.shape(x)[:1], tf.shape(x)[1])}

    return save(tmp_path_factory.mktemp("totals") / "1", fn, tf.TensorSpec([None, None], tf.float32, "x"))


@pytest.fixture(scope="module")
def table(spark: Any) -> Any:
    """Two partitions of five rows, whose columns are wider than the inputs."""
    return spark.range(0, 10, 1, 2).selectExpr("id", "id as i", "double(id) as u", "array_repeat(double(id), 20) as x")


def test_what_fits_is_cast(table: Any, numbers: str) -> None:
    assert [r["sum"] for r in tfspark.predict(table, numbers).collect()] == [22.0 * i for i in range(10)]


@pytest.mark.parametrize(
    ("column", "odd", "message"),
    [
        ("i", "3000000000L", "'i' holds 3000000000 in row 2 of partition 1, which the input 'i' of type int32 cannot"),
        ("u", "300D", "'u' holds 300.0 in row 2 of partition 1, which the input 'u' of type uint8 cannot hold"),
        ("u", "double('nan')", "'u' holds nan in row 2 of partition 1"),
        (
            "x",
            "array_append(array_repeat(1D, 19), -1e300D)",
            "'x' holds -1e.?300 in row 2 of partition 1, which (the input 'x' of type )?float32 cannot hold",
        ),
    ],
)
@pytest.mark.parametrize("keep", [None, ["id"]])
def test_a_number_that_does_not_fit_is_named_with_its_row(
    column: str, odd: str, message: str, keep: Any, table: Any, numbers: str
) -> None:
    rows = table.withColumn(column, F.expr(f"if(id = 7, {odd}, {column})"))
    with pytest.raises(FAILED, match=message):
        tfspark.predict(rows, numbers, batch_size=2, keep=keep).collect()


def test_all_columns_that_do_not_fit_are_named_at_once(spark: Any, table: Any, numbers: str) -> None:
    with pytest.raises(SchemaError, match=r"3 columns do not fit: .*needs \['x'\].*'i' takes int32.*string.*'u' .*map"):
        tfspark.predict(table.selectExpr("'a' as i", "map('a', 1) as u"), numbers)
    nulls = table.selectExpr("nullif(i, 3) as i", "nullif(u, 8D) as u", "x").coalesce(1)
    message = r"(?s)Columns .*'i' holds 1 null.*row 3 of.*'u' holds 1 null.*row 8.*fill=\{'i': value, 'u': value\}"
    with pytest.raises(FAILED, match=message):
        tfspark.predict(nulls, numbers).collect()
    with pytest.raises(FAILED, match=r"Pass fill=\{'i': value\} to predict\(\), or"):
        tfspark.predict(nulls.selectExpr("i", "1 as u", "x"), numbers).collect()
    with pytest.raises(SchemaError, match=r"fill refers to columns \['z'\] that are not inputs; the inputs are"):
        tfspark.predict(table, numbers, fill={"z": 1})


def test_nulls_are_filled_in_arrays_and_for_them(table: Any, numbers: str, totals: str) -> None:
    odd = table.selectExpr(
        "id", "i", "u", "if(id = 1, null, transform(x, (v, n) -> if(id = 2 and n < 2, null, v))) as x"
    )
    found = tfspark.predict(odd, numbers, fill={"x": 0.5}).collect()
    assert [r["sum"] for r in found[:4]] == [0, 2 + 20 * 0.5, 4 + 18 * 2 + 2 * 0.5, 66]
    with pytest.raises(FAILED, match=r"'x' holds 2 null\(s\) inside its arrays \(first: row 2 of partition 0"):
        tfspark.predict(odd, numbers, fill={"x": [0.5] * 20}).collect()
    found = tfspark.predict(odd.where("id <> 2"), numbers, fill={"x": [0.5] * 20}).collect()
    assert found[1]["sum"] == 2 + 20 * 0.5
    assert tfspark.predict(odd.where("id = 1"), totals, fill={"x": [1.0, 2.0]}).first()["sum"] == 3


def test_arrays_of_any_length_are_padded_however_rows_fall_into_partitions(spark: Any, totals: str) -> None:
    rows = spark.range(0, 12, 1, 3).selectExpr("id", "transform(sequence(0, id % 3), i -> float(1)) as x")
    for partitions in (1, 3, 5):
        found = tfspark.predict(rows.repartition(partitions), totals, batch_size=4).collect()
        assert {r.id: r["sum"] for r in found} == {i: i % 3 + 1 for i in range(12)}
    found = tfspark.predict(rows.coalesce(1), totals, padding_values={"x": 10}).collect()
    assert [r["sum"] for r in found[:3]] == [21, 12, 3] and {r.length for r in found} == {3}
    udf = tfspark.predict_udf(totals, outputs="sum", padding_values={"x": 10})
    assert [r[0] for r in rows.coalesce(1).select(udf("x")).take(3)] == [21, 12, 3]


def test_a_signature_that_takes_ragged_tensors_is_given_them(spark: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    def fn(x: Any, x_2: Any) -> Any:
        return {"mean": tf.reduce_mean(x, 1) + tf.cast(x_2, tf.float32), "twice": x * 2}

    ragged = tf.RaggedTensorSpec([None, None], tf.float32, ragged_rank=1)
    model = save(tmp_path / "m", fn, ragged, tf.TensorSpec([None], tf.int64, "x_2"))
    rows = spark.createDataFrame([([1.0, 3.0], 10), ([5.0], 20)], "x array<double>, x_2 long").coalesce(1)
    found = tfspark.predict(rows, model).collect()
    assert [(r.mean, r.twice) for r in found] == [(12, [2, 6]), (25, [10])]
    udf = tfspark.predict_udf(model, outputs="mean")
    assert [r[0] for r in rows.select(udf("x", "x_2")).collect()] == [12, 25]


def test_what_a_keras_model_masks_pads_its_rows(spark: Any, tmp_path: Path) -> None:
    import keras

    x = keras.Input((None, 1), name="x")
    y = keras.layers.GlobalAveragePooling1D(name="y")(keras.layers.Masking(-1.0)(x))
    model = keras.Model(x, y)
    model.save(tmp_path / "m.keras")
    rows = spark.createDataFrame([([0.0, 3.0],), ([6.0],)], "x array<float>").coalesce(1)
    for of in (model, tmp_path / "m.keras"):
        assert [r.y for r in tfspark.predict(rows, of, outputs="y").collect()] == [1.5, 6]
    assert [r.y for r in tfspark.predict(rows, model, outputs="y", padding_values={"x": 0}).collect()] == [1.5, 3]


def test_fields_of_structs_are_inputs(spark: Any, totals: str) -> None:
    rows = spark.createDataFrame(
        [(1, ((4.0, [1.0, 2.0]), "a"))], "id int, `a.b` struct<c: struct<d: float, x: array<float>>, e: string>"
    )
    assert tfspark.predict(rows, totals, inputs="a.b.c.x", outputs=["sum"]).first()["sum"] == 3
    for df in (rows, rows.selectExpr("`a.b` as s", "`a.b`.c as c")):
        with pytest.raises(SchemaError, match=r"needs \['s.c.y'\]"):
            tfspark.predict(df, totals, inputs="s.c.y")
    with pytest.raises(SchemaError, match=r"'c' holds structs(.|\n)*inputs=\{'x': 'c.d'\}"):
        tfspark.predict(rows.selectExpr("`a.b`.c as c"), totals, inputs="c")
    many = rows.selectExpr("array(named_struct('v', 1f), named_struct('v', 5f)) as s")
    assert tfspark.predict(many, totals, inputs="s.v").first()["sum"] == 6
    udf_order = tfspark.predict(rows, totals, inputs="a.b.c.x", keep=["id"])
    assert udf_order.columns == ["id", "length", "sum"] and udf_order.first()["sum"] == 3


def test_columns_that_are_not_inputs_may_repeat(spark: Any, totals: str, monkeypatch: Any) -> None:
    rows = spark.sql("select array(1f, 2f) as x, 2 as r, 3 as r, 4 as R")
    for _ in range(2):
        found = tfspark.predict(rows, totals, outputs={"sum": "y"})
        assert found.columns == ["x", "r", "r", "R", "y"] and tuple(found.first()) == ([1, 2], 2, 3, 4, 3)
        monkeypatch.setattr("tfspark.prediction.arrow_udf.arrow_udfs", lambda: False)
    found = tfspark.predict(rows, totals, keep=["R"])
    assert found.columns == ["R", "length", "sum"] and tuple(found.first()) == (4, 2, 3)
    with pytest.raises(SchemaError, match=r"\['r'\] are ambiguous: 2 columns of the DataFrame have this name"):
        tfspark.predict(rows, totals, keep=["r"])
    with pytest.raises(SchemaError, match=r"\['r'\] are ambiguous"):
        tfspark.predict(rows, totals, inputs="r")


def test_outputs_in_nested_dicts_are_columns(spark: Any) -> None:
    import keras

    x = keras.Input((2,), name="x")
    one, two = keras.layers.Dense(1, kernel_initializer="ones"), keras.layers.Dense(2, kernel_initializer="ones")
    model = keras.Model(x, {"a": one(x), "b": {"c": two(x), "d": {"e": x}}})
    rows = spark.sql("select array(1f, 2f) as x")
    found = tfspark.predict(rows, model)
    assert found.columns == ["x", "a", "b/c", "b/d/e"]
    assert tuple(found.first())[1:] == (3, [3, 3], [1, 2])
    assert tfspark.predict(rows, model, outputs={"b/c": "c"}).first().c == [3, 3]


def test_vectors_keep_their_doubles(spark: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    wide = save(tmp_path / "wide", lambda x: {"y": x[:, 0]}, tf.TensorSpec([None, 2], tf.float64, "x"))
    narrow = save(tmp_path / "narrow", lambda x: {"y": x[:, 0]}, tf.TensorSpec([None, 2], tf.float32, "x"))
    rows = spark.createDataFrame([(Vectors.dense(1e300, 0.1),)], ["x"])
    assert tfspark.predict(rows, wide).first().y == 1e300
    with pytest.raises(FAILED, match=r"'x' holds 1e\+300 in row 0 of partition \d+, which the input 'x' of type"):
        tfspark.predict(rows, narrow).collect()
