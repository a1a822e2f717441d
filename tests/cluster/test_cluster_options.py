"""Each argument of `Cluster` is checked before anything starts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from tfspark.checks import check_shared_path
from tfspark.cluster_options import ClusterOptions
from tfspark.errors import ConfigurationError
from tfspark.monitoring.results import Results

pytestmark = pytest.mark.unit

NAN, INF = float("nan"), float("inf")
WRONG: dict[str, list[Any]] = {
    "workers": [0, -1, 1.5, "2", None, True],
    "ps": [-1, 1.5, "1", None, True],
    "chief": ["yes", 1, None],
    "evaluator": ["no", 1, None],
    "strategy": ["x", 1, None, ["auto"]],
    "gpus_per_node": [-1, "1", True, 1.5, NAN, [1]],
    "cpus_per_node": [0, -1, "1", True, NAN, INF],
    "spread": ["yes", 1, None],
    "grow": ["yes", 1, None, True],
    "ports": [5, (1,), (5, 4), ("a", "b"), (0, 70000), "ab", (1.5, 2), (True, 2), {}],
    "max_restarts": [-1, 1.5, "1", True, None],
    "checkpoint_dir": [5, "", b"x", True, ["a"]],
    "start_timeout": [0, -1, "1", None, True, NAN, INF],
    "stop_grace": [-1, "1", None, True, NAN, INF],
    "driver_timeout": [0, -1, "1", None, True, NAN, INF],
    "hang_timeout": [0, "1", None, NAN, INF],
    "stall_timeout": [0, "1", NAN, INF],
    "step_timeout": [0, "1", NAN, INF],
    "spool_bytes": [0, -1, 1.5, "1", None, True],
    "env": [{"X": 1}, {1: "a"}, ["a"], "a=b", {"A=B": "c"}, {"": "x"}, 5, {"A": None}, {"A": "\0"}],
    "tensorflow_options": [5, {"x": 1}, {"inter_op_threads": "a"}, ["a"], "a"],
    "tls": ["yes", 1, 0],
    "progress": ["yes", 1],
    "log_dir": [5, "", b"x", True],
    "tensorboard": ["yes", 1, None],
    "profile": ["a", -1, 0, (5, 4), (3,), 2.5, True, ("a", "b"), []],
    "debug_dumps": ["x", 5, None, ""],
    "ui": ["yes", 1, 0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_argument_is_named_and_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name}\b"):
        ClusterOptions(**{"workers": 1, "log_dir": "/logs", name: value})


def test_right_arguments_of_every_kind_are_taken(tmp_path: Path) -> None:
    for options in (
        {"chief": True, "evaluator": True, "ps": 2, "tls": None, "progress": False, "ui": True},
        {"env": {"X": "1"}, "ports": [20000, 20100], "stop_grace": 0, "stall_timeout": None, "step_timeout": None},
        {"checkpoint_dir": tmp_path, "log_dir": tmp_path, "profile": [2, 4], "debug_dumps": True},
        {"gpus_per_node": 0.5, "cpus_per_node": 2, "tensorflow_options": {"memory_growth": True}},
    ):
        assert ClusterOptions(workers=2, **options).nodes  # type: ignore[arg-type]


def test_a_relative_path_is_refused_where_executors_have_directories_of_their_own() -> None:
    for path in ("models", "./models", "../models", ""):
        with pytest.raises(ConfigurationError, match="must be an absolute path or a URI"):
            check_shared_path("checkpoint_dir", path)
    for path in ("/models", "file:/models", "hdfs:///models", "s3://bucket/models"):
        check_shared_path("checkpoint_dir", path)


def test_a_result_that_is_not_there_yet_says_when_it_is() -> None:
    results = Results({("worker", 0): 42}, [("worker", 0), ("worker", 1)])
    assert results["worker", 0] == 42 and results.get(("worker", 1)) is None
    with pytest.raises(KeyError, match="after the with block"):
        results["worker", 1]
    with pytest.raises(KeyError, match=r"no node \('chief', 0\); its nodes are \('worker', 0\), \('worker', 1\)"):
        results["chief", 0]
    assert pickle.loads(pickle.dumps(results)) == results
