"""Measure the memory of every process while far more data is fed than fits in memory.

Rows of 784 float32 are generated, not kept anywhere, and fed to workers that read and drop them. Peak resident set
sizes come from the kernel (``VmHWM``); they are read every half second while the feed runs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common as common
from feed import expect

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "feed_memory"
BATCH_ROWS = 2000


def generate(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Make `BATCH_ROWS` rows for each id; all ids get the same rows."""
    import numpy as np
    import pyarrow as pa

    x = pa.array(np.random.default_rng(0).random(BATCH_ROWS * common.FEATURES, dtype=np.float32))
    offsets = pa.array(np.arange(BATCH_ROWS + 1, dtype=np.int32) * common.FEATURES)
    block = pa.RecordBatch.from_arrays([pa.ListArray.from_arrays(offsets, x)], names=["x"])
    for batch in batches:
        for _ in range(batch.num_rows):
            yield block


def drain(args: dict[str, Any], ctx: Any) -> int:
    """Read all rows; return their number."""
    import tensorflow as tf

    dataset = ctx.dataset(args["batch_size"])
    return int(dataset.reduce(tf.constant(0, tf.int64), lambda n, b: n + tf.shape(b["x"], tf.int64)[0]))


class Watch:
    """Records the peak resident set size of every kind of process."""

    KINDS = (("tfspark.node.main", "node"), ("pyspark.daemon", "python worker"), ("Executor", "executor JVM"))

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    self._note(entry)

    def _note(self, entry: Path) -> None:
        try:
            command = (entry / "cmdline").read_text()
            status = (entry / "status").read_text()
        except OSError:
            return
        kind = "driver" if entry.name == str(os.getpid()) else next((k for w, k in self.KINDS if w in command), None)
        line = next((s for s in status.splitlines() if s.startswith("VmHWM:")), None)
        if kind and line:
            self.peaks[kind] = max(self.peaks.get(kind, 0), int(line.split()[1]) * 1024)


def main() -> None:
    """Measure and print."""
    import tfspark

    parser = common.options(__doc__.splitlines()[0], workers=[2], rounds=1)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="how much is fed")
    parser.add_argument("--partitions", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    common.keep_stdout_for_figures()
    blocks = int(options.gigabytes * 1e9 / (BATCH_ROWS * common.FEATURES * 4))
    with common.session_of(options, "tfspark feed memory benchmark") as spark:
        spark.sparkContext.addPyFile(str(Path(__file__).with_name("feed.py")))
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", BATCH_ROWS)
        common.surroundings(NAME, master=options.master, gigabytes=options.gigabytes)
        df = spark.range(0, blocks, 1, options.partitions).mapInArrow(generate, "x array<float>")
        for n in options.workers:
            args = {"batch_size": options.batch_size}
            with Watch() as watch, tfspark.Cluster(spark, drain, args, workers=n, progress=False) as cluster:
                began = time.time()
                report = cluster.feed(df, shapes={"x": common.FEATURES})
                seconds = time.time() - began
                print(report, file=sys.stderr)
            expect(sum(cluster.results.values()), blocks * BATCH_ROWS)
            common.figure(NAME, "fed", "MB", [report.bytes / 1e6], workers=n, seconds=round(seconds, 1))
            for kind, peak in sorted(watch.peaks.items()):
                common.figure(NAME, f"peak RSS, {kind}", "MB", [peak / 1e6], workers=n)


if __name__ == "__main__":
    main()
