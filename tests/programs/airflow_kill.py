"""Run a job by Airflow's operator and end it as Airflow does when a running task is cleared; runs in Airflow's Python.

Arguments: the job and its arguments. Prints, as JSON, how many TensorFlow processes there were and what is left of
them, of spark-submit and of the driver.
"""

from __future__ import annotations

import json
import logging
import sys
import threading

import psutil
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

PATIENCE_SECONDS = 60


class TrainingBegins(logging.Handler):
    """Sets an event when the job logs its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "training: worker" in record.getMessage():
            self.event.set()


def nodes() -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if "tfspark.node.main" in (p.info["cmdline"] or [])]


def main(application: str, *arguments: str) -> None:
    before = {p.pid for p in nodes()}
    operator = SparkSubmitOperator(task_id="training", application=application, application_args=list(arguments))
    operator._hook = operator._get_hook()
    began = TrainingBegins()
    operator._hook.log.addHandler(began)
    operator._hook.log.setLevel(logging.INFO)
    outcome: list[str] = []

    def execute() -> None:
        try:
            operator.execute({})
        except Exception as e:
            outcome.append(str(e).splitlines()[0])
        began.event.set()

    running = threading.Thread(target=execute)
    running.start()
    began.event.wait()
    trained = [p for p in nodes() if p.pid not in before]
    submitted = psutil.Process().children(recursive=True)
    operator.on_kill()
    running.join()
    _, left = psutil.wait_procs([*trained, *submitted], timeout=PATIENCE_SECONDS)
    print(json.dumps({"nodes": len(trained), "left": [str(p) for p in left], "outcome": outcome}))


if __name__ == "__main__":
    main(*sys.argv[1:])
