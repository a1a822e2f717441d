"""A standalone Spark on this machine for tests: a master, workers, and spark-submit to them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pyspark

SPARK_HOME = Path(pyspark.__file__).parent
JOBS = Path(__file__).parent.parent / "jobs"

_DEPLOY = "org.apache.spark.deploy"
_LOOPBACK = ("--host", "127.0.0.1")
_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.sql.shuffle.partitions": "4",
    "spark.executor.memory": "1g",
    "spark.driver.memory": "1g",
}


class Standalone:
    """A master and its workers.

    Parameters
    ----------
    directory
        For logs and the workers' files.
    workers
        How many there are.
    cores
        Task slots of each.
    """

    def __init__(self, directory: Path, workers: int = 2, cores: int = 3) -> None:
        self.directory = directory
        self._running: list[subprocess.Popen[bytes]] = []
        try:
            self._start(workers, cores)
        except BaseException:
            self.stop()
            raise

    def _start(self, workers: int, cores: int) -> None:
        log = self.directory / "master"
        ports = ("--port", "0", "--webui-port", "0")
        self._running.append(daemon(log, f"{_DEPLOY}.master.Master", *_LOOPBACK, *ports))
        self.url = wait_for(log, r"Starting Spark master at (spark://\S+)", self._running[0])[1]
        for i in range(workers):
            size = ("--cores", str(cores), "--memory", "2g", "--webui-port", "0")
            work = ("--work-dir", str(self.directory / f"work-{i}"))
            log = self.directory / f"worker-{i}"
            self._running.append(daemon(log, f"{_DEPLOY}.worker.Worker", *_LOOPBACK, *size, *work, self.url))
        for i, worker in enumerate(self._running[1:]):
            wait_for(self.directory / f"worker-{i}", "Successfully registered with master", worker)

    def stop(self) -> None:
        """End all of them."""
        for process in reversed(self._running):
            process.terminate()
        for process in reversed(self._running):
            process.wait(timeout=30)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, whose children the executors are."""
        return [worker.pid for worker in self._running[1:]]

    def executing(self) -> list[psutil.Process]:
        """Return the executors and all that they have started."""
        return [p for pid in self.worker_pids for p in psutil.Process(pid).children(recursive=True)]

    def nodes(self) -> list[psutil.Process]:
        """Return those of them that are nodes of a cluster."""
        found = []
        for p in self.executing():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "tfspark.node.main" in p.cmdline():
                    found.append(p)
        return found

    def command(self, program: Path | str, *arguments: object, conf: Sequence[str] = ()) -> list[str]:
        """Return the spark-submit command line of a program; `conf` are more options of spark-submit."""
        settings = [word for k, v in _SETTINGS.items() for word in ("--conf", f"{k}={v}")]
        submit = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", self.url, *settings, *conf]
        return [*submit, str(program), *(str(a) for a in arguments)]

    def submit(
        self, program: Path | str, *arguments: object, conf: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; spark-submit puts all that it says on standard output."""
        return subprocess.run(
            self.command(program, *arguments, conf=conf),
            cwd=self.directory,
            env={**environment(), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def environment() -> dict[str, str]:
    """Return the environment in which this Python submits."""
    return {
        **os.environ,
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }


def daemon(log: Path, *command: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start a master or a worker; `variables` are added to its environment."""
    spark_class = str(SPARK_HOME / "bin" / "spark-class")
    own = {**environment(), "SPARK_NO_DAEMONIZE": "1", "SPARK_DAEMON_MEMORY": "256m", **variables}
    with open(log, "wb") as out:
        return subprocess.Popen([spark_class, *command], stdout=out, stderr=subprocess.STDOUT, env=own)


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
