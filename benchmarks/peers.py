"""Compare tfspark with other libraries: the same jobs, through each library's own interface, in one table.

- Libraries: TensorFlowOnSpark 2.2.5 through its own API, and the same programs on `tfspark.compat`; elephas 7.3;
  Spark's `predict_batch_udf`; `tf.data` alone in one process.
- Jobs: start, stop, feed, a fit fed from Spark, inference, TFRecord files written and read, lines of user code.
- The seconds of a fit and of inference begin when `main` has been entered, and end before the cluster is stopped. A
  library without a cluster does the job with a few rows first, so that its processes have imported TensorFlow.
- Libraries that need minutes for all rows get `--slow-rows`.

Figures go to standard output as JSON lines; the table goes to docs/performance.md, with the versions and the machine.
Libraries that are not installed are left out, and a message names them. To install them:

    pip install --no-deps tensorflowonspark==2.2.5 elephas==7.3.0
    pip install flask
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.util
import inspect
import io
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import tokenize
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import _common as common

NAME = "peers"
BATCH = 256
PARTITIONS = 4
OUTPUT = "output_0"
"""Keras 3's name for the only output of an exported model."""
OURS = "tfspark"
TFOS = "TensorFlowOnSpark"
COMPAT = "its programs on tfspark"
BEGIN, END = "<!-- peers -->", "<!-- end of peers -->"
MARK = "# measuring"
"""Ends a line of a job that only the measurement needs, and that is not counted as user code."""
FEW_ROWS = 1024
JOB_SECONDS = 300.0
"""A job that takes more seconds than this counts as hung."""
REPORT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


@dataclass
class Run:
    """The inputs of all measurements, and their results.

    Attributes
    ----------
    spark
        The Spark session of the round.
    frames
        The cached rows of the round, by number of rows.
    seconds
        Seconds by job and library, one value for each round.
    errors
        Why a library cannot do a job here, by job and library.
    """

    spark: Any
    frames: dict[int, Any]
    rows: int
    slow_rows: int
    directory: str
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[tuple[str, str], str] = field(default_factory=dict)

    @contextlib.contextmanager
    def clock(self, job: str, library: str) -> Iterator[None]:
        """Measure the seconds of a block."""
        began = time.time()
        yield
        self.seconds[job, library].append(time.time() - began)

    def rows_of(self, job: str, library: str) -> int:
        """Return the number of rows with which a library does a job."""
        return self.slow_rows if library in SLOW and job in SLOW_JOBS else self.rows

    @property
    def entered(self) -> str:
        """Return the path of the file that `main` makes when it is entered."""
        return os.path.join(self.directory, "entered")


def announce(path: str) -> None:
    """Make a file that says how far `main` is."""
    Path(path).touch()


def await_file(path: str) -> None:
    """Wait until `main` has made a file, and remove it."""
    common.wait_until(lambda: os.path.exists(path), f"the file {path} of main")
    os.remove(path)


def build_model() -> Any:
    """Return the model of all fits, with layers of 784, 64 and 10 units."""
    import keras

    x = keras.Input((common.FEATURES,), name="x")
    model = keras.Model(x, keras.layers.Dense(10, name="scores")(keras.layers.Dense(64, activation="relu")(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, jit_compile=False)
    return model


def pair(row: Any) -> tuple[list[float], int]:
    """Return a row as TensorFlowOnSpark's examples feed it."""
    return row.x, row.label


# --- fit fed from Spark, once for each library, as a user writes it; a generator stops before and after the work


def fit_tfspark(spark: Any, df: Any, entered: str) -> Iterator[None]:
    def main(args: Any, ctx: Any) -> None:
        announce(entered)  # measuring
        with ctx.strategy().scope():
            model = build_model()
        ctx.fit(model, batch_size=BATCH, label="label")

    import tfspark

    with tfspark.Cluster(spark, main, workers=1, progress=False) as cluster:
        await_file(entered)  # measuring
        yield  # measuring
        cluster.feed(df, shapes={"x": common.FEATURES})
    yield  # measuring


def fit_tensorflowonspark(spark: Any, df: Any, entered: str, package: str = "tensorflowonspark") -> Iterator[None]:
    def main(args: Any, ctx: Any) -> None:
        announce(entered)  # measuring
        import numpy as np

        model = build_model()
        feed = ctx.get_data_feed()
        while not feed.should_stop():
            batch = feed.next_batch(BATCH)
            if batch:
                model.train_on_batch(np.array([x for x, _ in batch], np.float32), np.array([y for _, y in batch]))

    TFCluster = importlib.import_module(f"{package}.TFCluster")
    cluster = TFCluster.run(spark.sparkContext, main, {}, 1, 0, input_mode=TFCluster.InputMode.SPARK)
    await_file(entered)  # measuring
    yield  # measuring
    cluster.train(df.rdd.map(pair), num_epochs=1)
    yield  # measuring
    cluster.shutdown()


def fit_elephas(spark: Any, df: Any) -> None:
    import numpy as np
    from elephas.spark_model import SparkModel

    rdd = df.rdd.map(lambda row: (np.array(row.x, np.float32), row.label)).repartition(1)
    model = SparkModel(build_model(), frequency="epoch", mode="synchronous")
    model.fit(rdd, epochs=1, batch_size=BATCH, verbose=0, validation_split=0.0)


def fit_tf_data(spark: Any, df: Any) -> None:
    import numpy as np
    import tensorflow as tf

    table = df.toArrow()
    x = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, common.FEATURES)
    y = np.asarray(table["label"])
    build_model().fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).prefetch(2), verbose=0)


