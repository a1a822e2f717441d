"""Break short trainings at random, with restarts; check that each ends with the right model or the right error.

Each run starts a cluster of two workers that train together, save after each epoch and are fed four epochs. One or two
faults hit its processes at random times. Training is exact arithmetic over all rows and does not depend on their order.
The model of a run is right if it equals the model of the undisturbed run bit by bit; it does if each completed epoch
saw every row once. An error is right if no restart was left, or if it says that rows did not come because their task
was stopped. In any case, nothing of a cluster may remain.

With ``--elastic`` there are only as many slots as two workers and a feed task need, and executors may be taken away for
good: training then continues with one worker (`min_workers=1`). Executors that were taken away return after the run.

The output is one line of JSON per run, then a table, in Markdown with ``--markdown``. The same ``--seed`` plans the
same faults; which processes they hit, and in which state, depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common as common
import _processes as processes

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    import tfspark

NAME = "chaos"
EPOCHS = 4
ROWS = 1000
MAX_RESTARTS = 3
LAST_FAULT_SECONDS = 14.0
"""Faults are planned within this many seconds of the start of a run; an undisturbed run takes about as long."""

SLOTS = 3
"""Task slots of an elastic run: two workers and a feed task."""

LEFT_SECONDS = 20.0
"""How many seconds processes, threads and files of a cluster may remain after it has ended."""

STALL_SECONDS = 30.0
"""After how many seconds without rows a run fails: longer than Spark takes to replace both executors."""

SHRINK_SECONDS = 15.0
"""How many seconds a restart waits for all workers: longer than Spark takes to replace a dead executor."""

KINDS = {
    ("TensorFlow process", "SIGKILL"): 3,
    ("TensorFlow process", "SIGSTOP"): 2,
    ("TensorFlow process", "exception"): 2,
    ("TensorFlow process", "exit"): 2,
    ("supervising Python worker", "SIGKILL"): 3,
    ("supervising Python worker", "SIGSTOP"): 2,
    ("executor JVM", "SIGKILL"): 3,
    ("executor JVM", "SIGSTOP"): 1,
    ("feeding Python worker", "SIGKILL"): 3,
    ("feeding Python worker", "SIGSTOP"): 1,
}
"""The faults, as target and kind, with their relative frequencies."""

GONE = ("executor", "gone for good")
"""The fault that happens once in each run with ``--elastic``: Spark does not replace the executor."""


@dataclass
class Fault:
    """One fault: when it is planned and when it happened, in seconds since the start of the run."""

    target: str
    how: str
    planned: float
    at: float | None = None


def train(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Train one number from sums over all rows of an epoch."""
    import tensorflow as tf

    strategy = ctx.strategy()
    with strategy.scope():
        weight = tf.Variable(0.0, dtype=tf.float64)
        rows = tf.Variable(0.0, dtype=tf.float64)
    saved = ctx.checkpoint(weight=weight, rows=rows)
    saved.restore()

    @tf.function(reduce_retracing=True)
    def step(ids: Any) -> Any:
        def sums(x: Any) -> Any:
            x = tf.cast(x, tf.float64)
            mine = tf.stack([tf.cast(tf.size(x), tf.float64), tf.reduce_sum(x), tf.reduce_sum(x * x)])
            return tf.distribute.get_replica_context().all_reduce("SUM", mine)

        return strategy.experimental_local_results(strategy.run(sums, args=(ids,)))[0]

    order = Path(args["orders"], str(ctx.index))
    steps = 0
    for _ in ctx.epochs():
        totals = tf.zeros(3, tf.float64)
        for batch in ctx.distribute(ctx.dataset(25, shuffle=True)):
            totals += step(batch["id"])
            steps += 1
            ctx.report(steps)
            if order.exists():
                how = order.read_text()
                order.unlink()
                die(how)
            time.sleep(args["step_seconds"])
        n, total, squares = (float(x) for x in totals)
        weight.assign(0.5 * weight + total / n + squares)
        rows.assign_add(n)
        saved.save()
    return {"weight": float(weight.numpy()), "rows": float(rows.numpy())}


def die(how: str) -> None:
    """End this process from the inside: by exit, by SIGSEGV or by an exception."""
    if how == "exit":
        os._exit(7)
    if how == "SIGSEGV":
        faulthandler.disable()
        ctypes.string_at(0)
    raise RuntimeError("chaos")


# --- faults


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _nodes() -> list[int]:
    """Return the TensorFlow processes, without their guardians."""
    with contextlib.suppress(OSError):
        return [pid for pid in processes.nodes() if "pyspark.daemon" in _command(processes.parent(pid))]
    return []


def _candidates(target: str) -> list[int]:
    """Return the current processes of a kind."""
    with contextlib.suppress(OSError):
        if target == "executor JVM":
            return [pid for pid, command in processes.marked().items() if "CoarseGrainedExecutorBackend" in command]
        supervisors = {processes.parent(pid) for pid in _nodes()}
        if target == "supervising Python worker":
            return sorted(supervisors)
        if target == "feeding Python worker":
            workers = [pid for pid, command in processes.marked().items() if "pyspark.daemon" in command]
            return [p for p in workers if processes.parent(p) in workers and p not in supervisors]
        return _nodes()
    return []


