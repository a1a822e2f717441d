"""A cluster on a real standalone master and worker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "run_one.py"


def daemon(log: Path, *command: str, **settings: str) -> subprocess.Popen[bytes]:
    import pyspark

    spark_class = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    environment = {**os.environ, "SPARK_NO_DAEMONIZE": "1", "SPARK_LOCAL_IP": "127.0.0.1", **settings}
    with open(log, "wb") as out:
        return subprocess.Popen([spark_class, *command], stdout=out, stderr=subprocess.STDOUT, env=environment)


def wait_for(log: Path, pattern: str, process: subprocess.Popen[bytes]) -> re.Match[str]:
    """Follow a log until it says something; ends with the process."""
    with subprocess.Popen(["tail", f"--pid={process.pid}", "-n", "+1", "-F", str(log)], stdout=subprocess.PIPE) as tail:
        try:
            assert tail.stdout is not None
            for line in tail.stdout:
                found = re.search(pattern, line.decode(errors="replace"))
                if found:
                    return found
        finally:
            tail.kill()
    raise AssertionError(f"{pattern} does not come: {log.read_text()[-2000:]}")


@pytest.fixture
def master(tmp_path: Path) -> Iterator[str]:
    loopback = ("--host", "127.0.0.1")
    deploy = "org.apache.spark.deploy"
    running = [daemon(tmp_path / "master", f"{deploy}.master.Master", *loopback, "--port", "0", "--webui-port", "0")]
    try:
        url = wait_for(tmp_path / "master", r"Starting Spark master at (spark://\S+)", running[0])[1]
        size = ("--cores", "3", "--memory", "2g", "--webui-port", "0", "--work-dir", str(tmp_path / "work"))
        running.append(daemon(tmp_path / "worker", f"{deploy}.worker.Worker", *loopback, *size, url))
        wait_for(tmp_path / "worker", "Successfully registered with master", running[1])
        yield url
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)


def test_a_cluster_on_a_standalone_master(master: str) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), master],
        cwd=PROGRAM.parent,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {"result": 42}, done.stderr[-3000:]
