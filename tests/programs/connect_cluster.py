"""Clusters in a session of Spark Connect: ``connect_cluster.py DIRECTORY REMOTE [SCENE ...]``.

Prints, for each scene, a line of JSON: its name and what it found, or the error that it met.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tfspark
from tfspark.errors import TFSparkError

ROWS = 60


def read_ids(args: Any, ctx: Any) -> list[int]:
    return sorted(int(i) for _ in ctx.epochs() for batch in ctx.dataset(8) for i in batch["id"])


def stream_ids(args: Any, ctx: Any) -> list[int]:
    return sorted(int(i) for batch in ctx.stream(8) for i in batch["id"])


def dies_once(args: Any, ctx: Any) -> list[int]:
    found = read_ids(args, ctx)
    if ctx.restarts == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def wait_to_be_stopped(args: Any, ctx: Any) -> int:
    Path(args).touch()
    ctx._link.stopping.wait(120.0)
    return os.getpid()


def reads_after_a_restart(args: Any, ctx: Any) -> list[int]:
    if ctx.restarts == 0:
        wait_to_be_stopped(args, ctx)
    return read_ids(args, ctx)


def fit_line(args: Any, ctx: Any) -> Any:
    import keras
    import numpy as np

    x = keras.Input((1,), name="x")
    model = keras.Model({"x": x}, keras.layers.Dense(1, name="y")(x))
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    history = ctx.fit(model, batch_size=16, label="y")
    return history["loss"], np.arange(args, dtype=np.uint8)


def fails(args: Any, ctx: Any) -> None:
    for batch in ctx.dataset(8):
        raise ValueError(f"the first row is {int(batch['id'][0])}")


def answer(args: Any, ctx: Any) -> None:
    ctx.serve(lambda columns: columns["id"] * 2)


def all_results(cluster: tfspark.Cluster) -> list[int]:
    return sorted(i for found in cluster.results.values() for i in found)


def inputs(spark: Any, directory: str) -> Any:
    """A shuffled DataFrame, a pandas one and an iterator of DataFrames, each row once an epoch."""
    import pandas as pd

    shuffled = spark.range(0, 20, 1, 4).repartition(3)
    with tfspark.Cluster(spark, read_ids, workers=2, strategy="none") as cluster:
        fed = cluster.feed(shuffled, epochs=2).rows
        fed += cluster.feed(pd.DataFrame({"id": range(20, 40)})).rows
        fed += cluster.feed(iter([spark.range(40, 50), spark.range(50, 60)])).rows
    return {"fed": fed, "read": all_results(cluster), "workers": len(cluster.results)}


def learned(spark: Any, directory: str) -> Any:
    """What a client learns of its session without a JVM."""
    from tfspark.spark import connect, plans

    # Executors register one after another.
    late = time.monotonic() + 60.0
    while (cores := connect.count_cores(spark)) != 6 and time.monotonic() < late:
        pass
    spark.conf.set("spark.sql.leafNodeDefaultParallelism", "3")
    hidden = connect.count_cores(spark)
    spark.conf.unset("spark.sql.leafNodeDefaultParallelism")
    spread = spark.range(9).repartition(2)
    return {
        "connect": [connect.is_connect(spark), connect.is_connect(spread), connect.is_connect(directory)],
        "cores": [cores, hidden],
        "server": connect.server_host(spark),
        "encrypts": connect.encrypts(spark),
        "settings": [connect.setting_of(spark, "spark.master"), connect.setting_of(spark, "spark.no.such.setting")],
        "plan": "Range" in connect.plan_of(spark.range(9)),
        "one_stage": [plans.in_one_stage(spark.range(9)), plans.in_one_stage(spread)],
        "moves": [plans.rows_can_move(spark.range(9)), plans.rows_can_move(spread)],
    }


def shared_values(spark: Any, directory: str) -> Any:
    """Two connections to a session of their own read and write the same values, whatever they contain."""
    from pyspark.errors import PySparkException

    from tfspark.spark import connect

    shared = connect.shared_session(spark)
    assert shared is not None
    one, other = shared.connect(), shared.connect()
    # By default, a server hides settings with such words.
    value = b"token password secret accesskey" + bytes(range(256)) * 4096
    one.set("value", value)
    found = {"same": other.get("value") == value, "unknown": other.get("other")}
    found["has"] = [other.has("value", v) for v in (value, b"else")]
    found["reachable"] = [connect.is_reachable(a) for a in (shared.addresses[0], "localhost:1")]
    found["own"] = spark.conf.get("tfspark.value", None)
    one.release()
    try:
        found["released"] = other.get("value")
    except PySparkException as e:
        found["released"] = type(e).__name__
    other.close()
    found["goes_on"] = spark.range(3).count()
    return found


def tunnel(spark: Any, directory: str) -> Any:
    """Messages pass through a tunnel, whose task ends with it."""
    from statistics import median

    from tfspark.control.tunnel import Tunnel
    from tfspark.messages import Probe, ProbeAnswer, ResultPart
    from tfspark.settings import Settings
    from tfspark.spec import NodeId
    from tfspark.transport.auth import new_secret
    from tfspark.transport.client import MessageClient
    from tfspark.transport.server import MessageServer

    secret, part = new_secret(), b"x" * (1 << 20)
    arrived: list[int] = []
    handlers: dict[Any, Any] = {Probe: lambda _: ProbeAnswer(), ResultPart: lambda m: arrived.append(len(m.part))}
    server = MessageServer("127.0.0.1", secret, handlers)
    opened = Tunnel(spark, "tfspark-tunnel-test", Settings())
    began = time.monotonic()
    client = MessageClient(*opened.open("127.0.0.1", server.port), secret, 60.0)
    found: dict[str, Any] = {"open_seconds": time.monotonic() - began}
    seconds = []
    for _ in range(20):
        began = time.monotonic()
        client.ask(Probe(), ProbeAnswer)
        seconds.append(time.monotonic() - began)
    began = time.monotonic()
    for n in range(20):
        client.send(ResultPart(NodeId("worker", 0), n, part))
    found |= {"call_seconds": median(seconds), "seconds_for_20_mb": time.monotonic() - began, "parts": len(arrived)}
    client.close()
    began = time.monotonic()
    opened.close()
    server.close()
    return {**found, "close_seconds": time.monotonic() - began, "threads": own_threads()}


def where(spark: Any, directory: str) -> Any:
    """The hosts of the nodes, and the address by which they reach the client."""
    from tfspark.control.addresses import driver_addresses

    with tfspark.Cluster(spark, lambda args, ctx: None, workers=2, spread=True) as cluster:
        nodes = sorted(a.host for a in cluster.nodes.nodes)
    return {"nodes": nodes, "client": driver_addresses(spark)}


def arriving(spark: Any, source: str) -> Any:
    """Return a stream of three files with 20 rows each, of which the last row has a null."""
    spark.range(0, ROWS, 1, 3).selectExpr("id", "if(id = 59, null, id) as v").write.parquet(source)
    return spark.readStream.schema("id long, v long").option("maxFilesPerTrigger", 1).parquet(source)


def stream(spark: Any, directory: str) -> Any:
    """Each micro-batch is fed from the client."""
    rows = arriving(spark, f"{directory}/source")
    with tfspark.Cluster(spark, stream_ids, workers=2, strategy="none") as cluster:
        query = cluster.feed_stream(rows, columns=["id"], trigger={"availableNow": True})
        ended = query.awaitTermination(120)
    return {"ended": ended, "read": all_results(cluster), "feeds": [r.rows for r in cluster.feed_reports]}


def bad_stream(spark: Any, directory: str) -> Any:
    """A micro-batch that cannot be fed fails the query and the cluster."""
    rows = arriving(spark, f"{directory}/bad-source")
    found = {}
    try:
        with tfspark.Cluster(spark, stream_ids, workers=1) as cluster:
            query = cluster.feed_stream(rows, trigger={"availableNow": True})
    except TFSparkError as e:
        found["error"] = f"{type(e).__name__}: {e}"
    look = threading.Event()
    while query.isActive:
        look.wait(0.05)
    found["query"] = str(query.exception())
    found["views"] = [t.name for t in spark.catalog.listTables("global_temp")]
    late = time.monotonic() + 10.0
    while (threads := own_threads()) and time.monotonic() < late:
        look.wait(0.05)
    found["threads"] = threads
    return found


def own_threads() -> list[str]:
    """Name the threads of clusters in this process."""
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("tfspark"))


def predictions(spark: Any, directory: str) -> Any:
    """Workers answer rows of a DataFrame."""
    with tfspark.Cluster(spark, answer, workers=2, strategy="none") as cluster:
        rows = cluster.predict(spark.range(0, ROWS, 1, 4), "twice long").collect()
    return sorted([r.id, r.twice] for r in rows)


def fitted(spark: Any, directory: str) -> Any:
    """Two workers train together on what is fed, and return 20 MB each."""
    size = 20_000_000
    df = spark.range(0, 256, 1, 4).selectExpr("float(id) / 256f as x", "float(id) / 128f + 1f as y")
    began = time.monotonic()
    with tfspark.Cluster(spark, fit_line, size, workers=2) as cluster:
        started = time.monotonic()
        cluster.feed(df, epochs=6)
        fed = time.monotonic()
    ended = time.monotonic()
    losses = [loss for loss, _ in cluster.results.values()]
    return {
        "losses": losses,
        "sizes": [len(result) for _, result in cluster.results.values()],
        "seconds": [round(s, 2) for s in (started - began, fed - started, ended - fed)],
        "threads": own_threads(),
    }


def failing(spark: Any, directory: str) -> Any:
    """What a node raises reaches the client."""
    began = time.monotonic()
    with tfspark.Cluster(spark, fails, workers=1) as cluster:
        cluster.feed(spark.range(7, 8))
    return time.monotonic() - began


def kept_waiting(spark: Any, directory: str) -> Any:
    """A cluster that waits until this client is killed."""
    there = Path(directory, "kept")
    cluster = tfspark.Cluster(
        spark, wait_to_be_stopped, str(there), workers=1, settings={"driver_timeout": 10.0}
    ).start()
    return cluster.wait()


def restart(spark: Any, directory: str) -> Any:
    """Nodes that were killed are started again and fed again."""
    with tfspark.Cluster(spark, dies_once, workers=1, max_restarts=1) as cluster:
        cluster.feed(spark.range(ROWS), epochs=2)
    return {"read": all_results(cluster), "restarts": [str(e).splitlines()[0] for e in cluster.restarts]}


def tunnel_lost(spark: Any, directory: str) -> Any:
    """Where the tunnel task is killed, nodes start again with another tunnel, or it is said why they ended."""
    found: dict[str, Any] = {}
    for restarts in (0, 1):
        told = Path(directory, f"tunnel-{restarts}")
        options: dict[str, Any] = {"workers": 1, "max_restarts": restarts}
        try:
            with tfspark.Cluster(spark, reads_after_a_restart, f"{told}-waits", **options) as cluster:
                coordinator = cluster._require_started().coordinator
                coordinator.wait(Path(f"{told}-waits").exists, 60.0)
                host, port = coordinator.reached_at
                Path(f"{told}-").write_text(f"{host}:{port}")
                Path(f"{told}-").rename(told)
                began = time.monotonic()
                cluster.feed(spark.range(ROWS), epochs=2)
            found["read"] = all_results(cluster)
            found["restarts"] = [str(e) for e in cluster.restarts]
        except TFSparkError as e:
            found |= {"error": f"{type(e).__name__}: {e}", "seconds": time.monotonic() - began}
    return found


def sleeps(spark: Any, directory: str) -> Any:
    """A client that is stopped for less than `driver_timeout` goes on."""
    there = Path(directory, "awake")
    with tfspark.Cluster(spark, read_ids, workers=1, settings={"driver_timeout": 60.0}) as cluster:
        fed = cluster.feed(spark.range(ROWS)).rows
        there.touch()
        look = threading.Event()
        while there.exists():
            look.wait(0.05)
        fed += cluster.feed(spark.range(ROWS)).rows
    return {"fed": fed, "read": all_results(cluster)}


def interrupted(spark: Any, directory: str) -> Any:
    """A user interrupts all operations of the session; this is no failure, so nothing starts again."""
    there = Path(directory, "interrupted")
    with tfspark.Cluster(spark, wait_to_be_stopped, str(there), workers=1, max_restarts=1) as cluster:
        cluster._require_started().coordinator.wait(there.exists, 60.0)
        spark.interruptAll()


def live_view(spark: Any, directory: str) -> Any:
    """The page and its metrics are served by the client, encrypted messages reach it, and stop() ends the nodes."""
    there = Path(directory, "waits")
    cluster = tfspark.Cluster(spark, wait_to_be_stopped, str(there), workers=1, ui=True, tls=True).start()
    cluster._require_started().coordinator.wait(there.exists, 60.0)
    assert cluster.ui_url is not None
    with urllib.request.urlopen(f"{cluster.ui_url.rstrip('/')}/metrics") as page:
        metrics = page.read().decode()
    pid = cluster.nodes.nodes[0].pid
    cluster.stop(grace=10.0)
    return {
        "metrics": "tfspark_" in metrics,
        "process": os.path.exists(f"/proc/{pid}"),
        "threads": own_threads(),
    }


def resources(spark: Any, directory: str) -> Any:
    """Nodes get the CPUs that they ask for, or it is said at once that there are too few."""
    found: dict[str, Any] = {}
    for name, options in {
        "many": {"workers": 9},
        "large": {"workers": 3, "cpus_per_node": 2},
        "fits": {"workers": 2, "cpus_per_node": 2},
    }.items():
        try:
            found[name] = len(tfspark.run(spark, lambda args, ctx: None, start_timeout=60, **options))
        except TFSparkError as e:
            found[name] = f"{type(e).__name__}: {e}"
    return found


def too_many(spark: Any, directory: str) -> Any:
    """Nodes that would fit without a tunnel."""
    return len(tfspark.run(spark, lambda args, ctx: None, workers=4, settings={"slots_timeout": 0.5}))


def no_core_is_left(spark: Any, directory: str) -> Any:
    """Nodes hold all cores, so no feed task can run."""
    options: dict[str, Any] = {"workers": 2, "cpus_per_node": 3, "strategy": "none"}
    with tfspark.Cluster(spark, read_ids, settings={"slots_timeout": 0.5}, **options) as cluster:
        return cluster.feed(spark.range(ROWS)).rows


def cancelling(spark: Any, directory: str) -> Any:
    """A job with a tag can be cancelled; others go on."""
    from tfspark.spark.jobs import TaggedJob

    begun = Path(directory, "begun")

    def block(batches: Iterator[Any]) -> Iterator[Any]:
        begun.touch()
        threading.Event().wait(300.0)
        yield from batches

    over = threading.Event()
    errors: list[str] = []

    def on_end(_: Any, error: BaseException | None) -> None:
        errors.append(type(error).__name__)
        over.set()

    job = TaggedJob(spark, "tfspark-cancelled", lambda: spark.range(1).mapInArrow(block, "id long").collect(), on_end)
    look = threading.Event()
    while not begun.exists():
        look.wait(0.05)
    job.cancel()
    return {"over": over.wait(60), "joined": job.join(10), "errors": errors, "others": spark.range(3).count()}


def unreachable(spark: Any, directory: str) -> Any:
    """A client that executors do not reach is told so before anything starts."""
    return len(tfspark.run(spark, lambda args, ctx: None, workers=1))


SCENES: dict[str, Callable[[Any, str], Any]] = {
    f.__name__: f
    for f in (
        learned,
        shared_values,
        tunnel,
        inputs,
        where,
        stream,
        bad_stream,
        predictions,
        fitted,
        failing,
        kept_waiting,
        restart,
        tunnel_lost,
        sleeps,
        interrupted,
        live_view,
        resources,
        too_many,
        no_core_is_left,
        cancelling,
        unreachable,
    )
}


def main() -> None:
    directory, remote, *names = sys.argv[1:]
    quiet = {"spark.ui.enabled": "false", "spark.log.level": "ERROR", "spark.sql.shuffle.partitions": "4"}
    spark = tfspark.session("connect", remote=remote, **quiet)
    for name in names:
        try:
            found = SCENES[name](spark, directory)
        except TFSparkError as e:
            found = {"error": f"{type(e).__name__}: {e}", "hint": e.hint}
        print(json.dumps({"scene": name, "found": found}), flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
