"""Measure how fast rows get from a cached DataFrame into TensorFlow.

A row has 784 float32 and an int label. Every round measures, one after another in the same Spark session:

- ``spark_drain``: Spark's own ``mapInArrow`` reads all rows and sends nothing, while nodes are idle: the upper limit,
- ``spark_defaults_drain``: the same with Spark's default size of Arrow batches,
- ``slots_drain``: the rows are written to slots of shared memory and counted, but not sent: the limit of Spark's side,
- ``feed_drain``: ``cluster.feed`` into a ``ctx.dataset`` that is read to its end,
- ``fit_fed`` and ``fit_memory``: a small Keras fit on the same rows fed, and on as many rows in memory,
- ``tensorflowonspark_drain``: TensorFlowOnSpark's feed of the same rows, read with its ``DataFeed.next_batch``, if
  it is installed (the ``bench`` extra) and the master has one executor per worker.

The output is one line of JSON per figure, on standard output. Times end when TensorFlow's side has read the last row.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import _common as common

if TYPE_CHECKING:
    import argparse

    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

NAME = "feed"
SHAPES = {"x": common.FEATURES}
WARM_UP_ROWS = 4096
"""Rows fed before the measurement, so that it does not include imports, tracing and the first connections."""


@dataclass
class Run:
    """The inputs of all measurements, and the seconds that they took."""

    spark: SparkSession
    df: DataFrame
    warm_up: DataFrame
    rows: int
    batch_size: int
    cache: str
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))


# --- what runs in the nodes


def drain(args: dict[str, Any], ctx: Any) -> list[tuple[int, float]]:
    """Read every epoch to its end, in a graph as ``model.fit`` does; return the rows and the end time of each epoch."""
    import tensorflow as tf

    def reader(dataset: tf.data.Dataset) -> Any:
        return tf.function(lambda: dataset.reduce(0, lambda n, batch: n + tf.shape(batch["label"])[0]))

    read, ends = None, []
    for epoch in ctx.epochs():
        read = read or reader(ctx.dataset(args["batch_size"]))
        ends.append((int(read()), time.time()))
        ctx.report(epoch, flush=True, phase=len(ends))
    return ends


def small_model(ctx: Any) -> Any:
    """Return the compiled model that both fits train."""
    import keras

    with ctx.strategy().scope():
        x = keras.Input((common.FEATURES,), name="x")
        hidden = keras.layers.Dense(64, activation="relu")(x)
        model = keras.Model({"x": x}, keras.layers.Dense(10)(hidden))
        # Without XLA, because its compilation of the last, shorter batch would take most of the measured time.
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer="adam", loss=loss, jit_compile=False)
    return model


def fit(args: dict[str, Any], ctx: Any) -> dict[str, float]:
    """Fit on fed rows and on rows in memory, in the order that `args` sets; warm up with a feed first."""
    import numpy as np
    import tensorflow as tf

    batch_size, rows = args["batch_size"], args["rows"] // ctx.num_workers
    rng = np.random.default_rng(ctx.index)
    x = rng.random((rows, common.FEATURES), dtype=np.float32)
    y = rng.integers(0, 10, rows, dtype=np.int32)
    model = small_model(ctx)
    out: dict[str, float] = {}

    def from_memory(n: int) -> None:
        dataset = tf.data.Dataset.from_tensor_slices(({"x": x[:n]}, y[:n])).batch(batch_size).prefetch(2)
        model.fit(dataset, verbose=0)

    def fed() -> None:
        ctx.fit(model, batch_size=batch_size, label="label")
        out["fed_end"] = time.time()

    def memory() -> None:
        began = time.time()
        from_memory(rows)
        out["memory_seconds"] = time.time() - began

    fed()
    from_memory(batch_size * 4)
    for phase, step in enumerate((memory, fed) if args["memory_first"] else (fed, memory), 1):
        ctx.report(0, flush=True, phase=phase)
        step()
    return out


def tfos_drain(args: dict[str, Any], ctx: Any) -> None:
    """Read all rows with TensorFlowOnSpark's own feed."""
    feed = ctx.get_data_feed(train_mode=True)
    while not feed.should_stop():
        feed.next_batch(args["batch_size"])


# --- what runs in the driver


