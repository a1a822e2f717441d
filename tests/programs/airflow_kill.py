"""Run a job by Airflow's operator and end it as Airflow does when a running task is cleared; runs in Airflow's Python.

Arguments: the pids of Spark's workers, the job and its arguments. Prints, as JSON, how many TensorFlow processes there
were, and what is left of them, of the executors, of spark-submit and of the driver.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator

import psutil
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

PATIENCE_SECONDS = 60


def below(*pids: int) -> list[psutil.Process]:
    return [p for pid in pids for p in psutil.Process(pid).children(recursive=True)]


def main(workers: str, application: str, *arguments: str) -> None:
    operator = SparkSubmitOperator(task_id="training", application=application, application_args=list(arguments))
    hook = operator._hook = operator._get_hook()
    training, outcome = threading.Event(), []
    read_log = hook._process_spark_submit_log

    def watch_log(lines: Iterator[str]) -> None:
        def watched() -> Iterator[str]:
            for line in lines:
                if "training: worker" in line:
                    training.set()
                yield line

        read_log(watched())

    def execute() -> None:
        try:
            operator.execute({})
        except Exception as e:
            outcome.append(str(e).splitlines()[0])
        training.set()

    hook._process_spark_submit_log = watch_log
    running = threading.Thread(target=execute)
    running.start()
    training.wait()
    executing, submitted = below(*map(int, workers.split(","))), below(os.getpid())
    nodes = [p for p in executing if "tfspark.node.main" in p.cmdline()]
    operator.on_kill()
    running.join()
    _, left = psutil.wait_procs([*executing, *submitted], timeout=PATIENCE_SECONDS)
    print(json.dumps({"nodes": len(nodes), "left": [str(p) for p in left], "outcome": outcome}))


if __name__ == "__main__":
    main(*sys.argv[1:])
