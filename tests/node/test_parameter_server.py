"""Parameter servers: the chief schedules, each worker reads what it was fed, every row once per epoch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tfspark
from tfspark.errors import ConfigurationError
from tfspark.spec import NodeId, StrategyName, plan_nodes, plan_strategy, server_nodes, training_nodes

PROGRAM = Path(__file__).parents[1] / "programs" / "parameter_server.py"


def test_every_row_is_trained_on_once_per_epoch_by_the_worker_that_was_fed_it() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    assert outcome["cluster"] == {"chief": 1, "worker": 2, "ps": 1}
    assert set(outcome["fed"]) == {"worker 0", "worker 1"} and min(outcome["fed"].values()) > 500
    full = sum(n - n % 32 for n in outcome["fed"].values())
    assert outcome["rows"] == [3000] * 3 + [full] and outcome["seen"] == 9000 + full
    assert outcome["counts"][2] == [3], "each of the rows as often as there were epochs"
    assert len(outcome["refused"]) == 2 and all(
        "ConfigurationError" in r and "train_epoch" in r for r in outcome["refused"]
    )
    (kernel, _) = outcome["weights"]
    assert abs(kernel[0][0] - 1) < 0.4 and abs(kernel[1][0] + 1) < 0.4


@pytest.mark.alone
@pytest.mark.parametrize("sig", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.long)])
def test_training_goes_on_when_a_worker_is_lost_and_takes_it_back(sig: str, tmp_path: Path) -> None:
    program = PROGRAM.with_name("lost_worker.py")
    command = [sys.executable, str(program), sig, "12", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    assert outcome["restarts"] == 0 and outcome["losses"] == 1
    assert outcome["pids"][0] != outcome["pids"][1]
    assert set(outcome["fed"][0]) == set(outcome["fed"][1]) == {"worker 0", "worker 1"}
    epochs = 14
    assert len(outcome["rows"]) == epochs
    # The epoch in which the worker was lost may have trained on some of its rows twice; every row was there.
    again = sum(outcome["rows"]) - epochs * 4000
    assert 0 <= again <= outcome["fed"][0]["worker 1"]
    assert set(outcome["counts"]) <= {epochs, epochs + 1}


@pytest.mark.unit
def test_who_does_what() -> None:
    nodes = plan_nodes(2, ps=1)
    assert [str(n) for n in nodes] == ["chief 0", "worker 0", "worker 1", "ps 0"]
    assert training_nodes(nodes) == (NodeId("worker", 0), NodeId("worker", 1))
    assert server_nodes(nodes) == (NodeId("worker", 0), NodeId("worker", 1), NodeId("ps", 0))
    plain = plan_nodes(2, chief=True)
    assert training_nodes(plain) == plain and server_nodes(plain) == ()
    assert plan_strategy("auto", nodes) is StrategyName.PARAMETER_SERVER
    assert plan_strategy("auto", plain) is StrategyName.AUTO
    assert plan_strategy("auto", plan_nodes(1)) is StrategyName.AUTO
    assert plan_strategy("none", plain) is StrategyName.NONE
    for strategy, which, message in [
        ("parameter_server", plain, "with no parameter servers"),
        ("multi_worker_mirrored", nodes, "with parameter servers"),
        ("mirrored", plain, "must be a function or one of"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            plan_strategy(strategy, which)
    for ps in (-1, True, 1.5):
        with pytest.raises(ConfigurationError, match="ps"):
            plan_nodes(1, ps=ps)  # type: ignore[arg-type]


def test_independent_nodes_and_strategies_of_ones_own(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> tuple[str, int]:
        return type(ctx.strategy()).__name__, ctx.strategy().num_replicas_in_sync

    def one_device(ctx: Any) -> Any:
        import tensorflow as tf

        return tf.distribute.OneDeviceStrategy(f"/cpu:{0 if ctx.index >= 0 else 1}")

    assert set(tfspark.run(spark, main, workers=2, strategy="none").values()) == {("_DefaultDistributionStrategy", 1)}
    assert set(tfspark.run(spark, main, workers=2, strategy=one_device).values()) == {("OneDeviceStrategy", 1)}

    def wants_servers(args: Any, ctx: Any) -> None:
        ctx.train_epoch(lambda: None, lambda: None)

    with pytest.raises(Exception, match="needs a cluster with parameter servers"):
        tfspark.run(spark, wants_servers, workers=1)
