"""Show what a configuration gives: settings, GPUs of tasks in a barrier stage, pools, metrics, the log."""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("show").getOrCreate()
    sc = spark.sparkContext
    jvm: Any = spark._jvm  # type: ignore[attr-defined]
    shown: dict[str, Any] = {"settings": dict(sc.getConf().getAll())}
    jvm.org.apache.logging.log4j.LogManager.getLogger("shown").warn("a warning")
    with urllib.request.urlopen(f"{sc.uiWebUrl}/metrics/prometheus/") as answer:
        shown["metrics"] = answer.read().decode()
    shown["pools"] = sorted(
        p.name() for p in jvm.scala.jdk.javaapi.CollectionConverters.asJava(sc._jsc.sc().getAllPools())
    )

    if not sc.master.startswith("local"):

        def hold_gpu(_: Iterator[Any]) -> Iterator[list[str]]:
            """Hold a GPU until the other job, which needs a slot meanwhile, has run."""
            from pyspark import BarrierTaskContext

            context = BarrierTaskContext.get()
            context.barrier()
            with socket.create_connection(address, timeout=200) as s:
                s.recv(1)
            yield list(context.resources()["gpu"].addresses)

        sc.parallelize(range(2), 2).count()  # The executor is there.
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(200)
        address = server.getsockname()
        profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", 1)).build
        jobs: list[Any] = []
        rdd = sc.parallelize(range(2), 2).withResources(profile).barrier().mapPartitions(hold_gpu)
        thread = threading.Thread(target=lambda: jobs.extend(rdd.collect()))
        thread.start()
        nodes = [server.accept()[0] for _ in range(2)]
        sc.setLocalProperty("spark.scheduler.pool", "feeding")
        shown["beside"] = sc.parallelize(range(10), 2).count()
        for node in nodes:
            node.close()
        thread.join()
        server.close()
        shown["gpus"] = jobs
    spark.stop()
    sys.stdout.write(json.dumps(shown) + "\n")
