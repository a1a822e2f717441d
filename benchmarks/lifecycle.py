"""Measure how long a cluster takes to start and to stop.

``start`` is the time from the call until ``main`` was entered on all nodes. For the last node it is split into:

- ``start_spark``: the rest: the driver's own work, and Spark until a task has spawned the process,
- ``start_process``: the start of Python in the process, until its server listens,
- ``start_tensorflow``: the import of TensorFlow,
- ``start_rendezvous``: the wait, after that import, until all other nodes have registered.

``import`` is the time of ``python -c "import tensorflow"`` in as many processes, started together right before;
``start_above_import`` is ``start`` minus ``import``. ``finish`` is the time from ``wait()``, while every ``main`` reads
a feed that never comes, until everything has ended and is freed; ``stop`` is the same with ``stop()``. With ``--ps``
everything is also measured with parameter servers and a chief. The output is one line of JSON per figure, on standard
output.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import _common as common

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NAME = "lifecycle"


def idle(args: None, ctx: Any) -> float:
    """Wait for feeds until no more can come; return the time at which `main` was entered."""
    entered = time.time()
    for _ in ctx.epochs():
        pass
    return entered


def started(spark: SparkSession, workers: int, ps: int) -> Any:
    """Start a cluster and wait until ``main`` runs on all nodes; return it and the time of the call that started it."""
    import tfspark

    cluster = tfspark.Cluster(spark, idle, workers=workers, ps=ps, progress=False)
    began = time.time()
    cluster.start()

    def entered() -> bool:
        if any(node.state == "failed" for node in cluster.status()):
            cluster.wait()
        return len(cluster.startup_seconds) == nodes(workers, ps)

    try:
        common.wait_until(entered, "main")
    except TimeoutError as e:
        raise TimeoutError(f"{e}: {cluster.status()}") from None
    return cluster, began


def nodes(workers: int, ps: int) -> int:
    """Return the number of nodes of a cluster."""
    return workers + ps + (1 if ps else 0)


def import_tensorflow(processes: int) -> float:
    """Import TensorFlow in several processes at once; return the seconds until the last one has ended."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", "import tensorflow"]
    began = time.time()
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(processes)
    ]
    for process in running:
        if process.wait():
            raise RuntimeError("import tensorflow failed")
    return time.time() - began


def measure(spark: SparkSession, workers: int, ps: int, seconds: dict[tuple[str, int, int], list[float]]) -> None:
    """Start and stop a cluster twice, once for each way to end it."""
    alone = import_tensorflow(nodes(workers, ps))
    cluster, began = started(spark, workers, ps)
    called = time.time()
    entered = cluster.wait()
    seconds["finish", workers, ps].append(time.time() - called)
    last = max(entered, key=lambda node: entered[node])
    whole, parts = entered[last] - began, cluster.startup_seconds[last]
    split = {
        "start_process": parts["process"] + parts["listen"],
        "start_tensorflow": parts["tensorflow"],
        "start_rendezvous": parts["rendezvous"],
    }
    seconds["import", workers, ps].append(alone)
    seconds["start_above_import", workers, ps].append(whole - alone)
    seconds["start", workers, ps].append(whole)
    seconds["start_spark", workers, ps].append(whole - sum(split.values()))
    for name, s in split.items():
        seconds[name, workers, ps].append(s)

    cluster, _ = started(spark, workers, ps)
    called = time.time()
    cluster.stop()
    seconds["stop", workers, ps].append(time.time() - called)


def main() -> None:
    """Measure and print."""
    parser = common.options(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--ps", type=int, nargs="+", default=[0, 1], help="numbers of parameter servers")
    options = parser.parse_args()
    common.keep_stdout_for_figures()
    with common.session_of(options, "tfspark lifecycle benchmark") as spark:
        common.surroundings(NAME, master=options.master)
        # The first cluster is not measured, because it includes the warm-up of Spark.
        started(spark, 1, 0)[0].stop()
        seconds: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        for r in range(options.rounds):
            for n, ps in itertools.product(options.workers, options.ps):
                print(f"round {r + 1} of {options.rounds}: {n} worker(s), ps={ps}", file=sys.stderr)
                measure(spark, n, ps, seconds)
        for (name, n, ps), rounds in sorted(seconds.items(), key=lambda item: (item[0][1:], item[0][0])):
            common.figure(NAME, name, "s", rounds, workers=n, ps=ps)


if __name__ == "__main__":
    main()
