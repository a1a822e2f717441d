"""Run the DAG for several nights, then end a running task as clearing it does; runs in Airflow's Python.

Arguments: a JSON file of orders and one for what came of them. All of it is one process, because Airflow takes long to
start. A line before each night divides what is logged.

Orders: ``dag``, a file; ``nights``, each with ``name``, ``logical_date`` (which may be null), ``run_after``, ``conf``,
``like``, pairs of directories of which the second becomes a copy of the first before it begins, and perhaps
``kill_node``: a node is killed in the first training of the night; ``output``, whose files are listed after each night;
``workers``, the pids of Spark's workers; ``kill``, a job and its arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.utils.cli import get_bagged_dag
from airflow.utils.db import upgradedb

PATIENCE_SECONDS = 60
LOOK_SECONDS = 0.5
TRAINING = "training: worker"
"""In the line of a job whose nodes train."""


def run_nights(orders: dict[str, Any]) -> dict[str, Any]:
    """Return states and attempts of the tasks of each night, and the files that are there after it."""
    upgradedb()
    dag = get_bagged_dag(None, "tickets", orders["dag"])
    outcome = {}
    for night in orders["nights"]:
        print(f"===== {night['name']}", flush=True)
        for source, target in night["like"]:
            shutil.copytree(source, target)
        dates = {k: night[k] and datetime.fromisoformat(night[k]) for k in ("logical_date", "run_after")}
        processes = Processes(orders["workers"], night.get("kill_node", False))
        with each_line(processes.look):
            run = dag.test(**dates, run_conf=night["conf"])
        tasks = {t.task_id: (t.state, t.try_number) for t in run.get_task_instances()}
        files = {str(p): p.stat().st_mtime_ns for p in Path(orders["output"]).rglob("*") if p.is_file()}
        outcome[night["name"]] = {"tasks": tasks, "files": files, "run_id": run.run_id}
        outcome[night["name"]] |= {"nodes": len(processes.nodes), "left": alive_after_patience(list(processes.seen))}
    return outcome


@contextlib.contextmanager
def each_line(look: Callable[[str], None]) -> Iterator[None]:
    """Call `look` with each line that spark-submit logs, before Airflow reads it."""
    read_log = SparkSubmitHook._process_spark_submit_log

    def watched(hook: SparkSubmitHook, lines: Iterator[str]) -> None:
        def looked_at() -> Iterator[str]:
            for line in lines:
                look(line)
                yield line

        read_log(hook, looked_at())

    with mock.patch.object(SparkSubmitHook, "_process_spark_submit_log", watched):
        yield


class Processes:
    """All processes that the jobs of a night have, those that lose their parents included."""

    def __init__(self, workers: list[int], kill_node: bool) -> None:
        self._parents = [*workers, os.getpid()]
        self._kill_node = kill_node
        self.seen: set[psutil.Process] = set()
        self.nodes: set[psutil.Process] = set()

    def look(self, line: str) -> None:
        """Add the processes that are there when a line is logged; kill a node if it is time."""
        there = below(*self._parents)
        nodes = [p for p in there if is_node(p)]
        self.seen.update(there)
        self.nodes.update(nodes)
        if self._kill_node and TRAINING in line:
            self._kill_node = False
            nodes[0].kill()


def below(*pids: int) -> list[psutil.Process]:
    return [p for pid in pids for p in psutil.Process(pid).children(recursive=True)]


def is_node(process: psutil.Process) -> bool:
    try:
        return "tfspark.node.main" in process.cmdline()
    except psutil.NoSuchProcess:
        # Gone, or dead and not yet reaped by its parent.
        return False


def alive_after_patience(processes: list[psutil.Process]) -> list[str]:
    """Return those that have not ended; whoever adopts one that has ended may reap it late."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        _, processes = psutil.wait_procs(processes, timeout=LOOK_SECONDS)
        processes = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not processes:
            break
    return [str(p) for p in processes]


def kill(workers: list[int], application: str, *arguments: str) -> dict[str, Any]:
    """Return how many TensorFlow processes there were, and what is left of all processes of the job."""
    print("===== kill", flush=True)
    operator = SparkSubmitOperator(task_id="training", application=application, application_args=list(arguments))
    training, outcome = threading.Event(), []

    def look(line: str) -> None:
        if TRAINING in line:
            training.set()

    def execute() -> None:
        try:
            operator.execute({})
        except Exception as e:
            outcome.append(str(e).splitlines()[0])
        training.set()

    running = threading.Thread(target=execute)
    with each_line(look):
        running.start()
        training.wait()
        executing, submitted = below(*workers), below(os.getpid())
        nodes = [p for p in executing if is_node(p)]
        operator.on_kill()
        running.join()
    return {"nodes": len(nodes), "left": alive_after_patience([*executing, *submitted]), "outcome": outcome}


def main(orders_file: str, outcome_file: str) -> None:
    orders = json.loads(Path(orders_file).read_text())
    outcome = run_nights(orders)
    outcome["kill"] = kill(orders["workers"], *orders["kill"])
    Path(outcome_file).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
