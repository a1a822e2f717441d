"""How many CPUs a node may use, by control groups of both versions, and what TensorFlow is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tfspark
from tfspark.executor import cpus
from tfspark.tensorflow_options import TensorFlowOptions


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


@pytest.mark.unit
def test_the_smallest_quota_of_version_2_counts(tmp_path: Path) -> None:
    pod = tmp_path / "kubepods" / "pod1"
    write(tmp_path)
    write(pod.parent, cpu__max="max 100000\n")
    assert cpus.quota_of("0::/kubepods/pod1/main\n", tmp_path) is None
    write(pod, cpu__max="250000 100000\n")
    write(pod / "main", cpu__max="400000 100000\n")
    assert cpus.quota_of("0::/kubepods/pod1/main\n", tmp_path) == 2.5
    # In a container whose own group is mounted at the root, the path is the one on the host.
    write(tmp_path, cpu__max="50000 100000\n")
    assert cpus.quota_of("0::/on/the/host\n", tmp_path) == 0.5
    assert cpus.quota_of("0::/\n", tmp_path) == 0.5


@pytest.mark.unit
@pytest.mark.parametrize("mounted", ["cpu,cpuacct", "cpu"])
def test_the_smallest_quota_of_version_1_counts(tmp_path: Path, mounted: str) -> None:
    groups = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n"
    root = tmp_path / mounted
    write(root, cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert cpus.quota_of(groups, tmp_path) is None
    write(root / "docker" / "abc", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="50000\n")
    assert cpus.quota_of(groups, tmp_path) == 3.0
    write(tmp_path / "memory" / "docker" / "abc", cpu__cfs_quota_us="1000\n", cpu__cfs_period_us="100000\n")
    assert cpus.quota_of(groups, tmp_path) == 3.0


@pytest.mark.unit
def test_a_node_uses_no_more_than_it_asks_for_and_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for quota, asked, used in [(None, 4, 4), (None, 16, 8), (2.5, 4, 3), (0.5, 4, 1), (20.0, 0.5, 1)]:
        monkeypatch.setattr(cpus, "quota_of", lambda groups, mounted, quota=quota: quota)
        assert cpus.cpus_of_node(asked, 2) == used
    monkeypatch.setattr(cpus, "quota_of", lambda groups, mounted: 5.0)
    assert [cpus.cpus_of_node(None, n) for n in (1, 2, 3, 8)] == [5, 2, 1, 1]


@pytest.mark.unit
def test_threads_that_are_given_count_before_those_of_the_share() -> None:
    assert TensorFlowOptions().sharing(4).given() == {"intra_op_threads": 4, "inter_op_threads": 4}
    # One that waits, for rows or for other workers, must not stop the step.
    assert TensorFlowOptions().sharing(1).given() == {"intra_op_threads": 1, "inter_op_threads": 2}
    assert TensorFlowOptions(intra_op_threads=8).sharing(2).given() == {"intra_op_threads": 8, "inter_op_threads": 2}
    assert TensorFlowOptions(inter_op_threads=1).sharing(2).given() == {"intra_op_threads": 2, "inter_op_threads": 1}


def threads(args: Any, ctx: Any) -> tuple[int, int]:
    import tensorflow as tf

    threading = tf.config.threading
    return threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()


def test_nodes_of_a_local_master_share_the_machine(spark: Any) -> None:
    mine = max(1, cpus.usable_cpus() // 2)
    found = tfspark.run(spark, threads, workers=2, strategy="none")
    assert set(found.values()) == {(mine, max(2, mine))}
    given = {"intra_op_threads": 3, "inter_op_threads": 5}
    assert tfspark.run(spark, threads, workers=1, tensorflow_options=given)["worker", 0] == (3, 5)


@pytest.mark.parametrize(
    ("conf", "options", "asked"),
    [
        ({}, {"cpus_per_node": 2}, 2),
        pytest.param({"spark.task.cpus": "2"}, {}, 2, marks=pytest.mark.long),
        pytest.param({}, {}, 1, marks=pytest.mark.long),
    ],
)
def test_tensorflow_gets_the_cpus_of_its_task(conf: dict[str, str], options: dict[str, Any], asked: int) -> None:
    program = Path(__file__).parents[1] / "programs" / "threads.py"
    command = [sys.executable, str(program), json.dumps(conf), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    mine = min(asked, cpus.usable_cpus())
    assert json.loads(done.stdout.splitlines()[-1]) == [mine, max(2, mine)]
