"""Settings reach the driver's server, the supervising tasks, the nodes and the feed tasks."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import tfspark
from tfspark.errors import ConfigurationError
from tfspark.executor.process import is_stopped


def look(args: Any, ctx: Any) -> Any:
    for _ in ctx.dataset(10):
        pass
    for i in range(20):
        print(f"line {i}", flush=True)
    if args == "fail":
        raise RuntimeError("no")
    return ctx._link.settings.to_json()


def test_each_origin_reaches_the_nodes(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFSPARK_CALL_TIMEOUT", "11s")
    spark.conf.set("spark.tfspark.hang_timeout", "2min")
    spark.conf.set("spark.tfspark.stall_timeout", "300")
    try:
        with tfspark.Cluster(
            spark, look, workers=1, stall_timeout=200.0, spool_bytes=1 << 20, settings={"chunk_bytes": 1000}
        ) as cluster:
            limits = cluster._require_started().life.limits
            cluster.feed(spark.range(100))
    finally:
        spark.conf.unset("spark.tfspark.hang_timeout")
        spark.conf.unset("spark.tfspark.stall_timeout")
    told = cluster.results["worker", 0]
    assert {k: told[k] for k in ("call_timeout", "hang_timeout", "stall_timeout", "spool_bytes", "chunk_bytes")} == {
        "call_timeout": 11.0,
        "hang_timeout": 120.0,
        "stall_timeout": 200.0,
        "spool_bytes": 1 << 20,
        "chunk_bytes": 1000,
    }
    assert (limits.hang, limits.stall) == (120.0, 200.0)


def test_the_supervising_task_keeps_as_many_lines_as_it_is_told(spark: Any) -> None:
    with (
        pytest.raises(tfspark.errors.NodeFailed) as failed,
        tfspark.Cluster(spark, look, "fail", workers=1, settings={"log_tail_lines": 3}) as cluster,
    ):
        cluster.feed(spark.range(100))
        cluster.wait()
    assert len(failed.value.log_tail) == 3


def test_a_wrong_setting_of_spark_is_an_error_before_anything_starts(spark: Any) -> None:
    for key, text in (("spark.tfspark.silence_timeout", "soon"), ("spark.tfspark.silence", "20s")):
        spark.conf.set(key, text)
        try:
            with pytest.raises(ConfigurationError, match=rf"^{key} "):
                tfspark.Cluster(spark, look, workers=1)
        finally:
            spark.conf.unset(key)


def stop_supervisor(args: Any, ctx: Any) -> str:
    """Stop the Python worker that supervises this node, until someone lets it go on."""
    supervisor = os.getppid()
    (Path(args) / "pid").write_text(str(supervisor))
    os.kill(supervisor, signal.SIGSTOP)
    pause = threading.Event()
    for stopped in (True, False):
        while is_stopped(supervisor) != stopped:
            pause.wait(0.05)
    return "went on"


class GoesOn(logging.Handler):
    """Lets the supervisor go on when the driver warns of its silence."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "supervises" in record.getMessage():
            self.warnings.append(record.getMessage())
            os.kill(int((self._directory / "pid").read_text()), signal.SIGCONT)


def test_a_node_that_pulses_outlives_the_silence_of_its_task(spark: Any, tmp_path: Path) -> None:
    handler = GoesOn(tmp_path)
    logger = logging.getLogger("tfspark.control.coordinator")
    logger.addHandler(handler)
    soon = {"silence_timeout": 2.0, "heartbeat_timeout": 0.5, "longest_interval": 0.5}
    try:
        results = tfspark.run(spark, stop_supervisor, str(tmp_path), workers=1, settings=soon)
    finally:
        logger.removeHandler(handler)
    assert results["worker", 0] == "went on"
    (warning,) = handler.warnings
    assert "The Spark task that supervises worker 0 on" in warning and "lost after 30 s" in warning
