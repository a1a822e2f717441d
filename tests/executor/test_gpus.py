"""GPUs, places and ports of nodes on a real standalone master, whose worker's discovery script reports two GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standalone import daemon, wait_for

import tfspark
from tfspark.errors import ConfigurationError, ResourceError
from tfspark.executor.gpu import gpus_of_process, visible_devices

PROGRAM = Path(__file__).parents[1] / "programs" / "on_executors.py"

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs scenarios of the program in an application of its own, on a worker of 6 cores and 2 GPUs."""
    directory = tmp_path_factory.mktemp("standalone")
    script = directory / "gpus.sh"
    script.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses": ["0", "1"]}'\n""")
    script.chmod(0o755)
    conf = directory / "worker.conf"
    conf.write_text(f"spark.worker.resource.gpu.amount 2\nspark.worker.resource.gpu.discoveryScript {script}\n")
    loopback = ("--host", "127.0.0.1", "--webui-port", "0")
    deploy = "org.apache.spark.deploy"
    running = [daemon(directory / "master", f"{deploy}.master.Master", *loopback, "--port", "0")]

    def run(settings: dict[str, str], *scenarios: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), url, json.dumps(settings), *scenarios],
            env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        outcome: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return outcome

    try:
        url = wait_for(directory / "master", r"Starting Spark master at (spark://\S+)", running[0])[1]
        size = ("--cores", "6", "--memory", "2g", "--work-dir", str(directory / "work"), "--properties-file", str(conf))
        running.append(daemon(directory / "worker", f"{deploy}.worker.Worker", *loopback, *size, url))
        wait_for(directory / "worker", "Successfully registered with master", running[1])
        yield run
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)


