"""Spark Connect across hosts: server, executors and client are in network namespaces of their own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import SparkHosts, why_not
from waiting import eventually

from tfspark.control.addresses import HOST_VARIABLE

PROGRAM = Path(__file__).parents[1] / "programs" / "connect_cluster.py"
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
WORKERS = ("one", "two")

pytestmark = [pytest.mark.alone, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


class ConnectHosts(SparkHosts):
    """A standalone Spark with a server of Spark Connect, and a host for its client."""

    def begin(self) -> None:
        import pyspark

        super().begin()
        self.add("client")
        address = self.address("driver")
        conf = {
            "spark.driver.host": address,
            "spark.executor.memory": "600m",
            "spark.executor.cores": "2",
            "spark.ui.enabled": "false",
        }
        settings = [word for key, value in conf.items() for word in ("--conf", f"{key}={value}")]
        submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
        log = self.directory / "server.log"
        with open(log, "wb") as out:
            command = [submit, "--master", self.url, *settings, "--class", SERVER]
            environment = {**self.environment("driver"), "SPARK_DAEMON_MEMORY": "1g"}
            self.start("driver", command, stdout=out, stderr=out, env=environment)
        assert eventually(lambda: "Spark Connect server started" in log.read_text(), 90.0), log.read_text()

    def play(self, *scenes: str, **environment: str) -> dict[str, Any]:
        """Play scenes on the client's host."""
        remote = f"sc://{self.address('driver')}:15002"
        command = [sys.executable, str(PROGRAM), str(self.directory), remote, *scenes]
        process = self.start("client", command, stdout=-1, stderr=-1, text=True, env={**os.environ, **environment})
        out, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-3000:]
        said = [json.loads(line) for line in out.splitlines() if line.startswith('{"scene"')]
        return {s["scene"]: s["found"] for s in said}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConnectHosts]:
    with ConnectHosts(tmp_path_factory.mktemp("hosts"), WORKERS) as hosts:
        hosts.begin()
        yield hosts


def test_a_client_on_a_host_of_its_own_feeds_nodes_on_two_others(hosts: ConnectHosts) -> None:
    found = hosts.play("where", "inputs", "stream")
    assert found["where"]["nodes"] == sorted(hosts.address(w) for w in WORKERS)
    assert found["where"]["client"] == [hosts.address("client")] * 2
    assert found["inputs"]["read"] == sorted([*range(20), *range(60)])
    assert found["stream"]["read"] == list(range(60))


def test_the_error_names_each_host_that_does_not_reach_the_client(hosts: ConnectHosts) -> None:
    told = hosts.play("unreachable", **{HOST_VARIABLE: "10.213.7.250"})["unreachable"]
    assert "executors cannot reach this client" in told["error"] and "10.213.7.250:" in told["error"]
