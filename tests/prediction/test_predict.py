"""`tfspark.predict` and `tfspark.predict_udf`: models over DataFrames."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.ml.linalg import Vectors

import tfspark
from tfspark.errors import ConfigurationError, SchemaError
from tfspark.prediction import loading
from tfspark.prediction.arrow_udf import arrow_udfs
from tfspark.prediction.batches import rebatched
from tfspark.prediction.model_source import EmbeddedModel, StoredModel, export_keras
from tfspark.prediction.tensors import shared_tensor
from tfspark.spark.home import is_spark_3
from tfspark.spark.internals import executed_plan


@pytest.fixture(scope="module")
def keras_model() -> Any:
    """Two inputs, one of strings, and two outputs."""
    import keras

    x = keras.Input((3,), name="x")
    word = keras.Input((1,), name="word", dtype="string")
    found = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot", name="lookup")(word)
    total = keras.layers.Dense(1, kernel_initializer="ones", name="total")(x)
    return keras.Model({"x": x, "word": word}, {"total": total, "which": found})


@pytest.fixture(scope="module")
def model_dir(keras_model: Any, tmp_path_factory: Any) -> str:
    base = tmp_path_factory.mktemp("model")
    # Keras 3.9 itself does not export a model whose inputs are in a dict.
    export_keras(keras_model, str(base / "1"))
    return str(base)


@pytest.fixture(scope="module")
def df(spark: Any) -> Any:
    columns = ["id", "array(float(id), 1f, 2d) as x", "if(id % 2 = 0, 'a', 'c') as word"]
    return spark.range(0, 100, 1, 2).selectExpr(*columns, "map('k', id) as untouched", "date'2020-01-01' as day")


def check(rows: list[Any]) -> None:
    assert [r.id for r in rows] == list(range(100))
    for r in rows:
        assert r.total == pytest.approx(r.id + 3)
        assert r.which == ([0, 1, 0] if r.word == "a" else [1, 0, 0])


@pytest.mark.parametrize("kind", ["directory", "version", "keras file", "keras model"])
def test_every_kind_of_model_predicts_and_other_columns_stay(
    kind: str, df: Any, keras_model: Any, model_dir: str, tmp_path: Path
) -> None:
    model = {"directory": model_dir, "version": Path(model_dir) / "1", "keras model": keras_model}.get(kind)
    if kind == "keras file":
        model = tmp_path / "m.keras"
        keras_model.save(model)
    found = tfspark.predict(df, model)
    assert found.columns == [*df.columns, "total", "which"]
    assert dict(found.dtypes)["total"] == "float" and dict(found.dtypes)["which"] == "array<bigint>"
    assert found.schema.fields[: len(df.columns)] == df.schema.fields
    rows = found.collect()
    check(rows)
    assert rows[7].untouched == {"k": 7}


def test_columns_are_mapped_and_outputs_chosen(df: Any, model_dir: str) -> None:
    renamed = df.withColumnRenamed("x", "the x").withColumnRenamed("word", "a.b")
    inputs = {"x": "the x", "word": "a.b"}
    found = tfspark.predict(renamed, model_dir, inputs=inputs, outputs={"total": "sum"}, batch_size=7)
    assert found.columns == [*renamed.columns, "sum"]
    assert [r["sum"] for r in found.collect()] == [i + 3 for i in range(100)]
    assert found.where("sum > 50").count() == 52
    assert len(found.limit(3).collect()) == 3
    assert found.select("day").distinct().count() == 1


@pytest.fixture(params=["slots", "arrow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How columns travel: in slots, or as where a session has none."""
    if request.param == "arrow":
        monkeypatch.setattr("tfspark.columns.sent.in_slots", lambda df: None)
    return str(request.param)


def operator(way: str, in_slots: str) -> str:
    """Return the operator that runs the model; without slots it is an Arrow UDF, where Spark has these."""
    return in_slots if way == "slots" else "ArrowEvalPython" if arrow_udfs() else "MapInArrow"


