"""Measure how fast a model predicts over a cached DataFrame, compared with other ways and with the bare model.

The model is an MLP on 784 float32, as a SavedModel. Every round measures, one after another in the same Spark session:

- ``bare``: the model alone, in a separate process with one thread, on arrays in memory: the speed of one core,
- ``predict``: `tfspark.predict` with the columns to keep, ``predict_select``: `tfspark.predict` and then a ``select``,
  and ``predict_udf``: the function that SQL gets,
- ``spark_alone``: a ``mapInArrow`` that reads the same rows and predicts nothing: the upper limit that Spark sets,
- ``predict_batch_udf``: the function of ``pyspark.ml.functions``, with the same SavedModel, and
  ``predict_batch_udf_defaults``: the same with Spark's default size of Arrow batches,
- ``tensorflowonspark``: ``TFModel.transform`` on a part of the rows, if TensorFlowOnSpark is installed.

The output is one line of JSON per figure, on standard output. With Spark, times end when its ``noop`` sink has all
predictions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import _common as common

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

NAME = "predict"
BARE_SECONDS = 3.0
CLASSES = 10


@dataclass
class Run:
    """The inputs of all measurements, and the rows per second that they measured."""

    spark: SparkSession
    df: DataFrame
    few: DataFrame
    model: str
    batch_size: int
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def write_model(hidden: list[int], directory: str) -> None:
    """Write the model; runs in a separate process, because Spark's driver needs no TensorFlow."""
    import keras

    x = keras.Input((common.FEATURES,), name="x")
    h = x
    for units in hidden:
        h = keras.layers.Dense(units, activation="relu")(h)
    keras.Model(x, keras.layers.Dense(CLASSES, activation="softmax")(h)).export(directory, verbose=False)


def bare(directory: str, batch_size: int) -> float:
    """Return the rows per second of the model alone, with one thread."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(directory)
    call = loaded.signatures["serving_default"]
    x = np.random.default_rng(0).random((16 * batch_size, common.FEATURES), dtype=np.float32)
    batches = [x[i : i + batch_size] for i in range(0, len(x), batch_size)]
    for b in batches:
        call(x=tf.constant(b))
    began, rows = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < BARE_SECONDS:
        for b in batches:
            rows += len(call(x=tf.constant(b))["output_0"].numpy())
    return rows / seconds


def in_process(call: str) -> str:
    """Run an expression of this module in a separate process; return the last line that it printed."""
    program = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); import predict\n{call}"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def timed(df: DataFrame) -> float:
    """Return the seconds until all rows are predicted."""
    began = time.perf_counter()
    df.write.format("noop").mode("overwrite").save()
    return time.perf_counter() - began


def by_predict(run: Run) -> Callable[[DataFrame], DataFrame]:
    """Return a function that uses `tfspark.predict` with the columns to keep besides the predictions."""
    import tfspark

    return lambda df: tfspark.predict(df, run.model, batch_size=run.batch_size, outputs="y", keep=["label"])


def by_select(run: Run) -> Callable[[DataFrame], DataFrame]:
    """Return a function that uses `tfspark.predict` and then selects columns."""
    import tfspark

    return lambda df: tfspark.predict(df, run.model, batch_size=run.batch_size, outputs="y").select("label", "y")


def by_udf(run: Run) -> Callable[[DataFrame], DataFrame]:
    """Return a function that uses `tfspark.predict_udf`."""
    import tfspark

    udf = tfspark.predict_udf(run.model, batch_size=run.batch_size)
    return lambda df: df.select("label", udf("x").alias("y"))


def by_spark(run: Run) -> Callable[[DataFrame], DataFrame]:
    """Return a function that only passes the inputs to Python, packed as by `tfspark.predict`, and returns labels."""
    from tfspark.columns.packed_arrays import packed_columns
    from tfspark.columns.spec import ColumnSpec

    def labels(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch.select(["label"])

    def way(df: DataFrame) -> DataFrame:
        columns, _ = packed_columns(df, {"x": df["x"]}, [ColumnSpec("x", "float32", (common.FEATURES,))])
        return df.select("label", columns["x"].alias("x")).mapInArrow(labels, "label int")

    return way


def by_batch_udf(run: Run) -> Callable[[DataFrame], DataFrame]:
    """Return a function that uses Spark's own ``predict_batch_udf``."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import ArrayType, FloatType

    model = run.model

    def make_predict() -> Any:
        import tensorflow as tf

        loaded = tf.saved_model.load(model)

        def call(x: Any) -> Any:
            # The signature is looked up here, so that the function keeps the model alive.
            return loaded.signatures["serving_default"](x=tf.constant(x))["output_0"].numpy()

        return call

    shape = [[common.FEATURES]]
    udf = predict_batch_udf(
        make_predict, return_type=ArrayType(FloatType()), batch_size=run.batch_size, input_tensor_shapes=shape
    )
    return lambda df: df.select("label", udf("x").alias("y"))


