"""A driver program for fault tests: starts clusters whose nodes wait, and says on standard output what happens.

Each line of standard input is a command: ``start`` starts a cluster and prints its node pids, ``train`` one that
trains, ``wait`` waits for it and prints how it ended, ``spark-stop`` stops Spark under it, ``quit`` ends the program.
Answers are JSON lines.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

import tfspark
from tfspark.errors import TFSparkError


def hold(args: Any, ctx: Any) -> str:
    """Wait until the cluster stops, then save; leave a temporary file and a child process for it to clean up."""
    import subprocess
    import tempfile

    open(tempfile.mkstemp()[1], "w").close()
    subprocess.Popen(["sleep", "1000"])
    while not ctx.stopping:
        ctx._link.stopping.wait(1.0)
    Path(args, f"saved-{ctx.index}").touch()
    return "stopped"


def train(args: Any, ctx: Any) -> None:
    """Take steps that every worker takes part in, without end."""
    import tensorflow as tf

    strategy = ctx.strategy()

    @tf.function
    def step() -> Any:
        def add() -> Any:
            return tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(1.0))

        return strategy.run(add)

    for i in range(1_000_000):
        step()
        ctx.report(i + 1)


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    builder = SparkSession.builder.master(sys.argv[1]).config("spark.local.dir", sys.argv[2])
    for key, value in {
        "spark.ui.enabled": "false",
        "spark.log.level": "OFF",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    say(ready=True, jvm=os.getpid())
    cluster = None
    for line in sys.stdin:
        command = line.strip()
        began = time.monotonic()
        try:
            if command in ("start", "train"):
                options = {"stop_grace": 3.0, "hang_timeout": 5.0 if command == "start" else 20.0}
                cluster = tfspark.Cluster(
                    spark, hold if command == "start" else train, sys.argv[2], workers=2, **options
                ).start()
                assert cluster._gang is not None
                ready = (lambda s: s.state == "running") if command == "start" else (lambda s: s.step > 0)
                cluster._gang.coordinator.wait(lambda c=cluster, r=ready: all(r(s) for s in c.status()), 60)
                say(pids=[n.pid for n in cluster.nodes.nodes])
            elif command == "wait":
                assert cluster is not None
                say(waiting=True)
                say(results=len(cluster.wait()))
            elif command == "stop":
                assert cluster is not None
                cluster.stop()
                say(stopped=True, seconds=time.monotonic() - began)
            elif command == "spark-stop":
                spark.stop()
                say(spark="stopped")
            elif command == "quit":
                break
        except TFSparkError as e:
            say(error=type(e).__name__, message=str(e), seconds=time.monotonic() - began)
        except KeyboardInterrupt:
            say(error="KeyboardInterrupt", seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