def test_only_columns_that_are_kept_are_there(df: Any, model_dir: str, way: str) -> None:
    beside = operator(way, "MapBeside")
    for keep in [["word", "id"], []]:
        found = tfspark.predict(df, model_dir, batch_size=7, keep=keep)
        assert found.columns == [*keep, "total", "which"]
        if way == "arrow" and arrow_udfs():
            assert beside not in executed_plan(found), "no rows wait for their predictions"
        assert sorted(r.total for r in found.collect()) == [i + 3 for i in range(100)]
    check(tfspark.predict(df, model_dir, keep=["id", "word"]).collect())

    # What is long, or may not be able to travel, stays.
    found = tfspark.predict(df, model_dir, batch_size=7, keep=["untouched", "id", "word", "x"])
    assert found.columns == ["untouched", "id", "word", "x", "total", "which"] and beside in executed_plan(found)
    rows = found.collect()
    check(rows)
    assert rows[7].untouched == {"k": 7} and rows[7].x == [7, 1, 2]

    odd = df.withColumnRenamed("id", "a.b`c").withColumnRenamed("day", "total")
    found = tfspark.predict(odd, model_dir, keep=(c for c in ["a.b`c"]))
    assert found.columns == ["a.b`c", "total", "which"]
    assert sorted((r[0], r.total) for r in found.collect()) == [(i, i + 3) for i in range(100)]

    for keep, message in [
        (["id", "nope"], r"keep refers to unknown columns \['nope'\]; the columns are \['id'"),
        ("id", "keep must be a list of columns"),
        (["id", "id"], "keep names a column more than once"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            tfspark.predict(df, model_dir, keep=keep)


def test_the_model_runs_once_per_row_also_when_its_result_is_filtered(df: Any, model_dir: str, way: str) -> None:
    found = tfspark.predict(df, model_dir, outputs=["total"]).where("total > 50")
    assert executed_plan(found).count(operator(way, "MapInArrow")) == 1
    assert found.count() == 52


@pytest.mark.parametrize("way", ["arrow"], indirect=True)
def test_the_way_of_spark_without_arrow_udfs_gives_the_same(
    df: Any, model_dir: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfspark.prediction.arrow_udf.arrow_udfs", lambda: False)
    found = tfspark.predict(df, model_dir, batch_size=7)
    assert "ArrowEvalPython" not in executed_plan(found)
    assert found.columns == [*df.columns, "total", "which"]
    check(found.collect())


def test_what_cannot_work_is_said_before_a_job_runs(df: Any, model_dir: str, tmp_path: Path, keras_model: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no SavedModel \(on .*\)"):
        tfspark.predict(df, tmp_path)
    with pytest.raises(ConfigurationError, match=r"The file .* does not exist"):
        tfspark.predict(df, tmp_path / "none.keras")
    (tmp_path / "bad.keras").write_bytes(b"no zip")
    with pytest.raises(ConfigurationError, match="Keras cannot load"):
        tfspark.predict(df, tmp_path / "bad.keras")
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ConfigurationError, match="Cannot read"):
        tfspark.predict(df, tmp_path)
    with pytest.raises(ConfigurationError, match="no signature 'other'"):
        tfspark.predict(df, model_dir, signature="other")
    with pytest.raises(ConfigurationError, match=r"needs \['word'\]"):
        tfspark.predict(df.drop("word"), model_dir)
    with pytest.raises(ConfigurationError, match=r"inputs refers to unknown inputs \['z'\]"):
        tfspark.predict(df, model_dir, inputs={"z": "x"})
    with pytest.raises(ConfigurationError, match=r"has the inputs \['word', 'x'\]"):
        tfspark.predict(df, model_dir, inputs="x")
    with pytest.raises(ConfigurationError, match=r"outputs refers to unknown outputs \['z'\]"):
        tfspark.predict(df, model_dir, outputs=["z"])
    with pytest.raises(ConfigurationError, match="column of its own"):
        tfspark.predict(df, model_dir, outputs={"total": "y", "which": "y"})
    with pytest.raises(ConfigurationError, match="have the same names as columns"):
        tfspark.predict(df, model_dir, outputs={"total": "id"})
    with pytest.raises(ConfigurationError, match="batch_size"):
        tfspark.predict(df, model_dir, batch_size=0)
    with pytest.raises(ConfigurationError, match="or a Keras model, got int"):
        tfspark.predict(df, 5)
    with pytest.raises(ConfigurationError, match="takes a Spark DataFrame"):
        tfspark.predict([1], model_dir)
    with pytest.raises(SchemaError, match=r"Input 'word' takes string, but the column 'id' holds int64"):
        tfspark.predict(df, model_dir, inputs={"word": "id"})
    with pytest.raises(SchemaError, match="'untouched'"):
        tfspark.predict(df, model_dir, inputs={"x": "untouched"})
    with pytest.raises(SchemaError, match="structs"):
        tfspark.predict(df.selectExpr("struct(x) as x", "word"), model_dir)

    import keras

    with pytest.raises(ConfigurationError, match="Call or fit it once"):
        tfspark.predict(df, keras.Sequential([keras.layers.Dense(1)]))


def test_bad_values_are_named_and_nulls_filled(spark: Any, model_dir: str) -> None:
    rows = spark.createDataFrame([([1.0, 2.0, 3.0], "a"), ([1.0, 2.0, 3.0], None)], "x array<double>, word string")
    with pytest.raises(PySparkException, match=r"'word' holds 1 null"):
        tfspark.predict(rows.coalesce(1), model_dir).collect()
    assert [r.which for r in tfspark.predict(rows, model_dir, fill={"word": "b"}).collect()] == [[0, 1, 0], [0, 0, 1]]
    short = rows.selectExpr("array(1d, 2d) as x", "'a' as word")
    with pytest.raises(PySparkException, match=r"an array of 2 values in row 0 of partition \d, .* shape \(3,\)"):
        tfspark.predict(short, model_dir).collect()


def test_vectors_of_spark_ml_are_inputs(spark: Any, model_dir: str) -> None:
    vectors = [(Vectors.dense(1.0, 2.0, 3.0), "a"), (Vectors.sparse(3, [1], [5.0]), "a")]
    found = tfspark.predict(spark.createDataFrame(vectors, ["v", "word"]), model_dir, inputs={"x": "v"}).collect()
    assert [r.total for r in found] == [6.0, 5.0]
    assert [r.v for r in found] == [v for v, _ in vectors]


@pytest.mark.parametrize("kind", ["arrow", "pandas"])
def test_the_udf_works_on_columns_and_in_sql(
    kind: str, spark: Any, df: Any, model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "pandas":
        monkeypatch.setattr("tfspark.prediction.udf.arrow_udfs", lambda: False)
    total = tfspark.predict_udf(model_dir, inputs=["x", "word"], outputs="total")
    assert [r.t for r in df.select(total("x", "word").alias("t")).collect()] == [i + 3 for i in range(100)]
    both = tfspark.predict_udf(model_dir, batch_size=8)
    spark.udf.register("both", both)
    df.createOrReplaceTempView("inputs_of_udf")
    rows = spark.sql("select p.* from (select both(struct(*)) as p from inputs_of_udf)").collect()
    assert [r.total for r in rows] == [i + 3 for i in range(100)] and rows[0].which == [0, 1, 0]
    assert spark.sql("select * from inputs_of_udf where both(word, x).total < 10").count() == 7
    with pytest.raises(PySparkException, match=r"takes 2 columns, \['word', 'x'\], but was called with 1"):
        df.select(both("x")).collect()
    with pytest.raises(ConfigurationError, match="inputs must be those of the model"):
        tfspark.predict_udf(model_dir, inputs=["x"])
    if kind == "pandas":
        with pytest.raises(PySparkException, match=r"Column 'x' holds 1 value\(s\) that are null or NaN"):
            nulls = df.selectExpr("transform(x, v -> if(v > 98, null, v)) as x", "word")
            nulls.select(total("x", "word")).collect()


def test_matrices_come_back_as_arrays_of_arrays_and_scalars_of_any_type_go_in(spark: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    class Table(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "n"), tf.TensorSpec([None, 2, 2], name="m")])
        def call(self, n: Any, m: Any) -> Any:
            many = tf.cast(n, tf.float32)[:, None, None] * m
            return {"m": many, "n": tf.cast(n, tf.uint8), "even": n % 2 == 0, "s": tf.strings.as_string(n)}

    module = Table()
    tf.saved_model.save(module, str(tmp_path / "table"), signatures={"times": module.call})
    df = spark.range(0, 5, 1, 1).selectExpr("id as n", "array(array(1d, 2d), array(3d, 4d)) as m")
    found = tfspark.predict(
        df, tmp_path / "table", signature="times", outputs={n: f"{n}_" for n in ("m", "n", "even", "s")}
    )
    assert dict(found.dtypes)["m_"] == "array<array<float>>"
    row = found.collect()[3]
    assert (row["m_"], row["n_"], row["even_"], bytes(row["s_"])) == ([[3, 6], [9, 12]], 3, False, b"3")
    flat = df.selectExpr("n", "flatten(m) as m")
    assert tfspark.predict(flat, tmp_path / "table", signature="times", outputs={"m": "y"}).collect()[2].y == [
        [2, 4],
        [6, 8],
    ]


@pytest.mark.parametrize(
    ("way", "element"),
    [("arrow", e) for e in ("float", "double", "int", "bigint")] + [("slots", "double")],
    indirect=["way"],
)
def test_long_arrays_travel_as_bytes_or_in_slots(way: str, element: str, spark: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    class Sums(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 5, 4], tf.float32, "x")])
        def sums(self, x: Any) -> Any:
            return {"first": x[:, 0, 0], "sum": tf.reduce_sum(x, [1, 2])}

    module = Sums()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"serving_default": module.sums})
    x = f"transform(sequence(1, 20), i -> cast(i * id as {element}))"
    df = spark.range(0, 50, 1, 2).selectExpr("id", f"{x} as x")
    found = tfspark.predict(df, tmp_path / "m", batch_size=9)
    # Spark 3.5 has no packed arrays.
    packed = "pythonmapinarrow" if is_spark_3() else "packedarray"
    assert {"slots": "slotrows", "arrow": packed}[way] in executed_plan(found).lower()
    assert [(r.first, r.sum) for r in found.select("first", "sum").collect()] == [(i, 210.0 * i) for i in range(50)]
    assert found.first().x == [0] * 20
    if element == "double":
        for odd, message in [
            (
                "if(id < 3, x, slice(x, 1, 19))",
                r"19 values in row \d of partition \d, but .* shape \(5, 4\), which need 20",
            ),
            ("if(id < 3, x, null)", "'x' holds .* null"),
            (
                "transform(x, v -> if(v = 40, null, v))",
                r"'x' holds (nulls inside .|. null\(s\) inside) (of )?its arrays",
            ),
        ]:
            with pytest.raises((PySparkException, Py4JJavaError), match=message):
                tfspark.predict(df.selectExpr("id", f"{odd} as x"), tmp_path / "m").collect()


