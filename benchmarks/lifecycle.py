"""How long a cluster takes to start and to stop.

The start runs from the call until ``main`` was entered on all nodes, and is split, for the node that was last, into

- ``start_spark``: what the rest leaves: the driver's own work, and Spark until a task has spawned the process,
- ``start_process``: Python coming up in the process, and its server listening,
- ``start_tensorflow``: the import of TensorFlow,
- ``start_rendezvous``: waiting until all other nodes have registered, after that import.

``finish`` runs from ``wait()``, with every ``main`` reading a feed that never comes, until all is over and freed;
``stop`` is the same with ``stop()``. One line of JSON a figure, on standard output.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import _common as common

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NAME = "lifecycle"


def idle(args: None, ctx: Any) -> float:
    """Wait for a feed until there is none to come; return when `main` was entered."""
    entered = time.time()
    for _ in ctx.epochs():
        pass
    return entered


def started(spark: SparkSession, workers: int) -> Any:
    """Return a cluster, and the time of the call that started it, once ``main`` runs on all nodes."""
    import tfspark

    cluster = tfspark.Cluster(spark, idle, workers=workers, progress=False)
    began = time.time()
    cluster.start()
    common.wait_until(lambda: len(cluster.startup_seconds) == workers, "main")
    return cluster, began


def measure(spark: SparkSession, workers: int, seconds: dict[tuple[str, int], list[float]]) -> None:
    """Start and stop a cluster twice, once for each way to end it."""
    cluster, began = started(spark, workers)
    called = time.time()
    entered = cluster.wait()
    seconds["finish", workers].append(time.time() - called)
    last = max(entered, key=lambda node: entered[node])
    whole, parts = entered[last] - began, cluster.startup_seconds[last]
    split = {
        "start_process": parts["process"] + parts["listen"],
        "start_tensorflow": parts["tensorflow"],
        "start_rendezvous": parts["rendezvous"],
    }
    seconds["start", workers].append(whole)
    seconds["start_spark", workers].append(whole - sum(split.values()))
    for name, s in split.items():
        seconds[name, workers].append(s)

    cluster, _ = started(spark, workers)
    called = time.time()
    cluster.stop()
    seconds["stop", workers].append(time.time() - called)


def main() -> None:
    """Measure and print."""
    parser = common.options(__doc__.splitlines()[0], rounds=5)
    options = parser.parse_args()
    common.keep_stdout_for_figures()
    with common.session(options.master, "tfspark lifecycle benchmark", options.verbose) as spark:
        common.surroundings(NAME, master=options.master)
        seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        for r in range(options.rounds):
            for n in options.workers:
                print(f"round {r + 1} of {options.rounds}, {n} worker(s)", file=sys.stderr)
                measure(spark, n, seconds)
        for (name, n), rounds in sorted(seconds.items(), key=lambda item: (item[0][1], item[0][0])):
            common.figure(NAME, name, "s", rounds, workers=n)


if __name__ == "__main__":
    main()
