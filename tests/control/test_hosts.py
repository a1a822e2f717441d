"""Training across several hosts, and what happens when one is cut off: Spark and nodes in network namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Hosts, SparkHosts, why_not
from waiting import eventually

PROGRAM = Path(__file__).parents[1] / "programs" / "train_across.py"
WORKERS = ("one", "two", "three")

pytestmark = [pytest.mark.alone, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


class Program:
    """The training program on the host of the driver."""

    def __init__(self, hosts: SparkHosts, **options: Any) -> None:
        checkpoints = tempfile.mkdtemp(prefix="checkpoints", dir=hosts.directory)
        options = {"stop_grace": 1.0, "checkpoint_dir": checkpoints, **options}
        # Spark starts tasks on the executors that it has: without a wait for all, both nodes may start on one host.
        options["conf"] = {
            "spark.executor.memory": "600m",
            "spark.cores.max": str(2 * len(WORKERS)),
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",
        }
        local = hosts.directory / "driver"
        self.log = hosts.directory / "program.log"
        with open(self.log, "ab") as errors:
            self.process = hosts.start(
                "driver",
                [sys.executable, str(PROGRAM), hosts.url, str(local), json.dumps(options)],
                stdout=-1,
                stderr=errors,
                text=True,
                env=hosts.environment("driver"),
            )

    def until(self, *keys: str) -> dict[str, Any]:
        """Read until the program says one of these."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                if any(k in said for k in keys):
                    return dict(said)
        raise AssertionError(f"the program ended: {self.log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkHosts]:
    with SparkHosts(tmp_path_factory.mktemp("hosts"), WORKERS) as hosts:
        hosts.begin()
        yield hosts


def test_a_host_that_is_cut_off_is_named_within_ten_seconds(hosts: SparkHosts) -> None:
    program = Program(hosts, epochs=1000, step_seconds=0.02, driver_timeout=20.0)
    addresses = program.until("nodes")["nodes"]
    program.until("training")
    lost = hosts.named(addresses["worker 1"])
    hosts.cut_off(lost)
    began = time.time()
    try:
        end = program.until("results", "error")
        assert end["error"] == "NodeFailed"
        assert (end["role"], end["index"], end["host"]) == ("worker", 1, addresses["worker 1"]), end
        assert "no sign of life" in end["message"] and "cut off" in end["message"]
        assert end["time"] - began < 10.0
        program.until("over")
        # What runs there cannot be told; it gives up by itself after driver_timeout.
        assert eventually(lambda: not hosts.nodes(lost), 40.0), hosts.nodes(lost)
    finally:
        hosts.reconnect(lost)


@pytest.mark.long
def test_training_across_hosts_goes_on_elsewhere_when_one_dies(hosts: SparkHosts) -> None:
    program = Program(hosts, epochs=4, step_seconds=0.1, ready_step=25, max_restarts=1)
    addresses = program.until("nodes")["nodes"]
    assert addresses["worker 0"] != addresses["worker 1"]
    # 20 steps are an epoch.
    program.until("training")
    lost = addresses["worker 0"]
    hosts.crash(hosts.named(lost))
    end = program.until("results", "error")
    assert "results" in end, end
    assert [f"on {lost} failed" in e for e in end["restarts"]] == [True]
    assert lost not in end["hosts"].values()
    ids = range(4000)
    seen = [4 * len(ids), 4 * sum(ids), 4 * sum(i * i for i in ids)]
    for result in end["results"].values():
        assert (result["seen"], result["restarts"]) == (seen, 1) and result["first_epoch"] in (1, 2)


def test_nothing_is_left_of_the_hosts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Hosts() as hosts:
        hosts.add("one")
        sleeping = hosts.start("one", ["sleep", "1000"])
        prefix = hosts.prefix
        raise RuntimeError("whatever")
    assert sleeping.poll() is not None
    assert prefix not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
