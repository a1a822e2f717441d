"""Feed rows while tasks, Python workers and executors die, and count at the receiving end what arrived.

Each run feeds rows of random sizes of partitions, with random faults of `faulty_daemon.py` and of the data itself
(raised exceptions, rows that differ at every attempt), for one or two epochs. ``--runs 100`` is the long form.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTITIONS = 10
MOST_ROWS = 3000
FAULTS = ["half", "unacknowledged", "late", "executor"]


def read_all(args: Any, ctx: Any) -> list[tuple[Any, Any]]:
    """Return ids and attempts of every epoch as they came."""
    import numpy as np

    with open(f"/proc/{os.getppid()}/stat") as f:
        daemon = int(f.read().rsplit(")", 1)[1].split()[1])
    with open(f"/proc/{daemon}/stat") as f:
        ctx.report(0, jvm=int(f.read().rsplit(")", 1)[1].split()[1]))
    epochs = []
    for _ in ctx.epochs():
        batches = [(b["id"].numpy(), b["attempt"].numpy()) for b in ctx.dataset(700, shuffle=True)]
        empty = [(np.zeros(0, np.int64), np.zeros(0, np.int32))]
        epochs.append(tuple(np.concatenate(x) for x in zip(*(batches or empty), strict=True)))
    return epochs


def make_rows(sizes: list[int], raising: list[int]) -> Any:
    """Return the function that makes a partition's rows, which note the attempt that made them."""

    def make(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa
        from pyspark import TaskContext

        for _ in batches:
            pass
        context = TaskContext.get()
        assert context is not None
        p, attempt = context.partitionId(), context.attemptNumber()
        ids = list(range(p * MOST_ROWS, p * MOST_ROWS + sizes[p]))
        if attempt:
            ids.reverse()
        for start in range(0, len(ids), 200):
            if start >= 400 and p in raising and attempt == 0:
                raise ValueError("half-way")
            part = ids[start : start + 200]
            yield pa.RecordBatch.from_pydict({"id": part, "attempt": pa.array([attempt] * len(part), pa.int32())})

    return make


def settings(local_dir: str) -> dict[str, str]:
    return {
        "spark.log.level": "OFF",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.python.daemon.module": "faulty_daemon",
        "spark.local.dir": local_dir,
        "spark.task.maxFailures": "8",
        "spark.speculation": "true",
        "spark.speculation.interval": "100ms",
        "spark.speculation.quantile": "0.5",
        "spark.speculation.multiplier": "1.2",
        "spark.speculation.minTaskRuntime": "200ms",
        "spark.deploy.maxExecutorRetries": "-1",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "200",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    directory = tempfile.mkdtemp()
    faults_file = Path(directory, "faults.json")
    os.environ["TFSPARK_FAULTS"] = str(faults_file)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

    import tfspark

    spark = tfspark.session("faults", "local-cluster[3,2,1024]", **settings(directory))
    expected: list[tuple[int, list[int]]] = []
    injected: Counter[str] = Counter()
    with tfspark.Cluster(spark, read_all, workers=2, progress=False) as cluster:
        coordinator = cluster._gang and cluster._gang.coordinator
        assert coordinator is not None
        assert coordinator.wait(lambda: all(s.metrics for s in cluster.status()), 60)
        spared = [int(s.metrics["jvm"]) for s in cluster.status()]
        for run in range(options.runs):
            sizes = [rng.choice([0, 1, 200, *(rng.randrange(MOST_ROWS) for _ in range(6))]) for _ in range(PARTITIONS)]
            sizes[0] = 1000
            raising = rng.sample(range(PARTITIONS), 2)
            faults: dict[str, Any] = {"spared": spared}
            for p in rng.sample(range(PARTITIONS), 5):
                for attempt in range(rng.choice([1, 1, 2])):
                    faults[f"{run} {p} {attempt}"] = rng.choice(FAULTS)
            injected.update(v for k, v in faults.items() if k != "spared")
            injected["raise"] += len(raising)
            faults_file.write_text(json.dumps(faults))
            epochs = rng.choice([1, 2])
            df = spark.range(PARTITIONS, numPartitions=PARTITIONS)
            df = df.mapInArrow(make_rows(sizes, raising), "id long, attempt int")
            began = time.monotonic()
            report = cluster.feed(df, epochs=epochs, seed=rng.choice([None, run]))
            print(f"run {run}: {report.rows} rows, {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
            assert report.rows == sum(sizes)
            expected += [(run, sizes)] * epochs
    spark.stop()
    read = list(cluster.results.values())
    wrong = retried = rows = 0
    for epoch, (run, sizes) in enumerate(expected):
        counts: Counter[int] = Counter()
        attempts: dict[int, set[int]] = {}
        for worker in read:
            ids, made_by = worker[epoch]
            counts.update(ids.tolist())
            for i, a in zip(ids.tolist(), made_by.tolist(), strict=True):
                attempts.setdefault(i // MOST_ROWS, set()).add(a)
        wanted = {p * MOST_ROWS + i for p, n in enumerate(sizes) for i in range(n)}
        rows += len(wanted)
        retried += sum(a != {0} for a in attempts.values())
        mixed = [p for p, a in attempts.items() if len(a) > 1]
        if set(counts) != wanted or max(counts.values()) > 1 or mixed:
            wrong += 1
            print(f"run {run}: lost {len(wanted - set(counts))}, doubled {sum(c > 1 for c in counts.values())}, "
                  f"mixed {mixed}", file=sys.stderr)  # fmt: skip
    outcome = {"runs": options.runs, "epochs": len(expected), "rows": rows, "wrong": wrong,
               "partitions_of_later_attempts": retried, "faults": dict(injected)}  # fmt: skip
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