# --- inference with a SavedModel, or its .keras file


def infer_tfspark(spark: Any, df: Any, model: str) -> int:
    import tfspark

    return int(tfspark.predict(df, model).selectExpr(f"sum(size({OUTPUT}))").first()[0])


def infer_tensorflowonspark(
    spark: Any, df: Any, entered: str, model: str, package: str = "tensorflowonspark"
) -> Generator[None, None, int]:
    def main(args: Any, ctx: Any) -> None:
        announce(entered)
        import numpy as np
        import tensorflow as tf

        loaded = tf.saved_model.load(model)
        predict = loaded.signatures["serving_default"]
        feed = ctx.get_data_feed(train_mode=False)
        while not feed.should_stop():
            batch = feed.next_batch(1024)
            if batch:
                feed.batch_results(predict(x=np.array(batch, np.float32))[OUTPUT].numpy().tolist())

    TFCluster = importlib.import_module(f"{package}.TFCluster")
    cluster = TFCluster.run(spark.sparkContext, main, {}, 1, 0, input_mode=TFCluster.InputMode.SPARK)
    await_file(entered)
    yield
    values = cluster.inference(df.rdd.map(lambda row: row.x)).map(len).sum()
    yield
    cluster.shutdown()
    return int(values)


def infer_predict_batch_udf(spark: Any, df: Any, model: str) -> int:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import ArrayType, FloatType

    def make() -> Callable[[Any], Any]:
        import tensorflow as tf

        loaded = tf.saved_model.load(model)
        predict = loaded.signatures["serving_default"]
        return lambda x: (loaded, predict(x=tf.constant(x))[OUTPUT].numpy())[1]

    scores = predict_batch_udf(
        make, return_type=ArrayType(FloatType()), batch_size=4096, input_tensor_shapes=[[common.FEATURES]]
    )
    return int(df.select(scores("x").alias(OUTPUT)).selectExpr(f"sum(size({OUTPUT}))").first()[0])


def infer_elephas(spark: Any, df: Any, model: str) -> int:
    import keras
    import numpy as np
    from elephas.spark_model import SparkModel

    rdd = df.rdd.map(lambda row: np.array(row.x, np.float32))
    found = SparkModel(keras.models.load_model(f"{model}.keras"), mode="synchronous").predict(rdd)
    return int(np.asarray(found).size)


# --- TFRecord files


def write_tfspark(spark: Any, df: Any, path: str) -> None:
    df.write.format("tfrecord").save(path)


def write_tensorflowonspark(spark: Any, df: Any, path: str) -> None:
    from tensorflowonspark import dfutil

    # The jar that dfutil names is built for older versions of Spark; the file format is not the slow part.
    df.rdd.mapPartitions(dfutil.toTFExample(df.dtypes)).saveAsNewAPIHadoopFile(
        path, "tfspark.tfrecord.TFRecordOutputFormat",
        keyClass="org.apache.hadoop.io.BytesWritable", valueClass="org.apache.hadoop.io.NullWritable",
    )  # fmt: skip


def read_tfspark(spark: Any, path: str) -> int:
    df = spark.read.format("tfrecord").load(path)
    return int(df.selectExpr("sum(size(x)) + sum(label) - sum(label)").first()[0])


def read_tensorflowonspark(spark: Any, path: str) -> int:
    from tensorflowonspark import dfutil

    records = spark.sparkContext.newAPIHadoopFile(
        path, "tfspark.tfrecord.TFRecordInputFormat",
        "org.apache.hadoop.io.BytesWritable", "org.apache.hadoop.io.NullWritable",
    )  # fmt: skip
    return int(records.mapPartitions(dfutil.fromTFExample).map(lambda row: len(row.x)).sum())


