"""Every night: convert the past day's tickets, train on them, let only a good model pass, publish it, predict with it.

Copy this file into your DAG folder and let ``TFSPARK_JOBS`` name the folder of the jobs.

Every job gets the run's date as its run id, writes into a directory of that name and leaves alone what is complete
there. So a task can be retried, cleared or backfilled at any time: what was done is not done again, what was cut off
begins anew, and each date has its own records, model and predictions. The date is the logical one, or that of
``run_after`` where a run has no logical date, as when it is started by hand or by an asset.

Clearing a running task, or marking it, kills spark-submit, and with it go the driver, the TensorFlow processes and
their files, within seconds.
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
"""Exit code of a job that refuses its arguments."""

LONGEST = timedelta(hours=8)
"""A task that takes longer is ended, before the next night begins."""

JOBS = Path(os.environ.get("TFSPARK_JOBS", Path(__file__).resolve().parent.parent))


def date_of(dag_run: Any) -> str:
    """Return the date that a run is for, in a form that paths take: Airflow's ``ds`` and run ids do not always."""
    return (dag_run.logical_date or dag_run.run_after).astimezone(timezone.utc).strftime("%Y-%m-%d")


class JobOperator(SparkSubmitOperator):
    """Submits a job, and does not try again if the job refuses its arguments: it would refuse them again."""

    def execute(self, context: Any) -> None:
        """Submit the job and wait for it."""
        try:
            super().execute(context)
        except AirflowException as e:
            if re.search(rf"Error code is: {WRONG_USAGE}\b", str(e)):
                raise AirflowFailException(f"the job refuses its arguments: {e}") from e
            raise


def job(name: str, script: str, *arguments: str) -> SparkSubmitOperator:
    """Submit one of the jobs by the connection ``spark_default``; `arguments` are templates."""
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
    """Fail, for good, if the model is not good enough: retrying does not make it better."""
    result = json.loads(Path(params["output"], "training", date_of(dag_run), "result.json").read_text())
    if result["accuracy"] < params["min_accuracy"]:
        raise AirflowFailException(f"accuracy {result['accuracy']:.4f} is below {params['min_accuracy']}")
    return float(result["accuracy"])


@task
def export(dag_run: Any, params: dict[str, Any]) -> str:
    """Publish the model as the version that the date is, whole or not at all."""
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
    # How long to wait before a retry is Airflow's own setting, core.default_task_retry_delay.
    default_args={"retries": 1, "execution_timeout": LONGEST},
    params={
        "data": Param("/data/tickets", type="string", description="a directory of Parquet files for each date"),
        "new": Param("/data/tickets-new", type="string", description="the same, to predict"),
        "output": Param(
            "/models/tickets", type="string", pattern="^/.", description="directory that Airflow and Spark share"
        ),
        "workers": Param(2, type="integer"),
        "epochs": Param(5, type="integer"),
        "length": Param(200, type="integer", description="words of a text that are read"),
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
