"""Reported metrics go to MLflow's active run, and to TensorBoard's event files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfspark
from tfspark.monitoring.tracking import KEPT_REPORTS, Entry, Tracking, active_trackers
from tfspark.spec import NodeId


@pytest.fixture
def store(tmp_path: Path, monkeypatch: Any) -> Any:
    """An MLflow file store of its own."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield mlflow.MlflowClient()
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri("")


def main(args: Any, ctx: Any) -> None:
    for step in range(3):
        ctx.report(step, flush=True, loss=1.0 / (step + 1), index=ctx.index)


def test_what_main_reports_goes_to_the_active_run_and_to_event_files(spark: Any, store: Any, tmp_path: Path) -> None:
    mlflow.set_experiment("tests")
    with mlflow.start_run() as run:
        tfspark.run(spark, main, workers=2, log_dir=tmp_path / "logs")
    history = store.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
    assert store.get_run(run.info.run_id).data.metrics["worker_1/index"] == 1.0
    for index in (0, 1):
        found = EventAccumulator(str(tmp_path / "logs" / "spark" / f"worker-{index}")).Reload()
        assert [(e.step, round(e.value, 3)) for e in found.Scalars("reported/loss")] == [(0, 1.0), (1, 0.5), (2, 0.333)]
    assert not [t for t in threading.enumerate() if t.name == "tfspark-tracking"]


def test_without_a_run_nothing_is_tracked(store: Any) -> None:
    assert active_trackers() == []
    tracking = Tracking([])
    tracking.report(NodeId("worker", 0), 1, {"loss": 1.0})
    tracking.close()


class Failing:
    """A tracker whose server has gone."""

    name = "Failing"

    def __init__(self) -> None:
        self.calls = 0

    def log(self, entries: Sequence[Entry]) -> None:
        self.calls += 1
        raise ConnectionError("gone")

    def close(self) -> None:
        raise AssertionError("a tracker that failed is left out")


class Keeping:
    """A tracker that keeps what it gets."""

    name = "Keeping"

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, entries: Sequence[Entry]) -> None:
        self.losses += [e.metrics["loss"] for e in entries]

    def close(self) -> None:
        pass


def test_a_tracker_that_fails_is_left_out_with_a_warning(caplog: Any) -> None:
    failing, keeping = Failing(), Keeping()
    tracking = Tracking([failing, keeping])
    with caplog.at_level(logging.WARNING, "tfspark"):
        for step in range(5):
            tracking.report(NodeId("chief", 0), step, {"loss": float(step), "nan": float("nan")})
        tracking.close()
        tracking.close()
    assert failing.calls == 1 and "Stopped tracking with Failing: ConnectionError: gone" in caplog.text
    assert keeping.losses == [0, 1, 2, 3, 4]


class Stuck:
    """A tracker whose server answers when `go` is set."""

    name = "Stuck"

    def __init__(self) -> None:
        self.entered, self.go, self.taken = threading.Event(), threading.Event(), 0

    def log(self, entries: Sequence[Entry]) -> None:
        self.entered.set()
        assert self.go.wait(30)
        self.taken += len(entries)

    def close(self) -> None:
        pass


def test_a_slow_tracker_holds_up_nobody_and_drops_what_is_too_much(caplog: Any) -> None:
    stuck = Stuck()
    tracking = Tracking([stuck])
    tracking.report(NodeId("worker", 0), 0, {})
    assert stuck.entered.wait(30)
    for step in range(KEPT_REPORTS + 5):
        tracking.report(NodeId("worker", 0), step, {"loss": 1.0})
    stuck.go.set()
    with caplog.at_level(logging.WARNING, "tfspark"):
        tracking.close()
    assert stuck.taken == KEPT_REPORTS + 1 and "5 reports were not tracked" in caplog.text