def test_tensors_share_the_memory_of_aligned_numbers_and_do_not_change_it() -> None:
    import tensorflow as tf

    memory = np.zeros(2048, np.uint8)
    start = -memory.ctypes.data % 64
    floats = memory[start : start + 1024].view(np.float32)
    values = pa.Array.from_buffers(pa.float32(), 256, [None, pa.py_buffer(floats)])
    tensor = shared_tensor(values)
    floats[:] = 5
    assert (tensor.numpy() == 5).all()
    assert (tf.function(lambda x: tf.nn.relu(x * 2 + 1) - 3)(tensor).numpy() == 8).all()
    assert (floats == 5).all()
    for other in (values.slice(1), values.slice(0, 0), pa.array([True]), pa.array(["a"])):
        assert shared_tensor(other) is None


def test_a_model_is_loaded_once_per_process_and_again_when_it_changed(model_dir: str, tmp_path: Path) -> None:
    shutil.copytree(Path(model_dir) / "1", tmp_path / "m")
    call = loading.ModelCall(StoredModel(str(tmp_path / "m")))
    first = loading.function_of(call)
    assert loading.function_of(call) is first
    later = os.stat(tmp_path / "m" / "saved_model.pb").st_mtime_ns + 1
    os.utime(tmp_path / "m" / "saved_model.pb", ns=(later, later))
    assert loading.function_of(call) is not first
    packed = EmbeddedModel.of(str(tmp_path / "m"))
    assert packed.key == EmbeddedModel.of(model_dir + "/1").key
    assert loading.function_of(loading.ModelCall(packed)) is loading.function_of(loading.ModelCall(packed))


