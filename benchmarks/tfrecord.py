"""Compare the TFRecord connector with Spark's own Parquet, tf.data and a plain read, side by side in one run.

Each round measures everything in turn. A figure is in MB per CPU-second; ``wall`` is in MB per second. MB are those of
the TFRecord files, also for Parquet. CPU-seconds are those of the whole JVM, including compilation and garbage
collection, or those of the child process that runs tf.data.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from _common import figure, keep_stdout_for_figures, options, session_of, surroundings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SHAPES = {"A": "40 scalar features", "B": "784 floats and a label", "C": "75 KB of image bytes and a label"}
ROWS = {"A": 500_000, "B": 200_000, "C": 10_000}
IMAGE_BYTES = 75 << 10


def frame(spark: SparkSession, shape: str, rows: int) -> DataFrame:
    """Return the rows of a shape, made in the JVM and the same every time."""
    ids = spark.range(0, rows, 1, 4)
    if shape == "A":
        ints = [f"hash(id, {i}) * 1L AS i{i}" for i in range(20)]
        floats = [f"float(hash(id, {i}) / 7) AS f{i}" for i in range(16)]
        texts = [f"substring(sha1(string(id + {i})), 1, 8) AS s{i}" for i in range(4)]
        return ids.selectExpr(*ints, *floats, *texts)
    if shape == "B":
        return ids.selectExpr("transform(sequence(1, 784), x -> float(hash(x, id) / 7)) AS x", "id AS label")
    parts = [f"unhex(repeat(sha2(concat(id, '{i}'), 512), {IMAGE_BYTES // 64 // 4}))" for i in range(4)]
    return ids.selectExpr(f"concat({', '.join(parts)}) AS image", "id AS label")


class Meter:
    """Runs measurements and keeps the MB per CPU-second and per second of each."""

    def __init__(self, megabytes: float, pid: int) -> None:
        self.megabytes = megabytes
        self.process = psutil.Process(pid)
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def run(self, name: str, action: Callable[[], Any], keep: bool) -> None:
        before, start = self._seconds(), time.perf_counter()
        action()
        self.note(name, self._seconds() - before, time.perf_counter() - start, keep)

    def note(self, name: str, cpu: float, wall: float, keep: bool = True) -> None:
        if keep:
            self.cpu.setdefault(name, []).append(self.megabytes / max(cpu, 1e-3))
            self.wall.setdefault(name, []).append(self.megabytes / wall)

    def _seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def ratios(self, one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(self.cpu[one], self.cpu[other], strict=True)]


def measure(spark: SparkSession, shape: str, rows: int, rounds: int, warmup: int, where: Path) -> None:
    """Print all figures of a shape."""
    made = frame(spark, shape, rows).persist()
    if made.count() != rows:
        raise RuntimeError("the rows made are not as many as asked for")
    places = {"tfrecord": where / "tfrecord", "parquet": where / "parquet"}

    def write(kind: str) -> None:
        made.write.format(kind).option("compression", "none").mode("overwrite").save(str(places[kind]))

    for kind in places:
        write(kind)
    paths = sorted(str(p) for p in places["tfrecord"].glob("part-*"))
    meter = Meter(sum(os.path.getsize(p) for p in paths) / 1e6, _jvm_pid(spark))
    for n in range(warmup + rounds):
        for kind in places:
            meter.run(f"{kind} write", lambda kind=kind: write(kind), n >= warmup)
    made.unpersist(blocking=True)
    paths = sorted(str(p) for p in places["tfrecord"].glob("part-*"))
    readers = {kind: spark.read.format(kind).schema(made.schema).load(str(place)) for kind, place in places.items()}
    child = _Child(shape, paths)
    for n in range(warmup + rounds):
        for kind, df in readers.items():
            for name, action in _reads(df, made.columns, shape).items():
                meter.run(f"{kind} {name}", action, n >= warmup)
        for name, (cpu, wall) in child.measure().items():
            meter.note(name, cpu, wall, n >= warmup)
    child.close()
    _print(shape, rows, meter)


def _reads(df: DataFrame, columns: list[str], shape: str) -> dict[str, Callable[[], Any]]:
    one = "sum(i3)" if shape == "A" else "sum(label)"
    return {
        "read": lambda: df.write.format("noop").mode("overwrite").save(),
        "touch": lambda: df.selectExpr(f"sum(xxhash64({', '.join(columns)}))").collect(),
        "count": df.count,
        "one column": lambda: df.selectExpr(one).collect(),
    }


def _print(shape: str, rows: int, meter: Meter) -> None:
    more = {"shape": SHAPES[shape], "rows": rows, "megabytes": round(meter.megabytes)}
    for name, values in meter.cpu.items():
        wall = round(statistics.median(meter.wall[name]))
        figure("tfrecord", f"{shape} {name}", "MB per CPU-second", values, wall=wall, **more)
    for one, other in (
        ("tfrecord read", "parquet read"),
        ("tfrecord touch", "parquet touch"),
        ("tfrecord read", "tf.data parse"),
        ("tfrecord touch", "tf.data parse"),
        ("tfrecord read", "plain read"),
        ("tfrecord write", "parquet write"),
    ):
        figure("tfrecord", f"{shape} {one} / {other}", "ratio of MB per CPU-second", meter.ratios(one, other), **more)


def _jvm_pid(spark: SparkSession) -> int:
    return int(spark._jvm.java.lang.ProcessHandle.current().pid())  # type: ignore[union-attr]


class _Child:
    """A process that reads the files with tf.data and with plain reads, so that its CPU time is measured separately."""

    def __init__(self, shape: str, paths: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", shape, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def measure(self) -> dict[str, tuple[float, float]]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process for tf.data ended with {self.process.wait()}")
        return {k: (v[0], v[1]) for k, v in json.loads(line).items()}

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def child(shape: str, paths: list[str]) -> None:
    """Measure once for each line of standard input; print a line with the CPU and wall seconds of each way."""
    import tensorflow as tf

    def fixed(dtype: Any, *dims: int) -> Any:
        return tf.io.FixedLenFeature(dims, dtype)

    spec: dict[str, Any] = {"label": fixed(tf.int64)}
    if shape == "A":
        spec = {f"i{i}": fixed(tf.int64) for i in range(20)} | {f"f{i}": fixed(tf.float32) for i in range(16)}
        spec |= {f"s{i}": fixed(tf.string) for i in range(4)}
    elif shape == "B":
        spec["x"] = fixed(tf.float32, 784)
    else:
        spec["image"] = fixed(tf.string)

    def plain() -> None:
        buffer = bytearray(1 << 20)
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def records() -> None:
        for _ in tf.data.TFRecordDataset(paths).batch(1024):
            pass

    def parse() -> None:
        batch = 64 if shape == "C" else 1024
        for _ in tf.data.TFRecordDataset(paths).batch(batch).map(lambda r: tf.io.parse_example(r, spec)):
            pass

    ways = {"plain read": plain, "tf.data records": records, "tf.data parse": parse}
    for _ in sys.stdin:
        seconds = {}
        for name, action in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            action()
            seconds[name] = (time.process_time() - cpu, time.perf_counter() - wall)
        print(json.dumps(seconds), flush=True)


def main() -> None:
    """Measure and print."""
    parser = options(__doc__.splitlines()[0] if __doc__ else "", master="local[2]")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of rows")
    parser.add_argument("--warmup", type=int, default=1, help="untimed rounds before")
    parser.add_argument("--directory", help="where to put the files; by default a temporary directory")
    given = parser.parse_args()
    keep_stdout_for_figures()
    from tfspark.spark.connector import connector_jar

    jar = str(connector_jar())
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--driver-memory 4g --jars {jar} pyspark-shell"
    surroundings("tfrecord", master=given.master, scale=given.scale)
    with session_of(given, "tfrecord") as spark:
        # Without ANSI mode, because sums of hashes overflow.
        spark.conf.set("spark.sql.ansi.enabled", "false")
        for shape in given.shapes:
            where = Path(tempfile.mkdtemp(prefix="tfspark-bench-", dir=given.directory))
            try:
                measure(spark, shape, int(ROWS[shape] * given.scale), given.rounds, given.warmup, where)
            finally:
                shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