def read_tf_data(spark: Any, path: str) -> int:
    import tensorflow as tf

    features = {
        "x": tf.io.FixedLenFeature([common.FEATURES], tf.float32),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    files = tf.data.Dataset.list_files(f"{path}/part-*", shuffle=False)
    batches = tf.data.TFRecordDataset(files).batch(1024).map(lambda batch: tf.io.parse_example(batch, features))
    return sum(int(tf.size(batch["x"])) for batch in batches)


# --- lifecycle and feeding


def lifecycle_tfspark(run: Run) -> None:
    import tfspark

    entered, drained = run.entered, os.path.join(run.directory, "drained")

    def main(args: Any, ctx: Any) -> None:
        announce(entered)
        for _ in ctx.epochs():
            for _ in ctx.dataset(BATCH):
                pass
            announce(drained)

    with run.clock("start", OURS):
        cluster = tfspark.Cluster(run.spark, main, workers=1, progress=False).start()
        await_file(entered)
    # The first feed starts Spark's Python workers.
    cluster.feed(run.frames[FEW_ROWS], shapes={"x": common.FEATURES})
    await_file(drained)
    with run.clock("feed", OURS):
        cluster.feed(run.frames[run.rows], shapes={"x": common.FEATURES})
        await_file(drained)
    with run.clock("stop", OURS):
        cluster.wait()


def lifecycle_tensorflowonspark(run: Run, peer: str = TFOS, package: str = "tensorflowonspark") -> None:
    TFCluster = importlib.import_module(f"{package}.TFCluster")
    entered, rows = run.entered, run.rows_of("feed", peer)

    def main(args: Any, ctx: Any) -> None:
        announce(entered)
        feed = ctx.get_data_feed()
        while not feed.should_stop():
            feed.next_batch(BATCH)

    with run.clock("start", peer):
        cluster = TFCluster.run(run.spark.sparkContext, main, {}, 1, 0, input_mode=TFCluster.InputMode.SPARK)
        await_file(entered)
    cluster.train(run.frames[FEW_ROWS].rdd.map(pair), num_epochs=1)
    with run.clock("feed", peer):
        cluster.train(run.frames[rows].rdd.map(pair), num_epochs=1)
    with run.clock("stop", peer):
        cluster.shutdown()


# --- all jobs and libraries

PEERS = {TFOS: "tensorflowonspark", "elephas": "elephas"}
ON_OURS = "tfspark.compat.tensorflowonspark"
SLOW = {TFOS, COMPAT, "elephas"}
SLOW_JOBS = {"feed", "fit", "inference"}

LIFECYCLES: dict[str, Callable[[Run], None]] = {
    OURS: lifecycle_tfspark,
    TFOS: lifecycle_tensorflowonspark,
    COMPAT: partial(lifecycle_tensorflowonspark, peer=COMPAT, package=ON_OURS),
}
FITS: dict[str, Callable[..., None]] = {
    OURS: fit_tfspark,
    TFOS: fit_tensorflowonspark,
    COMPAT: partial(fit_tensorflowonspark, package=ON_OURS),
    "elephas": fit_elephas,
    "tf.data alone": fit_tf_data,
}
INFERENCES: dict[str, Callable[..., int]] = {
    OURS: infer_tfspark,
    TFOS: infer_tensorflowonspark,
    COMPAT: partial(infer_tensorflowonspark, package=ON_OURS),
    "predict_batch_udf": infer_predict_batch_udf,
    "elephas": infer_elephas,
}
WRITES = {OURS: write_tfspark, TFOS: write_tensorflowonspark}
READS = {OURS: read_tfspark, TFOS: read_tensorflowonspark, "tf.data alone": read_tf_data}

JOBS = {
    "start": ("start of a cluster, until main runs", "s"),
    "stop": ("stop of a cluster", "s"),
    "feed": ("feed, read and dropped", "rows/s"),
    "fit": ("fit fed from Spark", "rows/s"),
    "inference": ("inference", "rows/s"),
    "write": ("TFRecord files written", "rows/s"),
    "read": ("TFRecord files read and summed", "rows/s"),
    "lines": ("lines of user code of the fit", "lines"),
}


def code_lines(function: Callable[..., Any]) -> int:
    """Count the lines of a function that hold code, without those that only the measurement needs."""
    lines = set()
    source = [line for line in inspect.getsource(function).splitlines() if not line.endswith(MARK)]
    for token in tokenize.generate_tokens(io.StringIO("\n".join(source)).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines) - 1  # The line of the def itself is not the user's.


def attempt(run: Run, job: str, library: str, measure: Callable[[], None]) -> None:
    """Measure a job, or record why a library cannot do it; a job that failed once is not repeated."""
    if (job, library) in run.errors:
        return
    print(f"{job}: {library}", file=sys.stderr)
    try:
        with time_limit(JOB_SECONDS):
            measure()
    except BaseException as e:
        if library == OURS or isinstance(e, KeyboardInterrupt):
            raise
        run.spark.sparkContext.cancelAllJobs()
        run.errors[job, library] = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:200]


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the main thread if the block takes longer than `seconds`."""

    def overdue(*_: Any) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} s")

    # Not with SIGALRM, because TensorFlowOnSpark sets its own alarm.
    before = signal.signal(signal.SIGUSR2, overdue)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR2))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR2, before)


def in_turn(ways: dict[str, Any], libraries: set[str], r: int) -> list[tuple[str, Any]]:
    """Return the available libraries, rotated by the round."""
    return common.in_turn([(library, way) for library, way in ways.items() if library in libraries], r)


def one_round(run: Run, libraries: set[str], model: str, r: int) -> None:
    """Measure all jobs once; for each job, one library after the other."""
    spark = run.spark
    for library, lifecycle in in_turn(LIFECYCLES, libraries, r):
        attempt(run, "start", library, lambda f=lifecycle: f(run))
    for library, fit in in_turn(FITS, libraries, r):
        attempt(run, "fit", library, lambda f=fit, n=library: work(run, "fit", n, f))
    for library, infer in in_turn(INFERENCES, libraries, r):
        attempt(
            run, "inference", library,
            lambda f=infer, n=library: check(work(run, "inference", n, f, model), run.rows_of("inference", n) * 10),
        )  # fmt: skip
    for library, write in in_turn(WRITES, libraries, r):
        path = os.path.join(run.directory, f"records-{library}")
        shutil.rmtree(path, ignore_errors=True)
        attempt(
            run,
            "write",
            library,
            lambda f=write, n=library, p=path: timed(run, "write", n, f, spark, run.frames[run.rows], p),
        )
    path = os.path.join(run.directory, f"records-{OURS}")
    for library, read in in_turn(READS, libraries, r):
        attempt(
            run, "read", library,
            lambda f=read, n=library: check(timed(run, "read", n, f, spark, path), run.rows * common.FEATURES),
        )  # fmt: skip


def timed(run: Run, job: str, library: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function and record its seconds."""
    with run.clock(job, library):
        return function(*args)


