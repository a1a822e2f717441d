"""Code that the benchmarks share: the session, the rows, medians, and figures printed as JSON lines.

Only figures go to standard output; everything that Spark, TensorFlow and nodes print goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

BATCH_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"
DEFAULT_MASTER = "local-cluster[2,2,2048]"

FEATURES = 784
ROW_BYTES = FEATURES * 4 + 4
"""Size of a row in Arrow, in bytes: the floats and an int label, without lengths and validity."""

_figures = os.fdopen(os.dup(1), "w", buffering=1)


def keep_stdout_for_figures() -> None:
    """Redirect to standard error everything that this process and its children print, except figures."""
    os.dup2(2, 1)


def options(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with the common options of the benchmarks.

    Parameters
    ----------
    description
        First line of the help.
    defaults
        Defaults that replace the usual ones, by option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--master", default=DEFAULT_MASTER, help="Spark master")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to measure with")
    parser.add_argument(
        "--conf", action="append", default=[], type=setting, metavar="KEY=VALUE", help="a setting of Spark"
    )
    parser.add_argument("--verbose", action="store_true", help="show the library's log on standard error")
    parser.set_defaults(**defaults)
    return parser


def setting(text: str) -> tuple[str, str]:
    """Parse a setting in the form of spark-submit, ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


@contextlib.contextmanager
def session(master: str, name: str, verbose: bool = False, **more: str) -> Iterator[SparkSession]:
    """Create a session as users do, with more settings; its executors import tfspark from this checkout."""
    from pyspark.sql import SparkSession

    import tfspark

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(name)s %(message)s"
    )
    logging.getLogger("py4j").setLevel(logging.WARNING)
    checkout = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.driver.memory": "3g",
        **more,
    }
    builder = SparkSession.builder.master(master).appName(name)
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = tfspark.configure(builder).getOrCreate()
    app = spark.sparkContext.applicationId
    spark.sparkContext.addPyFile(__file__)
    try:
        yield spark
    finally:
        spark.stop()
        if master.startswith("local-cluster"):
            _remove_work(app)


def session_of(chosen: argparse.Namespace, name: str) -> contextlib.AbstractContextManager[SparkSession]:
    """Create the session for the parsed options."""
    return session(chosen.master, name, chosen.verbose, **dict(chosen.conf))


@contextlib.contextmanager
def own_batches(spark: SparkSession) -> Iterator[None]:
    """Set the size of Arrow batches to Spark's default within the block."""
    entry = spark._jvm.org.apache.spark.internal.config.ConfigEntry.findEntry(BATCH_BYTES)  # type: ignore[attr-defined]
    ours = spark.conf.get(BATCH_BYTES)
    spark.conf.set(BATCH_BYTES, entry.defaultValueString())
    try:
        yield
    finally:
        spark.conf.set(BATCH_BYTES, ours)


def _remove_work(app: str) -> None:
    """Remove the files that the executors of a local-cluster leave under Spark's home."""
    import pyspark

    home = os.environ.get("SPARK_HOME") or str(Path(pyspark.__file__).parent)
    shutil.rmtree(Path(home) / "work" / app, ignore_errors=True)


def make_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Make random floats and a label for every id; for use with ``mapInArrow``."""
    import numpy as np
    import pyarrow as pa

    for batch in batches:
        ids = batch.column(0).to_numpy()
        if not len(ids):
            continue
        rng = np.random.default_rng(int(ids[0]))
        x = rng.random(len(ids) * FEATURES, dtype=np.float32)
        offsets = np.arange(len(ids) + 1, dtype=np.int32) * FEATURES
        columns = [pa.ListArray.from_arrays(offsets, x), pa.array((ids % 10).astype(np.int32))]
        yield pa.RecordBatch.from_arrays(columns, names=["x", "label"])


def cached_rows(spark: SparkSession, rows: int, partitions: int) -> DataFrame:
    """Return a cached DataFrame of `FEATURES` floats ``x`` and an int ``label``, already computed."""
    df = spark.range(0, rows, 1, partitions).mapInArrow(make_rows, "x array<float>, label int").cache()
    if df.count() != rows:
        raise RuntimeError("the cached DataFrame has another number of rows than asked for")
    return df


def in_turn(ways: Sequence[T], turn: int) -> list[T]:
    """Return the ways, rotated by `turn`, because later ways find warm Python workers and compiled code."""
    first = turn % len(ways)
    return [*ways[first:], *ways[:first]]


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
    """Wait until a condition is true; raise TimeoutError after `timeout` seconds."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout} s")
        pause.wait(0.02)


def figure(benchmark: str, name: str, unit: str, rounds: Sequence[float], **more: Any) -> float:
    """Print one figure, the median of its rounds, as a line of JSON; return the median."""
    value = statistics.median(rounds)
    line(benchmark, name, value, unit, rounds=[_short(r) for r in rounds], **more)
    return value


def line(benchmark: str, name: str, value: float, unit: str, **more: Any) -> None:
    """Print one line of JSON."""
    more = {k: _short(v) if isinstance(v, float) else v for k, v in more.items()}
    print(json.dumps({"benchmark": benchmark, "figure": name, "value": _short(value), "unit": unit, **more}),
          file=_figures)  # fmt: skip


def table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Format rows as a table; the first row is the heading."""
    if markdown:
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def text(lines: str) -> None:
    """Print text unchanged to the output of the figures."""
    print(lines, file=_figures)


def surroundings(benchmark: str, **more: Any) -> None:
    """Print the machine and the versions of the measurement; this is the first line."""
    line = {
        "benchmark": benchmark,
        "figure": "surroundings",
        "value": os.cpu_count(),
        "unit": "CPUs",
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("pyspark", "tensorflow", "keras", "pyarrow")},
        **more,
    }
    print(json.dumps(line), file=_figures)


def _short(value: float) -> float:
    return round(value, 3) if abs(value) < 1000 else round(value)
