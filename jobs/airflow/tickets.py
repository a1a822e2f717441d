"""Every night: convert the tickets of the past day, train a model, check its accuracy, publish it, predict with it.

Copy this file into your DAG folder and set ``TFSPARK_JOBS`` to the folder of the jobs.

Every job gets the date of the DAG run as its run id, writes to a directory with this name and skips completed runs. So
a task can be retried, cleared or backfilled at any time. An interrupted run starts from the beginning. Each date has
its own records, model and predictions. The date is the logical date, or the date of ``run_after`` if the run has no
logical date, for example if it was started manually or by an asset.

If you clear or mark a running task, Airflow kills spark-submit. The driver and the TensorFlow processes then end, and
their temporary files are removed, within seconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, CronDataIntervalTimetable, Param, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

DATE = "{{ date_of(dag_run) }}"

WRONG_USAGE = 2
"""Exit code of a job that rejects its arguments."""

LONGEST = timedelta(hours=8)
"""A task that takes longer is stopped, so that it ends before the next night."""

JOBS = Path(os.environ.get("TFSPARK_JOBS", Path(__file__).resolve().parent.parent))


def date_of(dag_run: Any) -> str:
    """Return the date of a run in a form that is valid in paths; ``ds`` can be undefined, and run ids have colons."""
    return (dag_run.logical_date or dag_run.run_after).astimezone(timezone.utc).strftime("%Y-%m-%d")


class JobOperator(SparkSubmitOperator):
    """Submits a job. If the job rejects its arguments, the task is not retried, because a retry would fail again."""

    def execute(self, context: Any) -> None:
        """Submit the job and wait for it."""
        try:
            super().execute(context)
        except AirflowException as e:
            if re.search(rf"Error code is: {WRONG_USAGE}\b", str(e)):
                raise AirflowFailException(f"the job refuses its arguments: {e}") from e
            raise


def job(name: str, script: str, *arguments: str) -> SparkSubmitOperator:
    """Submit a job with the connection ``spark_default``; `arguments` are templates."""
    where = ["--output", f"{{{{ params.output }}}}/{name}", "--run-id", DATE]
    return JobOperator(
        task_id=name,
        name=f"tickets-{name}-{DATE}",
        application=str(JOBS / script),
        conf={"spark.log.level": "WARN", "spark.ui.showConsoleProgress": "false"},
        application_args=[*arguments, *where],
    )


@task
def gate(dag_run: Any, params: dict[str, Any]) -> float:
    """Fail without retries if the accuracy is too low, because a retry does not change it."""
    result = json.loads(Path(params["output"], "training", date_of(dag_run), "result.json").read_text())
    if result["accuracy"] < params["min_accuracy"]:
        raise AirflowFailException(f"accuracy {result['accuracy']:.4f} is below {params['min_accuracy']}")
    return float(result["accuracy"])


@task
def export(dag_run: Any, params: dict[str, Any]) -> str:
    """Publish the model atomically; the date is its version."""
    served = Path(params["output"], "served")
    version = served / date_of(dag_run).replace("-", "")
    if not version.exists():
        served.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=".staging-", dir=served) as staging:
            copy = shutil.copytree(Path(params["output"], "training", date_of(dag_run), "model", "1"), f"{staging}/1")
            Path(copy).rename(version)
    return str(version)


with DAG(
    dag_id="tickets",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    user_defined_macros={"date_of": date_of},
    # Airflow's setting core.default_task_retry_delay is the time before a retry.
    default_args={"retries": 1, "execution_timeout": LONGEST},
    params={
        "data": Param("/data/tickets", type="string", description="one directory of Parquet files per date"),
        "new": Param("/data/tickets-new", type="string", description="the same, for predictions"),
        "output": Param(
            "/models/tickets", type="string", pattern="^/.", description="directory that Airflow and Spark share"
        ),
        "workers": Param(2, type="integer"),
        "epochs": Param(5, type="integer"),
        "length": Param(200, type="integer", description="number of words read from each text"),
        "min_accuracy": Param(0.9, type="number"),
    },
) as dag:
    records = job("records", "convert.py", "--data", "{{ params.data }}/" + DATE, "--format", "parquet")
    training = job(
        "training",
        "text.py",
        *("--data", "{{ params.output }}/records/" + DATE, "--workers", "{{ params.workers }}"),
        *("--epochs", "{{ params.epochs }}", "--length", "{{ params.length }}"),
    )
    predictions = job(
        "predictions",
        "batch_predict.py",
        *("--model", "{{ params.output }}/served/{{ date_of(dag_run) | replace('-', '') }}"),
        *("--data", "{{ params.new }}/" + DATE),
        *("--format", "parquet", "--keep", "id", "--rename", "probabilities=scores"),
    )
    records >> training >> gate() >> export() >> predictions