def work(run: Run, job: str, library: str, way: Callable[..., Any], *args: Any) -> Any:
    """Do a job with the library's rows; record the seconds without those of the library's start and stop."""
    df = run.frames[run.rows_of(job, library)]
    if not inspect.isgeneratorfunction(way):
        way(run.spark, run.frames[FEW_ROWS], *args)
        return timed(run, job, library, way, run.spark, df, *args)
    steps = way(run.spark, df, run.entered, *args)
    next(steps)
    with run.clock(job, library):
        next(steps)
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise RuntimeError(f"{job} of {library} has more than two stops")


def check(found: int, expected: int) -> None:
    """Raise if values were lost, because the measurement is then not valid."""
    if found != expected:
        raise RuntimeError(f"{found} values came back of {expected}")


@dataclass(frozen=True)
class Result:
    """The figure of a job and a library; a ratio above 1 means that tfspark is better."""

    job: str
    library: str
    unit: str
    rows: int
    rounds: list[float]
    ratio: float

    @property
    def shown(self) -> list[str]:
        """Return the cells of the table."""
        value = statistics.median(self.rounds)
        shown = f"{value:,.0f}" if value >= 100 or self.unit == "lines" else f"{value:.2f}"
        rows = f"{self.rows:,}" if self.unit == "rows/s" else ""
        return [JOBS[self.job][0], self.library, rows, f"{shown} {self.unit}", f"{self.ratio:.2f}"]


def summary(run: Run) -> list[Result]:
    """Return the figures of all jobs and libraries."""
    found = []
    for job, (_, unit) in JOBS.items():
        for (_, library), seconds in [item for item in run.seconds.items() if item[0][0] == job]:
            rows = run.rows_of(job, library)
            # As many seconds as all rows would take at the same rate.
            same = [run.rows / rows * s for s in seconds]
            ratios = [theirs / own for theirs, own in zip(same, run.seconds[job, OURS], strict=False)]
            rounds = [rows / s for s in seconds] if unit == "rows/s" else seconds
            found.append(Result(job, library, unit, rows, rounds, statistics.median(ratios)))
    return found


