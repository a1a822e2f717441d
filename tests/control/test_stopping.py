"""A cluster can be stopped at any time, from any thread, and by whatever ends its Spark job or its program."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tfspark
from tfspark.errors import ClusterStopped


def wait_and_save(args: dict[str, str], ctx: Any) -> None:
    """Read nothing until the cluster stops; then save."""
    ctx.report(1)
    while not ctx.stopping:
        ctx._link.stopping.wait(1.0)
    Path(args["directory"], f"saved-{ctx.index}").touch()


def when(cluster: tfspark.Cluster, ready: Callable[[], bool], action: Callable[[], Any]) -> threading.Thread:
    """Do something, in another thread, as soon as the cluster has come so far."""

    def wait_and_act() -> None:
        deadline = time.monotonic() + 60.0
        pause = threading.Event()
        while cluster._gang is None and time.monotonic() < deadline:
            pause.wait(0.01)
        assert cluster._gang is not None
        assert cluster._gang.coordinator.wait(ready, 60.0)
        action()

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread


def launched(cluster: tfspark.Cluster) -> Callable[[], bool]:
    return lambda: any(s.state == "launched" for s in cluster.status())


def training(cluster: tfspark.Cluster) -> Callable[[], bool]:
    return lambda: all(s.step == 1 for s in cluster.status())


def feeding(cluster: tfspark.Cluster) -> Callable[[], bool]:
    def some_rows() -> bool:
        assert cluster._gang is not None
        ledger = cluster._gang.coordinator.ledger
        return training(cluster)() and ledger is not None and sum(ledger.rows.values()) > 0

    return some_rows


def nothing_is_left() -> bool:
    return not [t.name for t in threading.enumerate() if t.name.startswith("tfspark")]


def run_to_its_end(cluster: tfspark.Cluster, spark: Any, feed: bool) -> None:
    with cluster:
        if feed:
            # A spool of this size holds a few of the partitions, and nobody reads.
            cluster.feed(spark.range(0, 100_000, 1, 50))


@pytest.mark.parametrize("phase", [launched, feeding, training])
def test_stop_from_another_thread(spark: Any, tmp_path: Path, phase: Any) -> None:
    args = {"directory": str(tmp_path)}
    cluster = tfspark.Cluster(spark, wait_and_save, args, workers=2, strategy="none", spool_bytes=100_000)
    threads = [when(cluster, phase(cluster), cluster.stop) for _ in range(2)]
    with pytest.raises(ClusterStopped, match=r"stop\(\) was called"):
        run_to_its_end(cluster, spark, feed=phase is feeding)
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    assert nothing_is_left()
    saved = sorted(p.name for p in tmp_path.iterdir())
    assert saved == ([] if phase is launched else ["saved-0", "saved-1"])
    cluster.stop()


@pytest.mark.alone
def test_main_that_does_not_return_is_killed_after_the_grace_that_stop_was_given(spark: Any) -> None:
    def busy(args: Any, ctx: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ctx.report(1)
        while True:
            time.sleep(0.1)

    cluster = tfspark.Cluster(spark, busy, workers=1, stop_grace=60.0).start()
    when(cluster, training(cluster), lambda: None).join()
    began = time.monotonic()
    cluster.stop(grace=1.0)
    assert 1.0 < time.monotonic() - began < 7.0
    with pytest.raises(ClusterStopped):
        cluster.wait()


def test_cancelling_all_jobs_of_spark_stops_it(spark: Any, tmp_path: Path) -> None:
    cluster = tfspark.Cluster(spark, wait_and_save, {"directory": str(tmp_path)}, workers=1)
    when(cluster, training(cluster), spark.sparkContext.cancelAllJobs)
    with pytest.raises(ClusterStopped, match="cancelled"):
        run_to_its_end(cluster, spark, feed=False)
    assert nothing_is_left()


def test_a_job_can_be_cancelled_from_another_thread_than_its_own(spark: Any, tmp_path: Path) -> None:
    from tfspark.spark.jobs import TaggedJob

    ended, path = threading.Event(), str(tmp_path / "begun")
    os.mkfifo(path)

    def hold(batches: Any) -> Any:
        open(path, "w").close()
        time.sleep(60.0)
        yield from batches

    job = TaggedJob(spark, "held", lambda: spark.range(1).mapInArrow(hold, "id long").collect(), lambda *_: ended.set())
    open(path).close()
    job.cancel()
    assert job.join(10.0) and ended.is_set()


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_is_cancelled_before_spark_knows_it_ends(spark: Any, begun: bool) -> None:
    from tfspark.spark.jobs import CANCELLED, TaggedJob

    on_its_way, goes_on, errors = threading.Event(), threading.Event(), []

    def hold(batches: Any) -> Any:
        time.sleep(60.0)
        yield from batches

    def action() -> Any:
        on_its_way.set()
        goes_on.wait(10.0)
        return spark.range(1).mapInArrow(hold, "id long").collect()

    job = TaggedJob(spark, "early", action, lambda _, error: errors.append(error))
    if begun:
        on_its_way.wait(10.0)
    job.cancel()
    goes_on.set()
    assert job.join(20.0)
    assert CANCELLED.search(str(errors[0])), errors


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_several_threads_cancel_a_job_at_once(spark: Any) -> None:
    from tfspark.spark.jobs import TaggedJob

    for i in range(50):
        begun, goes_on, together = threading.Event(), threading.Event(), threading.Barrier(8)

        def action(begun: threading.Event = begun, goes_on: threading.Event = goes_on) -> None:
            begun.set()
            goes_on.wait(10.0)

        job = TaggedJob(spark, f"together-{i}", action, lambda *_: None)
        assert begun.wait(10.0)

        def cancel(job: Any = job, together: Any = together) -> None:
            together.wait(10.0)
            job.cancel()

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(cancel) for _ in range(8)]:
                done.result()
        assert [t.name for t in threading.enumerate()].count(f"together-{i}-cancel") == 1
        goes_on.set()
        assert job.join(10.0)


@pytest.mark.alone
@pytest.mark.parametrize("phase", [launched, feeding])
def test_ctrl_c(spark: Any, tmp_path: Path, phase: Any) -> None:
    args = {"directory": str(tmp_path)}
    cluster = tfspark.Cluster(spark, wait_and_save, args, workers=1, spool_bytes=100_000)
    when(cluster, phase(cluster), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_to_its_end(cluster, spark, feed=True)
    assert nothing_is_left()
