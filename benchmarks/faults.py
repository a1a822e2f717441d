"""Measure how soon the driver raises after each kind of failure, and with which message.

Two workers train together, so that the worker that survives is blocked in a collective. A fault hits worker 1 or a
process that it depends on. The time is from the fault until ``feed`` has raised in the driver, with everything freed.
The output is one line of JSON per fault, then a table, in Markdown with ``--markdown``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common as common
import _processes as processes
import chaos

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    import tfspark

NAME = "faults"


def node(cluster: tfspark.Cluster) -> int:
    """Return the pid of worker 1."""
    return next(a.pid for a in cluster.nodes.nodes if a.node.index == 1)


def supervisor(cluster: tfspark.Cluster) -> int:
    """Return the pid of the Spark Python worker that supervises worker 1."""
    return processes.parent(node(cluster))


def executor(cluster: tfspark.Cluster) -> int:
    """Return the pid of the executor JVM of worker 1: the parent of Spark's daemon of Python workers."""
    return processes.parent(processes.parent(supervisor(cluster)))


def order(how: str) -> Callable[[tfspark.Cluster, Path], None]:
    return lambda cluster, orders: (orders / "1").write_text(how) and None


def kill(what: Callable[[tfspark.Cluster], int], sig: signal.Signals) -> Callable[[tfspark.Cluster, Path], None]:
    return lambda cluster, orders: os.kill(what(cluster), sig)


FAULTS: dict[str, Callable[[tfspark.Cluster, Path], None]] = {
    "main raises": order("exception"),
    "main calls os._exit(7)": order("exit"),
    "TensorFlow crashes (SIGSEGV)": order("SIGSEGV"),
    "TensorFlow process killed (SIGKILL)": kill(node, signal.SIGKILL),
    "TensorFlow process stopped (SIGSTOP)": kill(node, signal.SIGSTOP),
    "Python worker killed": kill(supervisor, signal.SIGKILL),
    "Python worker stopped": kill(supervisor, signal.SIGSTOP),
    "executor killed": kill(executor, signal.SIGKILL),
}


def measure(spark: SparkSession, fault: Callable[[tfspark.Cluster, Path], None]) -> dict[str, Any]:
    """Train, cause a fault, and return the error that the driver raised."""
    import tfspark

    with tempfile.TemporaryDirectory() as directory:
        orders = Path(directory, "orders")
        orders.mkdir()
        args = {"orders": str(orders), "step_seconds": 0.02}
        cluster = tfspark.Cluster(
            spark, chaos.train, args, workers=2, checkpoint_dir=f"{directory}/checkpoints", stop_grace=1.0,
            progress=False,
        )  # fmt: skip
        happened: list[float] = []

        def happen() -> None:
            common.wait_until(lambda: all(s.step > 2 for s in cluster.status()), "training")
            fault(cluster, orders)
            happened.append(time.monotonic())

        try:
            cluster.start()
            thread = threading.Thread(target=happen, daemon=True)
            thread.start()
            cluster.feed(spark.range(0, 2000, 1, 4), epochs=10_000)
            cluster.wait()
        except tfspark.errors.TFSparkError as e:
            seconds = time.monotonic() - happened[0]
            named = [getattr(e, k, None) for k in ("role", "index")]
            return {
                "seconds": seconds,
                "error": type(e).__name__,
                "right_node": named == ["worker", 1],
                "message": e.message,
                "hint": e.hint,
                "traceback": bool(getattr(e, "remote_traceback", "")),
                "log_lines": len(getattr(e, "log_tail", ())),
            }
    raise RuntimeError("nothing came of it")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--master", default="local-cluster[3,2,1024]")
    parser.add_argument("--only", nargs="+", default=list(FAULTS), help="some of the faults")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    common.keep_stdout_for_figures()
    processes.mark()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        with common.session(options.master, NAME, **chaos.settings(directory)) as spark:
            common.surroundings(NAME, master=options.master)
            for name in options.only:
                outcome = found[name] = measure(spark, FAULTS[name])
                outcome["left"] = chaos.left_over(directory)
                seconds = outcome.pop("seconds")
                common.line(NAME, name, seconds, "s", **outcome)
                outcome["seconds"] = seconds
        ended = processes.left()
    rows = [("what happens", "seconds", "what the driver raises")]
    rows += [
        (name, f"{o['seconds']:.1f}", f"`{o['error']}: {o['message']}`" + (", its traceback" if o["traceback"] else ""))
        for name, o in found.items()
    ]
    common.text(common.table(rows, options.markdown))
    with contextlib.suppress(ValueError):
        slowest = max(o["seconds"] for o in found.values())
        common.line(NAME, "slowest", slowest, "s", left=list(ended.values()))
    sys.exit(bool(ended or any(o["left"] for o in found.values())))


if __name__ == "__main__":
    main()
