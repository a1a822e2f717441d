"""The DAG of ``jobs/airflow`` in a real Airflow, which submits its jobs to a standalone Spark.

Airflow is in an environment of its own, ``build/airflow-venv``: ``make airflow-test`` makes it and runs these tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sentences import write_sentences
from standalone import JOBS, SPARK_HOME, Standalone, environment

ROOT = Path(__file__).parents[2]
# One fixture runs all nights, which on a busy machine takes longer than one test may.
pytestmark = [pytest.mark.airflow, pytest.mark.timeout(1800)]

VENV = ROOT / "build" / "airflow-venv"
PROGRAM = Path(__file__).parents[1] / "programs" / "airflow_nights.py"
DATE = "2026-01-02"
TOO_LONG = 10**15
"""Words of a text: more numbers than any node has memory for."""

EPOCHS = 100
"""Of the night whose node is killed: training lasts much longer than the 5 s between the lines that tell of it."""


@dataclass(frozen=True)
class Nights:
    """What came of all nights, and what was logged in each."""

    directory: Path
    outcome: dict[str, Any]
    logs: dict[str, str]

    def tasks(self, night: str) -> dict[str, tuple[str, int]]:
        """Return state and number of attempts of each task."""
        return {task: (state, tries) for task, (state, tries) in self.outcome[night]["tasks"].items()}


def airflow_environment(home: Path, spark: Standalone) -> dict[str, str]:
    """Return that of an Airflow without a scheduler, with its metadata in SQLite and its connection to Spark."""
    host, _, port = spark.url.rpartition(":")
    return {
        **environment(),
        "PATH": os.pathsep.join([str(SPARK_HOME / "bin"), os.environ["PATH"]]),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(JOBS / "airflow"),
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": host, "port": int(port)}),
    }


@pytest.fixture(scope="module")
def nights(standalone: Standalone, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """A night that the gate stops, the same date again, three whose training fails, and a task that is cleared."""
    assert VENV.exists(), f"{VENV} is missing: make airflow"
    base = tmp_path_factory.mktemp("airflow")
    write_sentences(base / "tickets" / DATE / "a.parquet", 800, seed=1)
    write_sentences(base / "new" / DATE / "b.parquet", 100, seed=2)
    params = {"data": str(base / "tickets"), "new": str(base / "new"), "output": str(base / "output"), "length": 20}
    dates = {"logical_date": f"{DATE}T00:00:00+00:00", "run_after": f"{DATE}T23:59:00+00:00", "like": []}
    copied = [(str(base / "output" / "records"), str(base / "failing" / "records"))]
    failing = {**params, "output": str(base / "failing"), "length": TOO_LONG}
    copied_again = [(str(base / "output" / "records"), str(base / "refused" / "records"))]
    refused = {**params, "output": str(base / "refused"), "length": 0}
    copied_once_more = [(str(base / "output" / "records"), str(base / "recovered" / "records"))]
    recovered = {**params, "output": str(base / "recovered"), "epochs": EPOCHS}
    orders = {
        "dag": str(JOBS / "airflow" / "tickets.py"),
        "output": str(base / "output"),
        "nights": [
            {"name": "stopped", **dates, "conf": {**params, "min_accuracy": 1.01}},
            {"name": "by hand", **dates, "logical_date": None, "conf": {**params, "min_accuracy": 0.9}},
            {"name": "failing", **dates, "logical_date": None, "like": copied, "conf": failing}
            | {"run_after": f"{DATE}T12:00:00+00:00"},
            {"name": "refused", **dates, "logical_date": None, "like": copied_again, "conf": refused}
            | {"run_after": f"{DATE}T13:00:00+00:00"},
            {"name": "node killed", **dates, "logical_date": None, "like": copied_once_more, "conf": recovered}
            | {"run_after": f"{DATE}T14:00:00+00:00", "kill_node": True},
        ],
        "workers": standalone.worker_pids,
        "kill": [
            *(str(JOBS / "text.py"), "--data", str(base / "tickets" / DATE), "--format", "parquet"),
            *("--output", str(base / "killed"), "--epochs", "1000"),
        ],
    }
    (base / "orders.json").write_text(json.dumps(orders))
    done = subprocess.run(
        [str(VENV / "bin" / "python"), str(PROGRAM), str(base / "orders.json"), str(base / "outcome.json")],
        cwd=base,
        env=airflow_environment(base, standalone),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    parts = re.split(r"^===== (.+)$", done.stdout, flags=re.M)
    return Nights(
        base, json.loads((base / "outcome.json").read_text()), dict(zip(parts[1::2], parts[2::2], strict=True))
    )


def test_the_gate_stops_a_model_that_is_not_good_enough(nights: Nights) -> None:
    tasks, log = nights.tasks("stopped"), nights.logs["stopped"]
    assert tasks["records"] == tasks["training"] == ("success", 1), log[-6000:]
    assert tasks["gate"] == ("failed", 1), "a bad model is not made better by trying again"
    assert "is below 1.01" in log
    assert tasks["export"][0] == tasks["predictions"][0] == "upstream_failed"
    assert not [f for f in nights.outcome["stopped"]["files"] if "/served/" in f]


def test_a_run_without_a_logical_date_goes_on_with_its_date_and_does_nothing_twice(nights: Nights) -> None:
    assert {state for state, _ in nights.tasks("by hand").values()} == {"success"}, nights.logs["by hand"][-6000:]
    before, after = (nights.outcome[n]["files"] for n in ("stopped", "by hand"))
    assert before and {f: after[f] for f in before} == before
    output = nights.directory / "output"
    assert {p.name for d in ("records", "training", "predictions") for p in (output / d).iterdir()} == {DATE}
    assert [p.name for p in (output / "served").iterdir()] == [DATE.replace("-", "")]
    predictions = pd.read_parquet(output / "predictions" / DATE)
    assert sorted(predictions.id) == list(range(100)) and list(predictions.columns) == ["id", "scores"]


def test_a_training_that_fails_is_tried_again_and_its_log_names_the_node(nights: Nights) -> None:
    tasks, log = nights.tasks("failing"), nights.logs["failing"]
    assert tasks["records"] == ("success", 1), log[-6000:]
    assert tasks["training"] == ("failed", 2)
    assert {tasks[t][0] for t in ("gate", "export", "predictions")} == {"upstream_failed"}
    assert len(re.findall(r"NodeFailed: worker \d on 127\.0\.0\.1 failed: \w+", log)) >= 2, log[-6000:]
    assert nights.outcome["failing"]["nodes"] >= 4 and nights.outcome["failing"]["left"] == []


def test_a_training_whose_node_is_killed_is_tried_again_and_succeeds(nights: Nights) -> None:
    tasks, log = nights.tasks("node killed"), nights.logs["node killed"]
    assert tasks["training"] == ("success", 2), log[-6000:]
    assert {tasks[t] for t in ("gate", "export", "predictions")} == {("success", 1)}
    # The exception of the first attempt is in the log of the task and ends with the headline.
    assert "Error code is: 1." in log
    assert re.search(r"NodeFailed: worker \d on 127\.0\.0\.1 failed: its process was killed by SIGKILL", log), log[
        -6000:
    ]
    assert "Hint: SIGKILL that tfspark did not send usually is the kernel's" in log
    assert nights.outcome["node killed"]["nodes"] >= 4 and nights.outcome["node killed"]["left"] == []


def test_a_job_that_refuses_its_arguments_is_not_tried_again(nights: Nights) -> None:
    tasks, log = nights.tasks("refused"), nights.logs["refused"]
    assert (tasks["records"], tasks["training"]) == (("success", 1), ("failed", 1)), log[-6000:]
    assert "the job refuses its arguments" in log and "--length" in log


def test_clearing_a_running_task_leaves_nothing_behind(nights: Nights) -> None:
    outcome = nights.outcome["kill"]
    assert outcome["nodes"] >= 2 and outcome["left"] == [], nights.logs["kill"][-4000:]
    assert "Error code is: -9" in outcome["outcome"][0]
    assert not (nights.directory / "killed" / "run" / "result.json").exists()
