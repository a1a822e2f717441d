"""Start, feed and stop clusters again and again in one Spark application, and check that nothing grows.

Each round runs ``--at-once`` clusters of one worker at the same time. After each round, the resources of the driver's
two processes, of Spark and of the disk are counted and printed as one line of JSON. The last line says what grew:
counts must equal those of the round after the warm-up, and memory may grow by ``--megabytes``.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import _common as common
import _processes as processes

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NAME = "soak"
ROWS = 2000


def count(args: None, ctx: Any) -> int:
    """Sum the ids of all fed rows."""
    total = 0
    for _ in ctx.epochs():
        for batch in ctx.dataset(256):
            total += int(batch["id"].numpy().sum())
    return total


def one_cluster(spark: SparkSession, failures: list[str]) -> None:
    import tfspark

    try:
        with tfspark.Cluster(spark, count, workers=1, strategy="none", progress=False) as cluster:
            cluster.feed(spark.range(0, ROWS, 1, 2), epochs=2)
        if cluster.results["worker", 0] != sum(range(ROWS)) * 2:
            failures.append(f"wrong sum {cluster.results}")
    except Exception as e:
        failures.append(f"{type(e).__name__}: {e}")


def footprint(spark: SparkSession, directory: str) -> dict[str, float]:
    """Count the resources that the application holds between two rounds."""
    gc.collect()
    jvm = processes.of_jvm(spark)
    spark._jvm.java.lang.System.gc()  # type: ignore[union-attr]
    sc = spark.sparkContext._jsc.sc()  # type: ignore[attr-defined]
    runtime = spark._jvm.java.lang.Runtime.getRuntime()  # type: ignore[union-attr]
    return {
        "threads": len(threading.enumerate()),
        "native_threads": processes.native_threads(),
        "open_files": processes.open_files(),
        "ports": processes.listening(),
        "memory_mb": processes.resident_mb(),
        "jvm_threads": processes.native_threads(jvm),
        "jvm_open_files": processes.open_files(jvm),
        "jvm_heap_mb": (runtime.totalMemory() - runtime.freeMemory()) / 1e6,
        "node_processes": len(processes.nodes()),
        "node_files": len(processes.files(directory)),
        "tags": len(spark.sparkContext.getJobTags()),
        "listeners": sc.listenerBus().listeners().size(),
        "persistent": sc.getPersistentRDDs().size(),
        "active_jobs": len(spark.sparkContext.statusTracker().getActiveJobsIds()),
    }


POOL_SECONDS = 75.0
"""Spark keeps idle threads of its block manager for a minute; in the first 75 s each cluster adds some."""

SLACK = {"native_threads": 4, "open_files": 4, "jvm_threads": 60, "jvm_open_files": 12}
"""How much each count may grow, because pools of gRPC, py4j and Spark keep idle entries for a minute."""


def grown(first: dict[str, float], last: dict[str, float], megabytes: float) -> dict[str, list[float]]:
    """Return the counts that are larger in `last` than in `first` by more than is allowed."""
    slack = {**SLACK, "memory_mb": megabytes, "jvm_heap_mb": megabytes}
    return {k: [first[k], v] for k, v in last.items() if v > first[k] + slack.get(k, 0)}


def main() -> None:
    """Run and print; exit with 1 if something failed, grew or was left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--master", default="local[4]")
    parser.add_argument("--times", type=int, default=50, help="rounds")
    parser.add_argument("--at-once", type=int, default=2, help="clusters at the same time")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=3,
        help=f"least rounds before counts are compared; all that begin within {POOL_SECONDS:.0f} s, if as many follow",
    )
    parser.add_argument("--megabytes", type=float, default=50.0, help="how much memory may grow")
    options = parser.parse_args()
    if not 0 < options.warm_up < options.times:
        parser.error("--times must be more than --warm-up: the last round is compared with one before it")
    common.keep_stdout_for_figures()
    processes.mark()
    failures: list[str] = []
    rounds: list[dict[str, float]] = []
    begun: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        with common.session(options.master, NAME, **{"spark.local.dir": directory}) as spark:
            common.surroundings(NAME, master=options.master)
            start = time.monotonic()
            for i in range(options.times):
                began = time.monotonic()
                begun.append(began - start)
                running = [threading.Thread(target=one_cluster, args=(spark, failures)) for _ in range(options.at_once)]
                for thread in running:
                    thread.start()
                for thread in running:
                    thread.join()
                seconds = time.monotonic() - began
                rounds.append(footprint(spark, directory))
                common.line(NAME, "round", i + 1, "", seconds=seconds, **rounds[-1])
        left = processes.left()
    settled = sum(at < POOL_SECONDS for at in begun)
    # With fewer than twice as many rounds, the run is too short to wait for this; then only the slack applies.
    first = min(max(options.warm_up, settled if 2 * settled <= len(rounds) else 0), len(rounds))
    more = grown(rounds[first - 1], rounds[-1], options.megabytes)
    common.line(NAME, "grown", len(more), "", clusters=options.times * options.at_once, since_round=first, what=more,
                failures=failures, left=list(left.values()))  # fmt: skip
    sys.exit(bool(more or failures or left))


if __name__ == "__main__":
    main()