def write_report(run: Run, options: Any) -> None:
    """Write the table, and all facts that are needed to judge it, between the marks in the page."""
    import tfspark

    names = ["pyspark", "tensorflow", "tensorflow-cpu", "keras", "pyarrow", "tensorflowonspark", "elephas"]
    versions = [f"tfspark {tfspark.__version__}"]
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    text = [
        "## Beside what else there is\n",
        "Written by `python benchmarks/peers.py`: the same jobs through each library's own interface, one after the",
        f"other in each of {options.rounds} rounds, on {datetime.date.today()}; medians. *Ratio* is how many times as",
        "long as tfspark a library takes for as many rows, the median of the rounds' ratios: above 1 tfspark is",
        "faster. Start and stop are jobs of their own and not part of the others: a library without a cluster does the",
        "job with a few rows first. Libraries that would need minutes get fewer rows.\n",
        f"- rows of {common.FEATURES} floats and an int label, cached in Spark; one worker",
        "- a model of 784, 64 and 10 units",
        f"- {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; load before the run "
        f"{options.load:.1f}; Spark master `{options.master}`",
        f"- {', '.join(versions)}\n",
        "| job | library | rows | median | ratio |",
        "|---|---|---|---|---|",
    ]
    text += ["| " + " | ".join(result.shown) + " |" for result in summary(run)]
    for (job, library), why in run.errors.items():
        rounds = len(run.seconds.get((job, library), ()))
        text.append(f"\n{library} failed in the job *{JOBS[job][0]}*, in round {rounds + 1}: `{why}`.")
    text.append(
        "\n`tf.data alone` runs in the driver; its fit collects the rows there first, which is part of its time.\n"
        "TensorFlowOnSpark's `dfutil` converts rows; the files under it are written and read by tfspark's Hadoop\n"
        "formats, as the jar that it names is not made for this Spark."
    )
    page = Path(options.report)
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no {BEGIN!r} and {END!r} to write the table between")
    page.write_text("\n".join([before + BEGIN, "", *text, "", END + after]))


def main() -> None:
    """Measure, print and write the report."""
    # The cached rows, and three partitions of them on their way to the driver, do not fit into Spark's default of 1 GB.
    memory = ("spark.executor.memory", "5g")
    parser = common.options(__doc__.splitlines()[0], master="local-cluster[1,3,5120]", conf=[memory])
    parser.add_argument("--rows", type=int, default=200_000, help="rows of 784 floats and a label")
    parser.add_argument("--slow-rows", type=int, default=20_000, help=f"rows of {', '.join(sorted(SLOW))}")
    parser.add_argument("--report", default=str(REPORT), help="where the table is written")
    options = parser.parse_args()
    options.load = os.getloadavg()[0]
    common.keep_stdout_for_figures()
    missing = {library for library, module in PEERS.items() if importlib.util.find_spec(module) is None}
    for library in missing:
        print(f"{library} is not installed: left out", file=sys.stderr)
    libraries = {OURS, COMPAT, *PEERS, "predict_batch_udf", "tf.data alone"} - missing
    with tempfile.TemporaryDirectory() as directory:
        run = Run(None, {}, options.rows, options.slow_rows, directory)
        common.surroundings(NAME, master=options.master, rows=options.rows)
        model = os.path.join(directory, "model")
        built = build_model()
        built.export(model, verbose=False)
        built.save(f"{model}.keras")
        for r in range(options.rounds):
            print(f"round {r + 1} of {options.rounds}", file=sys.stderr)
            # What a library leaves behind in executors, and a job that hung, must not reach the next round.
            with common.session_of(options, "tfspark peers benchmark") as run.spark:
                run.spark.sparkContext.addPyFile(__file__)
                sizes = {options.rows, options.slow_rows, FEW_ROWS}
                run.frames = {rows: common.cached_rows(run.spark, rows, PARTITIONS) for rows in sizes}
                one_round(run, libraries, model, r)
        for library, fit in FITS.items():
            if library in libraries and library != COMPAT:
                run.seconds["lines", library] = [float(code_lines(fit))]
        for result in summary(run):
            more = {"job": result.job, "library": result.library, "ratio": result.ratio, "rows": result.rows}
            common.figure(NAME, f"{result.job}: {result.library}", result.unit, result.rounds, **more)
        write_report(run, options)


if __name__ == "__main__":
    main()
