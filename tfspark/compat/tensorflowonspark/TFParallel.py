"""`run`: runs a function in several independent nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tfspark.cluster import Cluster
from tfspark.compat.tensorflowonspark import _notes, util
from tfspark.compat.tensorflowonspark.TFCluster import _session, default_fs
from tfspark.compat.tensorflowonspark.TFSparkNode import TFNodeContext
from tfspark.spark.pickling import pickle_main
from tfspark.spark.profiles import task_slots


@_notes.now("tfspark.run(spark, main, args, workers=n, strategy='none')")
def run(sc: Any, map_fn: Callable[..., Any], tf_args: Any, num_executors: int, use_barrier: bool = True) -> None:
    """Run ``map_fn(tf_args, ctx)`` in independent nodes, and wait for them.

    Parameters
    ----------
    sc
        The SparkContext.
    map_fn
        Gets a `TFSparkNode.TFNodeContext` that knows ``executor_id``, ``worker_num`` and ``num_workers``.
    tf_args
        Arguments of the program, for example from argparse.
    num_executors
        Number of nodes.
    use_barrier
        Whether to run all nodes at the same time; otherwise as many at a time as Spark has task slots.

    Raises
    ------
    ResourceError
        If Spark has too few task slots for all, and `use_barrier` is set.
    NodeFailed
        If a node failed.
    """
    from tfspark import compat

    if compat.is_installed():
        compat.install(sc)
    spark = _session(sc)
    program = pickle_main(map_fn, tf_args)
    at_a_time = num_executors if use_barrier else max(1, min(num_executors, task_slots(spark) or 1))
    for first in range(0, num_executors, at_a_time):
        args = (program, first, num_executors, default_fs(sc), os.getcwd())
        workers = min(at_a_time, num_executors - first)
        with Cluster(spark, _run_one, args, workers=workers, strategy="none") as cluster:
            cluster.wait()


def _run_one(args: tuple[bytes, int, int, str, str], ctx: Any) -> None:
    import cloudpickle

    from tfspark.compat import install

    program, first, num_workers, fs, working_dir = args
    install()
    os.environ.pop("TF_CONFIG", None)
    map_fn, tf_args, _ = cloudpickle.loads(program)
    context = TFNodeContext(first + ctx.index, defaultFS=fs, working_dir=working_dir)
    context.num_workers = num_workers
    if not ctx.gpus:
        wanted = getattr(tf_args, "num_gpus", 1)
        util.single_node_env(wanted, ctx.index, ctx.cluster_spec["worker"])
    map_fn(tf_args, context)