def by_tfos(run: Run) -> Callable[[DataFrame], DataFrame]:
    """Return a function that uses TensorFlowOnSpark's pipeline."""
    from tensorflowonspark.pipeline import TFModel

    model = TFModel({})
    model.setInputMapping({"x": "x"}).setOutputMapping({"output_0": "y"}).setBatchSize(run.batch_size)
    model.setExportDir(run.model).setSignatureDefKey("serving_default").setTagSet("serve")
    return model.transform


def measure(run: Run, name: str, way: Callable[[DataFrame], DataFrame], df: DataFrame, rows: int) -> None:
    """Measure one way once."""
    with common.own_batches(run.spark) if name.endswith("_defaults") else contextlib.nullcontext():
        run.rates[name].append(rows / timed(way(df)))


def cores_of(master: str) -> int:
    """Return the number of cores on which the tasks of a local master run."""
    slots = {"local": r"local\[(\d+)", "local-cluster": r"local-cluster\[\s*(\d+)\s*,\s*(\d+)"}
    found = re.match(slots["local-cluster"], master) or re.match(slots["local"], master)
    asked = 1 if found is None else int(found[1]) * int(found.groups()[1] if len(found.groups()) > 1 else 1)
    return min(asked, os.cpu_count() or 1)


def show(run: Run, cores: int, options: Any) -> None:
    """Print all figures, then their ratios."""
    more = {"rows": options.rows, "batch_size": options.batch_size, "hidden": options.hidden, "cores": cores}
    for name, rates in run.rates.items():
        common.figure(NAME, name, "rows/s", rates, **more)
    ratios = {
        "predict/bare per core": ("predict", "bare", cores),
        "predict/spark_alone": ("predict", "spark_alone", 1),
        "predict/predict_batch_udf": ("predict", "predict_batch_udf", 1),
        "predict/predict_batch_udf_defaults": ("predict", "predict_batch_udf_defaults", 1),
        "predict_select/predict_batch_udf": ("predict_select", "predict_batch_udf", 1),
        "predict_udf/predict_batch_udf": ("predict_udf", "predict_batch_udf", 1),
        "predict/tensorflowonspark": ("predict", "tensorflowonspark", 1),
    }
    for title, (a, b, divisor) in ratios.items():
        if a in run.rates and b in run.rates:
            pairs = zip(run.rates[a], run.rates[b], strict=False)
            common.figure(NAME, title, "ratio", [x / y / divisor for x, y in pairs], **more)


def main() -> None:
    """Measure and print."""
    parser = common.options(__doc__.splitlines()[0], master="local[2]")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of 784 floats and a label")
    parser.add_argument("--tfos-rows", type=int, default=4_000, help="rows for TensorFlowOnSpark; 0 leaves it out")
    parser.add_argument("--partitions", type=int, default=8, help="partitions of the DataFrame")
    parser.add_argument("--batch-size", type=int, default=1024, help="rows per call of the model")
    parser.add_argument("--hidden", type=int, nargs="*", default=[128], help="units of the model's hidden layers")
    options = parser.parse_args()
    common.keep_stdout_for_figures()
    with tempfile.TemporaryDirectory(prefix="tfspark-bench-") as model:
        in_process(f"predict.write_model({json.dumps(options.hidden)}, {model!r})")
        with common.session_of(options, "tfspark predict benchmark") as spark:
            df = common.cached_rows(spark, options.rows, options.partitions)
            few = common.cached_rows(spark, max(options.tfos_rows, 1), 2)
            cores = cores_of(options.master)
            common.surroundings(NAME, master=options.master, rows=options.rows, partitions=options.partitions)
            run = Run(spark, df, few, model, options.batch_size)
            ways = {"predict": by_predict(run), "predict_select": by_select(run), "predict_udf": by_udf(run)}
            ways |= {
                "spark_alone": by_spark(run),
                "predict_batch_udf": by_batch_udf(run),
                "predict_batch_udf_defaults": by_batch_udf(run),
            }
            # The first use of each way is not timed: Python workers start and import TensorFlow; the JVM compiles.
            for name, way in ways.items():
                measure(run, name, way, df, options.rows)
            run.rates.clear()
            tfos = importlib.util.find_spec("tensorflowonspark") is not None and options.tfos_rows > 0
            if tfos:
                timed(by_tfos(run)(few))
            for r in range(options.rounds):
                run.rates["bare"].append(float(in_process(f"print(predict.bare({model!r}, {options.batch_size}))")))
                for name in common.in_turn(list(ways), r):
                    measure(run, name, ways[name], df, options.rows)
                if tfos:
                    measure(run, "tensorflowonspark", by_tfos(run), few, options.tfos_rows)
            show(run, cores, options)


if __name__ == "__main__":
    main()