class Chaos(threading.Thread):
    """Causes the faults of one run."""

    def __init__(
        self, faults: list[Fault], orders: str, rng: random.Random, take_away: Callable[[random.Random], bool]
    ) -> None:
        super().__init__(name="chaos", daemon=True)
        self.faults, self._orders, self._rng, self._take_away = faults, orders, rng, take_away
        self._over = threading.Event()
        self._began = time.monotonic()

    def run(self) -> None:
        for fault in self.faults:
            self._over.wait(max(0.0, fault.planned - (time.monotonic() - self._began)))
            while not self._over.is_set() and not self._befall(fault):
                self._over.wait(0.1)
            if not self._over.is_set():
                fault.at = time.monotonic() - self._began

    def _befall(self, fault: Fault) -> bool:
        if fault.how in ("exception", "exit"):
            Path(self._orders, str(self._rng.randrange(2))).write_text(fault.how)
            return True
        if (fault.target, fault.how) == GONE:
            return self._take_away(self._rng)
        candidates = _candidates(fault.target)
        if not candidates:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._rng.choice(candidates), getattr(signal, fault.how))
            return True
        return False

    def end(self) -> None:
        self._over.set()
        self.join()


# --- one run


def planned(rng: random.Random, elastic: bool = False) -> list[Fault]:
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=rng.choice([0, 1] if elastic else [1, 1, 2]))
    kinds += [GONE] if elastic else []
    faults = [Fault(target, how, round(rng.uniform(0.5, LAST_FAULT_SECONDS), 1)) for target, how in kinds]
    return sorted(faults, key=lambda fault: fault.planned)


def _take_away(spark: SparkSession, cluster: tfspark.Cluster, rng: random.Random) -> bool:
    """Make Spark end the executor of a node and not replace it; return whether an executor was ended."""
    from tfspark.spark.internals import executors_of_task

    gang = cluster._gang
    records = list(gang.life.records.values()) if gang is not None else []
    for record in rng.sample(records, len(records)):
        if record.attempt is not None and record.exited is None:
            with contextlib.suppress(Exception):
                for executor in executors_of_task(spark.sparkContext, record.stage, record.attempt):
                    killed = bool(spark.sparkContext._jsc.sc().killExecutor(executor))
                    _ask_for(spark, SLOTS - 1)
                    return killed
    return False


def give_back(spark: SparkSession, slots: int) -> None:
    """Make Spark start executors until there are `slots` slots again."""
    from tfspark.spark.internals import concurrent_tasks

    _ask_for(spark, slots)
    common.wait_until(lambda: concurrent_tasks(spark.sparkContext) >= slots, "all executors", 120.0)


def _ask_for(spark: SparkSession, executors: int) -> None:
    """Set the number of executors that Spark should run for the application."""
    context = spark.sparkContext
    maps = getattr(context._jvm.scala.collection.immutable, "Map$")
    context._jsc.sc().requestTotalExecutors(executors, 0, getattr(maps, "MODULE$").empty())


def run_once(
    spark: SparkSession, faults: list[Fault], rng: random.Random, right: Any, limit: float, elastic: bool = False
) -> dict[str, Any]:
    """Train once, with faults; return how the run ended."""
    import tfspark

    with tempfile.TemporaryDirectory() as directory:
        orders = Path(directory, "orders")
        orders.mkdir()
        args = {"orders": str(orders), "step_seconds": 0.05}
        cluster = tfspark.Cluster(
            spark, train, args, workers=2, max_restarts=MAX_RESTARTS, checkpoint_dir=f"{directory}/checkpoints",
            stop_grace=1.0, hang_timeout=8.0, stall_timeout=STALL_SECONDS, start_timeout=90.0, progress=False,
            min_workers=1 if elastic else None, settings={"shrink_timeout": SHRINK_SECONDS},
        )  # fmt: skip
        hung: list[bool] = []
        take_away = partial(_take_away, spark, cluster)
        chaos, watchdog = Chaos(faults, str(orders), rng, take_away), _watchdog(cluster, limit, hung)
        began = time.monotonic()
        chaos.start()
        try:
            with cluster:
                cluster.feed(spark.range(0, ROWS, 1, 8), epochs=EPOCHS)
            model = cluster.results["worker", 0]
            end, ok = "right model", right is None or model == right
            if not ok:
                end = f"wrong model: {model}"
        except tfspark.errors.TFSparkError as e:
            model, end = None, f"{type(e).__name__}: {e.message}"
            ok = _is_right_error(e, cluster, faults) and not hung
        finally:
            seconds = time.monotonic() - began
            watchdog.cancel()
            chaos.end()
    if hung:
        end = f"too late: {end}"
    return {
        "ok": ok,
        "end": end,
        "seconds": seconds,
        "workers": len(cluster.nodes.nodes),
        "restarts": [str(getattr(e, "message", e)).splitlines()[0] for e in cluster.restarts],
        "model": model,
    }