def test_gpus_places_and_ports_with_two_executors_of_one_gpu_each(run: Run) -> None:
    settings = {"spark.executor.cores": "3", "spark.executor.resource.gpu.amount": "1"}
    outcome = run(settings, "gpu_workers_beside_a_parameter_server", "spread", "refusals")

    beside = outcome["gpu_workers_beside_a_parameter_server"]
    chief = beside["chief"]
    assert chief["trained"] == beside["rows"] == 40
    visible = {node: env["CUDA_VISIBLE_DEVICES"] for node, env in beside["nodes"].items()}
    assert visible["ps 0"] == "-1", "a parameter server sees no GPU, and leaves those there are to others"
    assert {visible["chief 0"], visible["worker 0"]} == {"0", "1"} and chief["gpus"] == [visible["chief 0"]]
    assert chief["env"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID" and "TF_FORCE_GPU_ALLOW_GROWTH" not in chief["env"]
    assert len(set(beside["ports"])) == 7 and all(24100 <= p <= 24120 for p in beside["ports"])

    one_each = outcome["spread"]
    assert len(set(one_each["executors"])) == 2
    assert one_each["gpus"] == [[], []], "nobody asked for any"

    per_node, in_all, places, cpus, ports = outcome["refusals"]
    assert per_node.startswith("ResourceError: Each node needs 2 GPU(s), but an executor has 1")
    assert in_all.startswith("ResourceError: Spark has 2 GPU(s) on 2 executor(s), but 3 nodes need 1 each: 3 are")
    assert "spark.executor.resource.gpu.amount" in per_node and "spark.executor.instances" in in_all
    assert places.startswith("ResourceError: spread=True asks for 3 executors of at least 2 CPU(s), one for each node")
    assert cpus.startswith("ResourceError: Each node needs 9 CPUs, but an executor has 3")
    assert "NodeFailed" in ports and "All ports from 24130 to 24131 are in use on 127.0.0.1" in ports


@pytest.mark.long
def test_a_gpu_that_nodes_share_and_gpus_that_leave_none_to_feeding(run: Run) -> None:
    settings = {
        "spark.executor.resource.gpu.amount": "2",
        "spark.task.resource.gpu.amount": "0.5",
        "spark.executorEnv.CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb",
        "spark.executorEnv.SPARK_LOCAL_IP": "127.0.0.3",
    }
    outcome = run(settings, "shares", "all_gpus_held", "predicting")

    shares = outcome["shares"]
    assert shares["hosts"] == ["127.0.0.3", "127.0.0.3"]
    for worker in shares["workers"]:
        assert worker["env"] == {"CUDA_VISIBLE_DEVICES": worker["gpus"][0], "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        assert worker["gpus"][0] in ("GPU-aa", "GPU-bb")
    assert sum(worker["rows"] for worker in shares["workers"]) == 40

    # Tasks of predict are told of theirs in the same words.
    assert all(env["CUDA_VISIBLE_DEVICES"] in ("GPU-aa", "GPU-bb") for env in outcome["predicting"])

    held = outcome["all_gpus_held"]
    assert held["worker"]["gpus"] == ["GPU-aa", "GPU-bb"]
    assert held["worker"]["rows"] == 40, "feeding does without the GPU that any other task gets"
    for refused in held["refused"]:
        assert refused.startswith("ResourceError") and "spark.task.resource.gpu.amount is 0.5" in refused


@pytest.mark.long
def test_gpus_on_executors_that_dynamic_allocation_brings(run: Run) -> None:
    settings = {
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.executorIdleTimeout": "2s",
        "spark.executor.cores": "1",
    }
    fed = run(settings, "fed")["fed"]
    assert fed["rows"] == 40 and fed["gpus"] in (["0"], ["1"])


def test_a_gpu_that_the_executor_does_not_see_and_workers_that_speak_ipv6(run: Run) -> None:
    settings = {
        "spark.executor.resource.gpu.amount": "2",
        "spark.executorEnv.CUDA_VISIBLE_DEVICES": "GPU-aa",
        "spark.executorEnv.SPARK_LOCAL_IP": "::1",
    }
    outcome = run(settings, "hidden", "all_reduce")
    hidden = outcome["hidden"]
    assert hidden.startswith("NodeFailed: worker 0 on ::1 failed: ResourceError: Spark assigned GPU '1', but")
    assert "discovery script" in hidden
    assert outcome["all_reduce"]["hosts"] == ["::1", "::1"]
    for total, spec in outcome["all_reduce"]["results"]:
        assert total == 40
        assert all(a.startswith("[::1]:") for a in spec["worker"])


def test_local_mode_has_no_gpus_and_no_profiles(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> dict[str, str]:
        return {"gpus": ",".join(ctx.gpus), "visible": os.environ["CUDA_VISIBLE_DEVICES"]}

    for asked, said in [
        ({"gpus_per_node": 1}, "gpus_per_node=1 per node"),
        ({"cpus_per_node": 2}, "cpus_per_node=2 per node"),
        ({"spread": True}, "spread=True per node"),
    ]:
        with pytest.raises(ResourceError, match=said) as caught:
            tfspark.run(spark, main, workers=1, **asked)
        assert "local-cluster" in str(caught.value)
    assert tfspark.run(spark, main, workers=1, gpus_per_node=0)["worker", 0] == {"gpus": "", "visible": "-1"}


@pytest.mark.parametrize("ports", [(0, 10), (10, 9), (1, 70000), 5, ("a", "b"), (1, 2, 3)])
def test_ports_that_are_no_range(spark: Any, ports: Any) -> None:
    with pytest.raises(ConfigurationError, match="ports must"):
        tfspark.Cluster(spark, print, workers=1, ports=ports)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("assigned", "executor_sees", "devices"),
    [
        (["0", "1"], None, ("0", "1")),
        (["1"], "4,6", ("6",)),
        (["6"], "4,6", ("6",)),
        (["0"], "GPU-aa, GPU-bb", ("GPU-aa",)),
        (["GPU-bb"], "GPU-aa,GPU-bb", ("GPU-bb",)),
        (["MIG-1/2/3"], "MIG-1/2/3", ("MIG-1/2/3",)),
        ([], "-1", ()),
        ([], "0,1", ()),
    ],
)
def test_addresses_are_those_that_cuda_knows_in_the_executor(
    assigned: list[str], executor_sees: str | None, devices: tuple[str, ...]
) -> None:
    assert visible_devices(assigned, executor_sees) == devices


@pytest.mark.unit
@pytest.mark.parametrize(("assigned", "executor_sees"), [("2", "4,6"), ("GPU-cc", "GPU-aa"), ("0", "-1"), ("0", "")])
def test_a_device_that_is_hidden_is_not_given(assigned: str, executor_sees: str) -> None:
    with pytest.raises(ResourceError, match=f"Spark assigned GPU '{assigned}', but"):
        visible_devices([assigned], executor_sees)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("amount", "assigned", "env", "executor_sees", "gpus", "told"),
    [
        (1, ["GPU-a"], {}, None, ("GPU-a",), {"CUDA_VISIBLE_DEVICES": "GPU-a"}),
        (2, ["2", "3"], {}, None, ("2", "3"), {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (1, ["2"], {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, None, ("2",), {"CUDA_VISIBLE_DEVICES": "2"}),
        (
            0.5, ["GPU-a"], {}, None, ("GPU-a",),
            {"CUDA_VISIBLE_DEVICES": "GPU-a", "TF_FORCE_GPU_ALLOW_GROWTH": "true"},
        ),
        (0.5, ["GPU-a"], {"TF_FORCE_GPU_ALLOW_GROWTH": "false"}, None, ("GPU-a",), {"CUDA_VISIBLE_DEVICES": "GPU-a"}),
        (0, ["0"], {}, "0,1", (), {"CUDA_VISIBLE_DEVICES": "-1"}),
        (0, [], {}, None, (), {"CUDA_VISIBLE_DEVICES": "-1"}),
        (None, [], {}, "0,1", (), {"CUDA_VISIBLE_DEVICES": "0,1"}),
        (None, [], {}, None, (), {"CUDA_VISIBLE_DEVICES": "-1"}),
    ],
)  # fmt: skip
def test_what_a_node_is_told_of_its_gpus(
    amount: float | None, assigned: Any, env: Any, executor_sees: str | None, gpus: Any, told: dict[str, str]
) -> None:
    assert gpus_of_process(amount, assigned, env, executor_sees) == (gpus, told)
