"""The DAG of ``jobs/airflow`` in a real Airflow, which submits its jobs to a standalone Spark.

Airflow is in an environment of its own, ``build/airflow-venv``, which ``make airflow-test`` makes. These tests take ten
minutes, so ``make test`` leaves them out.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sentences import write_sentences
from standalone import JOBS, SPARK_HOME, Standalone, environment

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.airflow

VENV = ROOT / "build" / "airflow-venv"
PROGRAM = Path(__file__).parent / "programs" / "airflow_kill.py"


class Airflow:
    """An Airflow without a scheduler, its metadata in SQLite, its connection to Spark in the environment."""

    def __init__(self, home: Path, spark: Standalone) -> None:
        self.home = home
        host, _, port = spark.url.rpartition(":")
        self._environment = {
            **environment(),
            "PATH": os.pathsep.join([str(SPARK_HOME / "bin"), os.environ["PATH"]]),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(JOBS / "airflow"),
            "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": host, "port": int(port)}),
        }
        done = self.run("airflow", "db", "migrate")
        assert done.returncode == 0, done.stdout[-4000:]

    def run(self, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(VENV / "bin" / command), *(str(a) for a in arguments)],
            cwd=self.home,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def night(self, date: str, **params: Any) -> str:
        """Run the DAG for a date; return all that was logged."""
        dag = ("--dagfile-path", JOBS / "airflow" / "tickets.py")
        return self.run("airflow", "dags", "test", "tickets", date, *dag, "--conf", json.dumps(params)).stdout

    def tasks(self, date: str) -> dict[str, tuple[str, int]]:
        """Return state and number of attempts of each task of the last run for a date."""
        with sqlite3.connect(self.home / "airflow.db") as database:
            found = database.execute(
                "SELECT task_id, t.state, try_number FROM task_instance t JOIN dag_run d USING (dag_id, run_id)"
                " WHERE logical_date LIKE ? || '%'",
                (date,),
            )
            return {task: (state, tries) for task, state, tries in found}


@pytest.fixture(scope="module")
def airflow(standalone: Standalone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    assert VENV.exists(), f"{VENV} is missing: make airflow"
    yield Airflow(tmp_path_factory.mktemp("airflow"), standalone)


def test_a_night_that_the_gate_stops_is_gone_on_with_and_nothing_is_done_twice(
    airflow: Airflow, tmp_path: Path
) -> None:
    date = "2026-01-02"
    write_sentences(tmp_path / "tickets" / date / "a.parquet", 800, seed=1)
    write_sentences(tmp_path / "new" / date / "b.parquet", 100, seed=2)
    output = tmp_path / "output"
    params = {"data": str(tmp_path / "tickets"), "new": str(tmp_path / "new"), "output": str(output), "length": 20}

    log = airflow.night(date, **params, min_accuracy=1.01)
    tasks = airflow.tasks(date)
    assert tasks["records"] == tasks["training"] == ("success", 1), log[-6000:]
    assert tasks["gate"] == ("failed", 1), "a bad model is not made better by trying again"
    assert "is below 1.01" in log
    assert tasks["export"][0] == tasks["predictions"][0] == "upstream_failed"
    assert not (output / "served").exists()

    made = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()}
    log = airflow.night(date, **params, min_accuracy=0.9)
    assert {state for state, _ in airflow.tasks(date).values()} == {"success"}, log[-6000:]
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert [p.name for p in (output / "served").iterdir()] == ["20260102"]
    predictions = pd.read_parquet(output / "predictions" / date)
    assert sorted(predictions.id) == list(range(100)) and list(predictions.columns) == ["id", "scores"]


def test_a_training_that_fails_is_tried_again_and_its_log_names_the_node(airflow: Airflow, tmp_path: Path) -> None:
    date = "2026-01-03"
    write_sentences(tmp_path / "tickets" / date / "a.parquet", 100, seed=1)
    log = airflow.night(date, data=str(tmp_path / "tickets"), output=str(tmp_path), length=0)
    tasks = airflow.tasks(date)
    assert tasks["records"] == ("success", 1), log[-6000:]
    assert tasks["training"] == ("failed", 2)
    assert {tasks[t][0] for t in ("gate", "export", "predictions")} == {"upstream_failed"}
    failures = [line for line in log.splitlines() if "NodeFailed: worker" in line]
    assert len(failures) >= 2, log[-6000:]


def test_clearing_a_running_task_leaves_nothing_behind(
    airflow: Airflow, standalone: Standalone, tmp_path: Path
) -> None:
    write_sentences(tmp_path / "train" / "a.parquet", 1000, seed=1)
    terms = ("--data", tmp_path / "train", "--format", "parquet", "--output", tmp_path, "--epochs", 1000)
    done = airflow.run("python", PROGRAM, ",".join(map(str, standalone.worker_pids)), JOBS / "text.py", *terms)
    assert done.returncode == 0, done.stdout[-4000:]
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    assert outcome["nodes"] >= 2 and outcome["left"] == []
    assert "Error code is: -9" in outcome["outcome"][0]
    assert not (tmp_path / "run" / "result.json").exists()