def test_a_python_worker_keeps_the_model_for_later_tasks(spark: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self) -> None:
            self.calls = tf.Variable(0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "id")])
        def count(self, id: Any) -> Any:
            return {"calls": tf.fill(tf.shape(id), self.calls.assign_add(1))}

    counter = Counter()
    tf.saved_model.save(counter, str(tmp_path / "m"), signatures={"serving_default": counter.count})
    found = tfspark.predict(spark.range(0, 4, 1, 2), tmp_path / "m")
    calls = [r.calls for _ in range(4) for r in found.collect()]
    # 8 tasks of one call each: had each loaded the model for itself, all would be the first call.
    assert max(calls) > 1 and calls.count(1) <= 2 * 4


@settings(deadline=None)
@given(st.lists(st.integers(0, 9)), st.integers(1, 7))
def test_batches_are_cut_and_joined_to_one_size(sizes: list[int], size: int) -> None:
    rows = np.arange(sum(sizes))
    ends = np.cumsum([0, *sizes])
    batches = [pa.RecordBatch.from_pydict({"x": rows[a:b]}) for a, b in itertools.pairwise(ends)]
    out = list(rebatched(batches, size))
    assert [x for b in out for x in b.column(0).to_pylist()] == rows.tolist()
    assert all(b.num_rows == size for b in out[:-1]) and all(0 < b.num_rows <= size for b in out)
