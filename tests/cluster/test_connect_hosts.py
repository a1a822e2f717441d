"""Spark Connect across hosts: server, executors and client are in network namespaces of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
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

pytestmark = [pytest.mark.alone, pytest.mark.long, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


class ConnectHosts(SparkHosts):
    """A standalone Spark with a server of Spark Connect, and a host for its client."""

    def begin(self) -> None:
        import pyspark

        super().begin()
        self.add("client")
        self.add("laptop")
        self.hide("laptop", *self.workers)
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

    def listeners(self, name: str, port: int) -> list[int]:
        """Return the processes of a host that listen on a port."""
        pids = self.pids(name)
        table = Path(f"/proc/{pids[0]}/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in table]
        sockets = {f"socket:[{r[9]}]" for r in rows if r[3] == "0A" and int(r[1].partition(":")[2], 16) == port}
        found = []
        for pid in pids:
            with contextlib.suppress(OSError):
                if any(os.readlink(fd) in sockets for fd in Path(f"/proc/{pid}/fd").iterdir()):
                    found.append(pid)
        return found

    def program(self, host: str, *scenes: str, **environment: str) -> subprocess.Popen[str]:
        """Start to play scenes on a host."""
        remote = f"sc://{self.address('driver')}:15002"
        command = [sys.executable, str(PROGRAM), str(self.directory), remote, *scenes]
        return self.start(host, command, stdout=-1, stderr=-1, text=True, env={**os.environ, **environment})

    def play(self, *scenes: str, host: str = "client", **environment: str) -> dict[str, Any]:
        """Play scenes on a host."""
        process = self.program(host, *scenes, **environment)
        out, self.errors = process.communicate(timeout=400)
        assert process.returncode == 0, self.errors[-3000:]
        said = [json.loads(line) for line in out.splitlines() if line.startswith('{"scene"')]
        return {s["scene"]: s["found"] for s in said}


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until a program has made a file."""
    if not eventually(path.exists, 60.0):
        process.kill()
        raise AssertionError("".join(process.communicate())[-5000:])


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


@pytest.fixture(scope="module")
def hidden(hosts: ConnectHosts) -> dict[str, Any]:
    """What a client found that executors do not reach; on four slots, of which the tunnel takes one."""
    scenes = ("inputs", "predictions", "fitted", "failing", "restart", "bad_stream", "live_view", "too_many")
    found = hosts.play(*scenes, host="laptop")
    assert "executors cannot reach this client of Spark Connect" in hosts.errors
    return found


def test_a_client_that_executors_do_not_reach_feeds_nodes(hidden: dict[str, Any]) -> None:
    assert hidden["inputs"] == {"fed": 60, "read": sorted([*range(20), *range(60)]), "workers": 2}


def test_it_gets_answers_of_workers(hidden: dict[str, Any]) -> None:
    assert hidden["predictions"] == [[i, 2 * i] for i in range(60)]


def test_its_workers_train_together_and_return_large_results(hidden: dict[str, Any]) -> None:
    fitted = hidden["fitted"]
    first, second = fitted["losses"]
    assert first == pytest.approx(second) and first[-1] < first[0]
    assert fitted["sizes"] == [20_000_000] * 2 and fitted["threads"] == []


def test_it_hears_of_failures_and_starts_nodes_again(hidden: dict[str, Any]) -> None:
    assert hidden["failing"]["error"].startswith("NodeFailed: ") and "the first row is 7" in hidden["failing"]["error"]
    assert hidden["restart"]["read"] == sorted(2 * list(range(60))) and len(hidden["restart"]["restarts"]) == 1


def test_its_streams_are_fed_from_the_client(hidden: dict[str, Any]) -> None:
    stream = hidden["bad_stream"]
    assert stream["error"].startswith("SchemaError: ") and "'v' holds 1 null(s)" in stream["query"]
    assert stream["views"] == [] and stream["threads"] == []


def test_it_stops_the_nodes(hidden: dict[str, Any]) -> None:
    assert hidden["live_view"] == {"metrics": True, "process": False, "threads": []}


def test_the_slot_of_its_tunnel_counts(hidden: dict[str, Any]) -> None:
    assert "Spark has 3 task slot(s), but 4 are needed" in hidden["too_many"]["error"]


def test_nodes_start_again_with_another_tunnel_when_its_task_is_killed(hosts: ConnectHosts) -> None:
    process = hosts.program("laptop", "tunnel_lost")
    for restarts in (0, 1):
        told = hosts.directory / f"tunnel-{restarts}"
        wait_for(process, told)
        host, _, port = told.read_text().partition(":")
        (pid,) = hosts.listeners(hosts.named(host), int(port))
        os.kill(pid, signal.SIGKILL)
    out, errors = process.communicate(timeout=200)
    found = json.loads(out)["found"]
    error = found["error"]
    assert error.startswith("ClusterError: Nodes cannot reach this client any more, because the tunnel task"), errors
    assert found["seconds"] < 10.0
    assert found["read"] == sorted(2 * list(range(60))), errors[-3000:]
    assert ["the tunnel task has ended" in e for e in found["restarts"]] == [True]


def test_a_client_that_slept_goes_on(hosts: ConnectHosts) -> None:
    process = hosts.program("laptop", "sleeps")
    there = hosts.directory / "awake"
    wait_for(process, there)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(30.0)
    process.send_signal(signal.SIGCONT)
    there.unlink()
    out, errors = process.communicate(timeout=100)
    found = json.loads(out)["found"]
    assert found["fed"] == 120, errors[-3000:]
    assert found["read"] == sorted(2 * list(range(60)))


def test_nothing_is_left_of_a_client_that_was_killed(hosts: ConnectHosts, hidden: dict[str, Any]) -> None:
    process = hosts.program("laptop", "kept_waiting")
    assert eventually(lambda: (hosts.directory / "kept").exists(), 60.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # It was granted 10 s of silence.
    assert eventually(lambda: not any(hosts.nodes(w) for w in WORKERS), 60.0)
    # All four slots are needed.
    assert hosts.play("inputs", host="laptop")["inputs"]["fed"] == 60
