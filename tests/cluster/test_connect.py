"""Clusters in a session of Spark Connect: what classic sessions can do, and a client that executors do not reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfspark.control.addresses import HOST_VARIABLE, candidates
from tfspark.spark.resources import Executor, Manager, Settings, TaskResources, executors_of, without_tasks

PROGRAM = Path(__file__).parents[1] / "programs" / "connect_cluster.py"
SCENES = (
    "learned",
    "shared_values",
    "tunnel",
    "inputs",
    "stream",
    "bad_stream",
    "predictions",
    "restart",
    "interrupted",
    "live_view",
    "resources",
    "no_core_is_left",
    "cancelling",
)
ROWS = list(range(60))


def run_scenes(directory: Path, remote: str, *scenes: str, **environment: str) -> dict[str, Any]:
    """Play scenes in a program of its own: a process has classic sessions or those of Connect."""
    command = [sys.executable, str(PROGRAM), str(directory), remote, *scenes]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert ran.returncode == 0, ran.stderr
    said = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"scene"')]
    return {s["scene"]: s["found"] for s in said}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened on two executors of three cores each."""
    return run_scenes(tmp_path_factory.mktemp("connect"), "local-cluster[2,3,1024]", *SCENES)


def test_a_client_learns_of_its_session_without_a_jvm(found: dict[str, Any]) -> None:
    assert found["learned"] == {
        "connect": [True, True, False],
        "cores": [6, None],
        "server": "localhost",
        "encrypts": False,
        "settings": ["local-cluster[2,3,1024]", None],
        "plan": True,
        "one_stage": [True, False],
        "moves": [False, True],
    }


def test_values_of_any_bytes_are_shared_until_they_are_released(found: dict[str, Any]) -> None:
    shared = found["shared_values"]
    assert shared["same"] and shared["unknown"] is None and shared["has"] == [True, False]
    assert shared["reachable"] == [True, False] and shared["own"] is None
    assert "Exception" in str(shared["released"]) and shared["goes_on"] == 3


def test_messages_pass_through_a_tunnel(found: dict[str, Any]) -> None:
    tunnel = found["tunnel"]
    assert tunnel["parts"] == 20 and tunnel["threads"] == []
    assert tunnel["close_seconds"] < 5.0, "the task was not cancelled"


def test_dataframes_pandas_and_iterators_are_fed_once_an_epoch(found: dict[str, Any]) -> None:
    inputs = found["inputs"]
    assert inputs == {"fed": 60, "read": sorted([*range(20), *ROWS]), "workers": 2}


def test_micro_batches_are_fed_from_the_client(found: dict[str, Any]) -> None:
    stream = found["stream"]
    assert stream["ended"] and stream["read"] == ROWS and stream["feeds"] == [20, 20, 20]


def test_a_micro_batch_that_cannot_be_fed_fails_the_query_and_the_cluster(found: dict[str, Any]) -> None:
    stream = found["bad_stream"]
    assert stream["error"].startswith("SchemaError: ") and "'v' holds 1 null(s)" in stream["error"]
    assert "'v' holds 1 null(s)" in stream["query"], "the query says why"
    assert stream["views"] == [] and stream["threads"] == []


def test_workers_answer_rows(found: dict[str, Any]) -> None:
    assert found["predictions"] == [[i, 2 * i] for i in ROWS]


def test_nodes_are_started_again_and_fed_again(found: dict[str, Any]) -> None:
    assert found["restart"]["read"] == sorted(2 * ROWS)
    (reason,) = found["restart"]["restarts"]
    assert "killed by SIGKILL" in reason


def test_interrupting_the_session_stops_a_cluster(found: dict[str, Any]) -> None:
    assert found["interrupted"]["error"].startswith("ClusterStopped: The Spark job that held the cluster was cancelled")


def test_the_client_serves_the_live_page_and_stops_the_nodes(found: dict[str, Any]) -> None:
    assert found["live_view"] == {"metrics": True, "process": False, "threads": []}


def test_resources_are_checked_and_given(found: dict[str, Any]) -> None:
    resources = found["resources"]
    assert "Spark has 6 task slot(s), but 9 are needed" in resources["many"]
    assert "Spark has 2 task slot(s) of 2 CPU(s), but 3 are needed" in resources["large"]
    assert resources["fits"] == 2


def test_a_feed_without_a_core_is_an_error(found: dict[str, Any]) -> None:
    assert found["no_core_is_left"]["error"].startswith("ResourceError: Spark has ")


def test_a_job_is_cancelled_by_its_tag(found: dict[str, Any]) -> None:
    cancelled = found["cancelling"]
    assert cancelled["over"] and cancelled["joined"] and len(cancelled["errors"]) == 1 and cancelled["others"] == 3


def test_a_client_that_executors_do_not_reach_is_told_how_they_can(tmp_path: Path) -> None:
    # An address for documentation, which nobody has.
    told = run_scenes(tmp_path, "local[2]", "unreachable", **{HOST_VARIABLE: "203.0.113.7"})["unreachable"]
    assert told["error"].startswith("ConfigurationError: Spark's executors cannot reach this client of Spark Connect")
    assert "203.0.113.7:" in told["error"] and HOST_VARIABLE in told["hint"]


@pytest.mark.unit
def test_addresses_of_a_client() -> None:
    assert candidates("localhost", "local[4]", None)[0] == ("127.0.0.1", "127.0.0.1")
    assert candidates("localhost", "spark://master:7077", None)[-1] == ("127.0.0.1", "127.0.0.1")
    assert candidates("localhost", "", "127.0.0.1") == [("127.0.0.1", "127.0.0.1")]
    assert candidates("localhost", "", "203.0.113.7") == [("0.0.0.0", "203.0.113.7")], "a router translates it"
    assert candidates("localhost", "", "[2001:db8::1]") == [("::", "2001:db8::1")]


@pytest.mark.unit
def test_executors_of_so_many_cores() -> None:
    standalone, sized = Settings(Manager.STANDALONE), Settings(Manager.YARN, executor_cpus=4, executor_gpus=1)
    assert executors_of(6, "local-cluster[2,3,1024]", Settings(Manager.LOCAL_CLUSTER)) == [Executor(3)] * 2
    assert executors_of(8, "yarn", sized) == [Executor(4, 1)] * 2
    assert executors_of(5, "spark://m:7077", standalone) == [Executor(5)]
    assert executors_of(2, "yarn", sized) == [Executor(4, 1)], "the first is on its way"


@pytest.mark.unit
def test_tasks_beside_the_nodes_take_their_slots() -> None:
    two = TaskResources(cpus=2)
    assert without_tasks([Executor(3), Executor(4, 1)], 1, two) == [Executor(3), Executor(2, 1)]
    assert without_tasks([Executor(3), Executor(4, 1)], 2, two) == [Executor(2, 1), Executor(1)]
    assert without_tasks([Executor(1)], 1, two) == [Executor(0)] and without_tasks([], 1, two) == []