def read_all(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Count rows for `measure_spark`; this is the cheapest use of them."""
    import pyarrow as pa

    rows = sum(b.num_rows for b in batches)
    yield pa.RecordBatch.from_pydict({"rows": pa.array([rows], pa.int64())})


def measure_spark(df: DataFrame, rows: int) -> float:
    """Return the seconds that Spark alone takes to pass all rows to Python."""
    began = time.time()
    counted = sum(r.rows for r in df.mapInArrow(read_all, "rows long").collect())
    seconds = time.time() - began
    expect(counted, rows)
    return seconds


def measure_spark_alone(df: DataFrame, rows: int) -> float:
    """Return the seconds of `measure_spark` with Spark's default size of Arrow batches."""
    with common.own_batches(df.sparkSession):
        return measure_spark(df, rows)


def measure_slots(df: DataFrame, rows: int) -> float:
    """Return the seconds that Spark takes to write all rows into slots, which a task opens and releases."""
    from tfspark.columns.sent import sent_frame

    sent = sent_frame(df, ())
    if sent.slots is None:
        raise RuntimeError("this session has no slots")
    began = time.time()
    counted = sum(r.rows for r in sent.map(read_all, "rows long").collect())
    seconds = time.time() - began
    expect(counted, rows)
    return seconds


def expect(counted: int, rows: int) -> None:
    """Raise if rows were lost, because the measurement is then not valid."""
    if counted != rows:
        raise RuntimeError(f"{counted} rows arrived of {rows}")


def in_phase(cluster: Any, phase: int) -> None:
    """Wait until all nodes have reached `phase`; raise if one has failed."""

    def arrived() -> bool:
        nodes = cluster.status()
        if any(n.state == "failed" for n in nodes):
            cluster.wait()
        return all(n.metrics.get("phase", 0) >= phase for n in nodes)

    common.wait_until(arrived, f"phase {phase}")


def measure_drain(run: Run, workers: int, turn: int) -> None:
    """Measure Spark alone and `cluster.feed` while the same nodes hold the same slots; rotate the order each turn."""
    import tfspark

    with tfspark.Cluster(run.spark, drain, {"batch_size": run.batch_size}, workers=workers, progress=False) as cluster:
        cluster.feed(run.warm_up, shapes=SHAPES)
        in_phase(cluster, 1)

        def alone() -> None:
            run.seconds["spark_drain", workers].append(measure_spark(run.df, run.rows))

        def alone_with_defaults() -> None:
            run.seconds["spark_defaults_drain", workers].append(measure_spark_alone(run.df, run.rows))

        def slots() -> None:
            run.seconds["slots_drain", workers].append(measure_slots(run.df, run.rows))

        def fed() -> None:
            began.append(time.time())
            report = cluster.feed(run.df, shapes=SHAPES, cache=run.cache)
            in_phase(cluster, 2)
            run.seconds["feed_delivered", workers].append(report.seconds)

        began: list[float] = []
        for step in common.in_turn([alone_with_defaults, alone, slots, fed], turn):
            step()
    ends = [result[-1] for result in cluster.results.values()]
    expect(sum(rows for rows, _ in ends), run.rows)
    run.seconds["feed_drain", workers].append(max(end for _, end in ends) - began[0])


def measure_fit(run: Run, workers: int, memory_first: bool) -> None:
    """Measure the same fit on fed rows and on rows in memory."""
    import tfspark

    args = {"batch_size": run.batch_size, "rows": run.rows, "memory_first": memory_first}
    with tfspark.Cluster(run.spark, fit, args, workers=workers, progress=False) as cluster:
        cluster.feed(run.warm_up, shapes=SHAPES)
        in_phase(cluster, 2 if memory_first else 1)
        began = time.time()
        expect(cluster.feed(run.df, shapes=SHAPES, cache=run.cache).rows, run.rows)
    results = cluster.results.values()
    run.seconds["fit_fed", workers].append(max(r["fed_end"] for r in results) - began)
    run.seconds["fit_memory", workers].append(max(r["memory_seconds"] for r in results))


def measure_tfos(run: Run, workers: int) -> None:
    """Measure TensorFlowOnSpark's feed: the time of its own call, which returns after all rows were consumed."""
    from tensorflowonspark import TFCluster

    sc = run.spark.sparkContext
    args = {"batch_size": run.batch_size}
    cluster = TFCluster.run(sc, tfos_drain, args, workers, 0, input_mode=TFCluster.InputMode.SPARK)
    cluster.train(run.warm_up.rdd.map(pair), num_epochs=1)
    began = time.time()
    cluster.train(run.df.rdd.map(pair), num_epochs=1)
    run.seconds["tensorflowonspark_drain", workers].append(time.time() - began)
    cluster.shutdown()


def pair(row: Any) -> tuple[list[float], int]:
    """Return a row as TensorFlowOnSpark's examples feed it."""
    return row.x, row.label


def tfos_workers(master: str) -> int:
    """Return the number of workers of TensorFlowOnSpark, which needs one per executor; 0 if it cannot run here."""
    if importlib.util.find_spec("tensorflowonspark") is None:
        print("tensorflowonspark is not installed (the bench extra): left out", file=sys.stderr)
        return 0
    cluster = re.match(r"local-cluster\[\s*(\d+)", master)
    if cluster:
        return int(cluster[1])
    if master.startswith("local"):
        return 1
    print("TensorFlowOnSpark is measured on local and local-cluster masters only: left out", file=sys.stderr)
    return 0


def show(run: Run, workers: Sequence[int]) -> None:
    """Print all figures, then their ratios."""
    for (name, n), seconds in sorted(run.seconds.items(), key=lambda item: (item[0][1], item[0][0])):
        more = {"workers": n, "rows": run.rows, "batch_size": run.batch_size, "seconds": [round(s, 3) for s in seconds]}
        common.figure(NAME, name, "rows/s", [run.rows / s for s in seconds], **more)
        megabytes = run.rows * common.ROW_BYTES / 1e6
        common.figure(NAME, name, "MB/s", [megabytes / s for s in seconds], **more)
    pairs = [
        ("feed_drain", "spark_drain"),
        ("feed_drain", "spark_defaults_drain"),
        ("slots_drain", "spark_defaults_drain"),
        ("fit_fed", "fit_memory"),
        ("feed_drain", "tensorflowonspark_drain"),
    ]
    for fast, slow in pairs:
        for n in sorted({n for _, n in run.seconds}):
            ours, theirs = run.seconds.get((fast, n)), run.seconds.get((slow, n))
            if ours and theirs:
                # Ratios are taken per round, because a busy machine slows both measurements of a round.
                ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
                common.figure(NAME, f"{fast}/{slow}", "ratio of rows/s", ratios, workers=n)


def measure(run: Run, options: argparse.Namespace) -> None:
    """Run all rounds."""
    tfos = tfos_workers(options.master) if "tfos" in options.parts else 0
    for r in range(options.rounds):
        for n in options.workers:
            print(f"round {r + 1} of {options.rounds}, {n} worker(s)", file=sys.stderr)
            if "drain" in options.parts:
                measure_drain(run, n, r)
            if "fit" in options.parts:
                measure_fit(run, n, memory_first=r % 2 == 1)
        if tfos:
            measure_tfos(run, tfos)


def main() -> None:
    """Measure and print."""
    parser = common.options(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows of 784 floats and a label")
    parser.add_argument("--partitions", type=int, default=8, help="partitions of the DataFrame")
    parser.add_argument("--batch-size", type=int, default=256, help="rows per batch and worker")
    parser.add_argument("--cache", choices=["disk", "memory"], default="disk", help="where workers keep the rows")
    parser.add_argument("--parts", nargs="+", default=["drain", "fit", "tfos"], choices=["drain", "fit", "tfos"])
    options = parser.parse_args()
    common.keep_stdout_for_figures()
    with common.session_of(options, "tfspark feed benchmark") as spark:
        df = common.cached_rows(spark, options.rows, options.partitions)
        warm_up = common.cached_rows(spark, WARM_UP_ROWS, options.partitions)
        common.surroundings(
            NAME, master=options.master, rows=options.rows, partitions=options.partitions, cache=options.cache
        )
        run = Run(spark, df, warm_up, options.rows, options.batch_size, options.cache)
        # Untimed passes, so that the JVM compiles the common code before the first measurement.
        for warming in (measure_spark_alone, measure_spark):
            warming(df, options.rows)
        measure(run, options)
        show(run, options.workers)


if __name__ == "__main__":
    main()
