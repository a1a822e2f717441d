"""Training across several hosts, and what happens when one is cut off: Spark and nodes in network namespaces."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Hosts, why_not

PROGRAM = Path(__file__).parent / "programs" / "train_across.py"
WORKERS = ("one", "two", "three")

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class SparkHosts(Hosts):
    """A standalone Spark: the master on the host of the driver, a worker of two cores on each of the others."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.url = ""

    def environment(self, name: str) -> dict[str, str]:
        address = self.address(name)
        local = self.directory / name
        local.mkdir(exist_ok=True)
        return {
            **os.environ,
            "SPARK_LOCAL_IP": address,
            "SPARK_LOCAL_HOSTNAME": address,
            "SPARK_LOCAL_DIRS": str(local),
            "SPARK_NO_DAEMONIZE": "1",
            "SPARK_DAEMON_MEMORY": "256m",
            "PYSPARK_PYTHON": sys.executable,
        }

    def daemon(self, name: str, kind: str, *arguments: str) -> Path:
        """Start a master or worker of Spark on a host; its log."""
        import pyspark

        command = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}"]
        log = self.directory / f"{name}.log"
        with open(log, "wb") as out:
            command += ["--host", self.address(name), "--webui-port", "0", *arguments]
            self.start(name, command, stdout=out, stderr=out, env=self.environment(name))
        return log

    def begin(self) -> None:
        self.add("driver")
        for name in WORKERS:
            self.add(name)
        # The port is free: nothing else runs on that host.
        self.url = f"spark://{self.address('driver')}:7077"
        logs = [self.daemon("driver", "master.Master", "--port", "7077")]
        for name in WORKERS:
            work = str(self.directory / name / "work")
            size = ("--cores", "2", "--memory", "2g", "--work-dir", work)
            logs.append(self.daemon(name, "worker.Worker", *size, self.url))
        for log in logs[1:]:
            assert said(log, "Successfully registered with master"), log.read_text()[-2000:]


def said(log: Path, text: str, seconds: float = 90.0) -> bool:
    deadline = time.monotonic() + seconds
    while text not in log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class Program:
    """The training program on the host of the driver."""

    def __init__(self, hosts: SparkHosts, **options: Any) -> None:
        options = {"stop_grace": 1.0, **options, "conf": {"spark.executor.memory": "600m", **options.get("conf", {})}}
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
    with SparkHosts(tmp_path_factory.mktemp("hosts")) as hosts:
        hosts.begin()
        yield hosts


def test_workers_on_different_hosts_train_together(hosts: SparkHosts) -> None:
    program = Program(hosts, epochs=2, conf={"spark.task.cpus": "1"})
    nodes = program.until("nodes")["nodes"]
    print(nodes)
    end = program.until("results", "error")
    assert "results" in end, end
    print(end)
    results = end["results"]
    assert results["worker 0"]["weight"] == results["worker 1"]["weight"] != 0
    for epoch in (0, 1):
        assert sum(r["epochs"][epoch][1] for r in results.values()) == sum(range(4000))
    assert program.until("threads")["threads"] == []
    program.until("over")


def test_a_host_that_is_cut_off_is_named_in_seconds(hosts: SparkHosts) -> None:
    program = Program(hosts, epochs=1000, step_seconds=0.01)
    nodes = program.until("nodes")["nodes"]
    program.until("training")
    lost = hosts.named(nodes["worker 1"])
    began = time.time()
    hosts.cut_off(lost)
    end = program.until("results", "error")
    print(end, end["time"] - began)
    assert end["error"] == "NodeFailed"
    assert (end["role"], end["index"], end["host"]) == ("worker", 1, nodes["worker 1"])
    assert end["time"] - began < 10.0
    print(program.until("threads"), time.time() - began)
    program.until("over")
    print(time.time() - began)
    hosts.reconnect(lost)
