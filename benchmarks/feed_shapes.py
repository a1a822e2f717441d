"""Measure how fast rows of different shapes are fed to TensorFlow, replayed, and answered by workers that serve.

For each shape, every round in the same Spark session measures:

- ``spark_drain``: Spark's own ``mapInArrow`` reads all rows and sends nothing, while nodes are idle, with the batches
  of ``tfspark.session``, and ``spark_defaults_drain``: the same with Spark's default batches,
- ``feed_drain``: ``cluster.feed`` until a ``ctx.dataset`` has been read to its end,
- ``replay``: an epoch from the rows that the worker has kept; the median of the epochs after the first,
- ``predict``: ``cluster.predict`` with an identity function, until Spark has counted the answers,
- ``tensorflowonspark_inference``: ``TFCluster.inference`` of the same rows, if it is installed (784 floats only).

A first round is not counted: the JVM compiles what it runs. The output is one line of JSON per figure, on standard
output.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import _common as common
from feed import drain, expect, in_phase, measure_spark, measure_spark_alone

if TYPE_CHECKING:
    import argparse

    import numpy as np
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

NAME = "feed_shapes"
WARM_UP_ROWS = 2048
EPOCHS = 5

Maker = Callable[["np.random.Generator", int], dict[str, "pa.Array"]]


@dataclass
class Shape:
    """One kind of rows.

    Attributes
    ----------
    make
        Makes the columns for a number of rows.
    ddl
        Spark types of the columns.
    shapes
        The argument `shapes` of ``predict``, and of ``feed`` if `declared`; else the first rows determine the shapes
        of ``feed``.
    rows
        Number of rows to feed by default.
    """

    make: Maker
    ddl: str
    rows: int
    shapes: dict[str, int] = field(default_factory=dict)
    declared: bool = False
    answer: str = "answer int"

    @property
    def fed_shapes(self) -> dict[str, int] | None:
        """The argument `shapes` of ``feed``."""
        return self.shapes if self.declared else None


def _floats(rng: np.random.Generator, n: int) -> dict[str, pa.Array]:
    import numpy as np
    import pyarrow as pa

    x = pa.array(rng.random(n * common.FEATURES, dtype=np.float32))
    return {"x": pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * common.FEATURES), x)}


def _scalars(rng: np.random.Generator, n: int) -> dict[str, pa.Array]:
    import numpy as np
    import pyarrow as pa

    floats = {f"f{i}": pa.array(rng.random(n, dtype=np.float32)) for i in range(20)}
    ints = {f"i{i}": pa.array(rng.integers(0, 1000, n, np.int64)) for i in range(10)}
    return floats | ints | {f"d{i}": pa.array(rng.random(n)) for i in range(10)}


def _strings(rng: np.random.Generator, n: int) -> dict[str, pa.Array]:
    import numpy as np
    import pyarrow as pa

    words = pa.array([f"{i:08x}" for i in range(5000)])
    strings = {f"s{i}": words.take(pa.array(rng.integers(0, 5000, n))) for i in range(26)}
    return strings | {f"f{i}": pa.array(rng.random(n, dtype=np.float32)) for i in range(13)}


def _ragged(rng: np.random.Generator, n: int) -> dict[str, pa.Array]:
    import numpy as np
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 100, n))]).astype(np.int32)
    return {"x": pa.ListArray.from_arrays(pa.array(offsets), pa.array(rng.integers(0, 10**6, offsets[-1], np.int64)))}


def _lists(rng: np.random.Generator, n: int) -> dict[str, pa.Array]:
    import numpy as np
    import pyarrow as pa

    values = pa.array(rng.integers(0, 10**6, n * 50, np.int64))
    return {"x": pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * 50), values)}


def _binaries(rng: np.random.Generator, n: int) -> dict[str, pa.Array]:
    import pyarrow as pa

    return {"x": pa.array([rng.bytes(75_000) for _ in range(n)], pa.binary())}


SHAPES = {
    "784 floats": Shape(_floats, "x array<float>", 300_000, {"x": common.FEATURES}),
    "784 floats, declared": Shape(_floats, "x array<float>", 300_000, {"x": common.FEATURES}, declared=True),
    "40 scalars": Shape(
        _scalars,
        ", ".join(
            [
                *[f"f{i} float" for i in range(20)],
                *[f"i{i} long" for i in range(10)],
                *[f"d{i} double" for i in range(10)],
            ]
        ),
        400_000,
    ),
    "26 strings, 13 floats": Shape(
        _strings, ", ".join([*[f"s{i} string" for i in range(26)], *[f"f{i} float" for i in range(13)]]), 400_000
    ),
    "50 ints": Shape(_lists, "x array<long>", 200_000, {"x": 50}),
    "50 ints, declared": Shape(_lists, "x array<long>", 200_000, {"x": 50}, declared=True),
    "int lists": Shape(_ragged, "x array<long>", 400_000),
    "75 KB binaries": Shape(_binaries, "x binary", 6_000),
}


def rows_of(spark: SparkSession, shape: Shape, rows: int, partitions: int) -> DataFrame:
    """Return a cached DataFrame of the shape's columns and an int ``label``, already computed."""

    def make(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import numpy as np
        import pyarrow as pa

        for batch in batches:
            ids = batch.column(0).to_numpy()
            for start in range(0, len(ids), 1000):
                part = ids[start : start + 1000]
                columns = shape.make(np.random.default_rng(int(part[0])), len(part))
                yield pa.RecordBatch.from_pydict({**columns, "label": pa.array((part % 10).astype(np.int32))})

    df = spark.range(0, rows, 1, partitions).mapInArrow(make, f"{shape.ddl}, label int").cache()
    expect(df.count(), rows)
    return df


def serve(args: Any, ctx: Any) -> None:
    """Answer each row with its label."""
    ctx.serve(lambda batch: batch["label"])


def measure(spark: SparkSession, name: str, options: argparse.Namespace, seconds: dict[str, list[float]]) -> int:
    """Measure one shape."""
    import tfspark

    shape = SHAPES[name]
    rows = max(WARM_UP_ROWS, int(shape.rows * options.scale))
    df = rows_of(spark, shape, rows, options.partitions)
    warm_up = rows_of(spark, shape, min(WARM_UP_ROWS, rows), options.partitions)
    args = {"batch_size": options.batch_size}
    for r in range(options.rounds + 1):
        print(f"{name}: round {r} of {options.rounds}", file=sys.stderr)
        with tfspark.Cluster(spark, drain, args, workers=1, spool_bytes=4 << 30, progress=False) as cluster:
            cluster.feed(warm_up, shapes=shape.fed_shapes)
            in_phase(cluster, 1)
            seconds["spark_defaults_drain"].append(measure_spark_alone(df, rows))
            seconds["spark_drain"].append(measure_spark(df, rows))
            began = time.time()
            cluster.feed(df, shapes=shape.fed_shapes, epochs=EPOCHS, cache="memory")
        ends = cluster.results["worker", 0][1:]
        expect(sum(n for n, _ in ends), rows * EPOCHS)
        seconds["feed_drain"].append(ends[0][1] - began)
        seconds["replay"].append(statistics.median(b[1] - a[1] for a, b in itertools.pairwise(ends)))
        with tfspark.Cluster(spark, serve, workers=1, progress=False) as cluster:
            asked = {"outputs": shape.answer, "shapes": shape.shapes, "batch_size": 4096}
            count = f"count({shape.answer.split()[0]})"
            cluster.predict(warm_up, **asked).selectExpr(count).collect()
            began = time.time()
            expect(cluster.predict(df, **asked).selectExpr(count).collect()[0][0], rows)
            seconds["predict"].append(time.time() - began)
    for taken in seconds.values():
        del taken[0]
    if name == "784 floats" and importlib.util.find_spec("tensorflowonspark"):
        seconds["tensorflowonspark_inference"].append(infer_with_tfos(spark, df.limit(10_000).cache(), rows / 10_000))
    df.unpersist()
    return rows


def tfos_identity(args: Any, ctx: Any) -> None:
    """Answer each row with its label, as TensorFlowOnSpark's examples do."""
    feed = ctx.get_data_feed(train_mode=False)
    while not feed.should_stop():
        batch = feed.next_batch(256)
        if batch:
            feed.batch_results([row[1] for row in batch])


def infer_with_tfos(spark: SparkSession, df: DataFrame, share: float) -> float:
    """Return the seconds of TensorFlowOnSpark's inference of all rows: the seconds for `df`, times `share`."""
    from tensorflowonspark import TFCluster

    rdd = df.repartition(2).rdd.map(lambda row: (row.x, row.label)).cache()
    rows = rdd.count()
    cluster = TFCluster.run(spark.sparkContext, tfos_identity, {}, 2, 0, input_mode=TFCluster.InputMode.SPARK)
    began = time.time()
    expect(cluster.inference(rdd).count(), rows)
    seconds = (time.time() - began) * share
    cluster.shutdown()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = common.options(__doc__.splitlines()[0], workers=[1])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of rows")
    parser.add_argument("--partitions", type=int, default=8, help="partitions of the DataFrame")
    parser.add_argument("--batch-size", type=int, default=256, help="rows per batch")
    options = parser.parse_args()
    common.keep_stdout_for_figures()
    with common.session_of(options, "tfspark feed shapes benchmark") as spark:
        spark.sparkContext.addPyFile(str(common.Path(__file__).with_name("feed.py")))
        spark.sparkContext.addPyFile(__file__)
        common.surroundings(NAME, master=options.master, scale=options.scale)
        for name in options.shapes:
            seconds: dict[str, list[float]] = defaultdict(list)
            rows = measure(spark, name, options, seconds)
            for what, taken in seconds.items():
                common.figure(NAME, what, "rows/s", [rows / s for s in taken], shape=name, rows=rows)
            for what, base in itertools.product(("feed_drain", "predict"), ("spark_drain", "spark_defaults_drain")):
                ratios = [c / s for c, s in zip(seconds[base], seconds[what], strict=True)]
                common.figure(NAME, f"{what}/{base}", "ratio of rows/s", ratios, shape=name)
            if seconds.get("tensorflowonspark_inference"):
                peer = seconds["tensorflowonspark_inference"][0]
                ratios = [peer / s for s in seconds["predict"]]
                common.figure(NAME, "predict/tensorflowonspark_inference", "ratio of rows/s", ratios, shape=name)


if __name__ == "__main__":
    main()
