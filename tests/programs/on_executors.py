"""Run clusters that want GPUs, places and ports, in one Spark application, and print, as JSON, what they got.

``on_executors.py MASTER '{"spark.setting": "value"}' SCENARIO...``
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import tfspark

SEEN = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "TF_FORCE_GPU_ALLOW_GROWTH")
PORTS = (24100, 24120)


def look(args: Any, ctx: Any) -> dict[str, Any]:
    rows = sum(len(b["id"]) for b in ctx.dataset(8)) if args and "feed" in args else None
    # An executor's Python workers start in its own directory.
    return {"gpus": ctx.gpus, "env": seen(os.environ), "executor": os.getcwd(), "rows": rows}


def seen(env: Any) -> dict[str, str]:
    return {name: env[name] for name in SEEN if name in env}


def environment_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/environ") as f:
        return dict(entry.split("=", 1) for entry in f.read().split("\0") if "=" in entry)


def coordinate(args: Any, ctx: Any) -> dict[str, Any]:
    trained = ctx.train_epoch(lambda batch: None, lambda: ctx.dataset(8))
    return {"gpus": ctx.gpus, "env": seen(os.environ), "trained": trained, "spec": ctx.cluster_spec}


def refusal(run: Callable[[], Any]) -> str:
    try:
        run()
    except tfspark.errors.TFSparkError as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def gpu_workers_beside_a_parameter_server(spark: Any) -> Any:
    with tfspark.Cluster(spark, coordinate, workers=1, ps=1, gpus_per_node=1, ports=PORTS) as cluster:
        nodes = {str(a.node): {"ports": [a.port, a.data_port], **environment_of(a.pid)} for a in cluster.nodes.nodes}
        listening = cluster._require_started().coordinator.port
        report = cluster.feed(spark.range(40))
    return {
        "chief": cluster.results["chief", 0],
        "nodes": {n: seen(env) for n, env in nodes.items()},
        "ports": [p for env in nodes.values() for p in env["ports"]] + [listening],
        "rows": report.rows,
    }


def predicting(spark: Any) -> Any:
    def look(batches: Any) -> Any:
        import pyarrow as pa

        from tfspark.prediction.loading import start_tensorflow

        start_tensorflow()
        for _ in batches:
            yield pa.RecordBatch.from_pydict({"env": [json.dumps(seen(os.environ))]})

    rows = spark.range(0, 2, 1, 2).mapInArrow(look, "env string").collect()
    return [json.loads(r.env) for r in rows]


def spread(spark: Any) -> Any:
    found = tfspark.run(spark, look, workers=2, strategy="none", spread=True)
    return {"executors": [r["executor"] for r in found.values()], "gpus": [r["gpus"] for r in found.values()]}


def refusals(spark: Any) -> Any:
    os.environ["TFSPARK_SLOTS_TIMEOUT"] = "2s"
    asked: list[dict[str, Any]] = [
        {"workers": 1, "gpus_per_node": 2},
        {"workers": 3, "gpus_per_node": 1},
        {"workers": 3, "spread": True},
        {"workers": 1, "cpus_per_node": 9},
        {"workers": 2, "cpus_per_node": 3, "gpus_per_node": 0, "ports": (24130, 24131)},
    ]
    return [refusal(lambda a=a: tfspark.run(spark, look, **a)) for a in asked]  # type: ignore[misc]


def shares(spark: Any) -> Any:
    with tfspark.Cluster(spark, look, "feed", workers=2, strategy="none") as cluster:
        cluster.feed(spark.range(40, numPartitions=4))
        hosts = [a.host for a in cluster.nodes.nodes]
    return {"hosts": hosts, "workers": [cluster.results["worker", i] for i in range(2)]}


def all_gpus_held(spark: Any) -> Any:
    os.environ["TFSPARK_SLOTS_TIMEOUT"] = "2s"
    with tfspark.Cluster(spark, look, "feed", workers=1, gpus_per_node=2) as cluster:
        shuffled = refusal(lambda: cluster.feed(spark.range(40).repartition(2)))
        asked = refusal(lambda: cluster.predict(spark.range(4), "a int"))
        rdd = refusal(lambda: cluster.feed(spark.sparkContext.parallelize(range(4))))
        cluster.feed(spark.range(40))
    return {"refused": [shuffled, asked, rdd], "worker": cluster.results["worker", 0]}


def sum_over_workers(args: Any, ctx: Any) -> tuple[float, dict[str, list[str]]]:
    import tensorflow as tf

    strategy = ctx.strategy()
    rows = sum(len(b["id"]) for b in ctx.dataset(8))

    @tf.function
    def total() -> tf.Tensor:
        def step() -> tf.Tensor:
            # All-reduce wants a tensor that knows its device.
            own = tf.constant(float(rows))
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

        return strategy.run(step)

    return float(total()), ctx.cluster_spec


def all_reduce(spark: Any) -> Any:
    with tfspark.Cluster(spark, sum_over_workers, workers=2, gpus_per_node=0) as cluster:
        cluster.feed(spark.range(40, numPartitions=4))
    return {"results": list(cluster.results.values()), "hosts": [a.host for a in cluster.nodes.nodes]}


def hidden(spark: Any) -> Any:
    return refusal(lambda: tfspark.run(spark, look, workers=1, gpus_per_node=2))


def fed(spark: Any) -> Any:
    with tfspark.Cluster(spark, look, "feed", workers=1, gpus_per_node=1) as cluster:
        cluster.feed(spark.range(40))
    return cluster.results["worker", 0]


if __name__ == "__main__":
    master, settings, *scenarios = sys.argv[1:]
    quiet = {"spark.log.level": "OFF", "spark.ui.enabled": "false", "spark.executor.memory": "512m"}
    spark = tfspark.session("on-executors", master, **{**quiet, **json.loads(settings)})
    outcome = {name: globals()[name](spark) for name in scenarios}
    spark.stop()
    sys.stdout.write(json.dumps(outcome) + "\n")