def _is_right_error(error: Exception, cluster: tfspark.Cluster, faults: list[Fault]) -> bool:
    from tfspark.errors import FeedError

    starved = any(f.how == "SIGSTOP" and f.at is not None and "TensorFlow" not in f.target for f in faults)
    return len(cluster.restarts) == MAX_RESTARTS or (isinstance(error, FeedError) and starved)


def _watchdog(cluster: tfspark.Cluster, limit: float, hung: list[bool]) -> threading.Timer:
    def too_late() -> None:
        hung.append(True)
        faulthandler.dump_traceback(sys.stderr)
        cluster.stop(grace=0.0)

    timer = threading.Timer(limit, too_late)
    timer.daemon = True
    timer.start()
    return timer


def left_over(directory: str) -> list[str]:
    """Wait until nothing of clusters remains, at most `LEFT_SECONDS`; return what remains."""
    kinds: list[Callable[[], list[str]]] = [
        lambda: list(processes.nodes().values()),
        processes.threads,
        lambda: processes.files(directory),
    ]
    with contextlib.suppress(TimeoutError):
        common.wait_until(lambda: not any(kind() for kind in kinds), "the end", LEFT_SECONDS)
    return [thing for kind in kinds for thing in kind()]


# --- the table


def table(runs: list[dict[str, Any]], markdown: bool) -> str:
    """Return a table of the outcomes of each kind of fault; a run with two faults counts for both."""
    head = ("fault", "planned", "took place", "right model", "right error", "wrong", "restarts", "longest run, s")
    rows = [head]
    for target, how in [*KINDS, GONE, ("all runs", "")]:
        chosen, faults = [], []
        for run in runs:
            of_kind = [f for f in run["faults"] if (f["target"], f["how"]) == (target, how) or not how]
            faults += of_kind
            if of_kind or not how:
                chosen.append(run)
        if chosen:
            good = [r for r in chosen if r["ok"]]
            rows.append((
                f"{target}, {how}" if how else target,
                str(len(faults)),
                str(sum(f["at"] is not None for f in faults)),
                str(sum(r["end"] == "right model" for r in good)),
                str(sum(r["end"] != "right model" for r in good)),
                str(len(chosen) - len(good)),
                str(sum(len(r["restarts"]) for r in chosen)),
                f"{max(r['seconds'] for r in chosen):.0f}",
            ))  # fmt: skip
    return common.table(rows, markdown)


def settings(directory: str) -> dict[str, str]:
    return {
        "spark.local.dir": directory,
        "spark.log.level": "OFF",
        "spark.task.maxFailures": "8",
        "spark.deploy.maxExecutorRetries": "-1",
        # Spark must give up an executor that is stopped (SIGSTOP) and not killed.
        "spark.executor.heartbeatInterval": "2s",
        "spark.network.timeout": "20s",
        "spark.network.timeoutInterval": "5s",
    }


def main() -> None:
    """Run and print; exit with 1 if a run ended wrongly or left something behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elastic", action="store_true", help="take executors away for good, too")
    parser.add_argument("--master", help="local-cluster[3,2,1024], or [3,1,1024] with --elastic")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="number of the first run, to repeat some of a series")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds within which a run must have ended")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    options.master = options.master or f"local-cluster[3,{1 if options.elastic else 2},1024]"
    common.keep_stdout_for_figures()
    processes.mark()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        with common.session(options.master, NAME, **settings(directory)) as spark:
            common.surroundings(NAME, master=options.master, seed=options.seed)
            undisturbed = run_once(spark, [], random.Random(0), None, options.limit)
            right = undisturbed.pop("model")
            if right is None or right["rows"] != ROWS * EPOCHS:
                raise SystemExit(f"the undisturbed run failed: {undisturbed}")
            for i in range(options.first, options.first + options.runs):
                rng = random.Random(f"{options.seed}-{i}")
                faults = planned(rng, options.elastic)
                run = run_once(spark, faults, rng, right, options.limit, options.elastic)
                if options.elastic:
                    give_back(spark, SLOTS)
                del run["model"]
                run["faults"] = [asdict(f) for f in faults]
                run["left"] = left_over(directory)
                run["ok"] = run["ok"] and not run["left"]
                runs.append(run)
                common.line(NAME, "run", i, "", open_files=processes.open_files(), **run)
        ended = processes.left()
    common.text(table(runs, options.markdown))
    wrong = sum(not r["ok"] for r in runs)
    common.line(NAME, "wrong", wrong, "", runs=len(runs), undisturbed=undisturbed["seconds"], left=list(ended.values()))
    sys.exit(bool(wrong or ended))


if __name__ == "__main__":
    main()
