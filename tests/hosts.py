"""Several hosts on one machine: network namespaces, each joined by a veth pair to a bridge in a namespace of its own.

Nothing is made outside these namespaces, so all of it goes with them. Every host has one address of `SUBNET` on
``eth0`` and its own ``lo``; processes are started in it with `Hosts.start`. To cut a host off is to take its port of
the bridge down: packets vanish in both directions and no connection is closed, as when a cable is pulled.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from waiting import eventually

SUBNET = "10.213.7"


def why_not() -> str | None:
    """Say why this machine cannot have hosts, if it cannot."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"tfspark-{secrets.token_hex(3)}-probe"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    except FileNotFoundError:
        return "the command ip (Debian: iproute2) is not installed"
    if made.returncode:
        return f"this machine allows no network namespaces: {made.stderr.strip()}"
    try:
        command = ["ip", "-n", name, "link", "add", "name", "bridge", "type", "bridge"]
        tried = subprocess.run(command, capture_output=True, text=True)
        return f"this machine allows no bridge: {tried.stderr.strip()}" if tried.returncode else None
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Hosts:
    """The hosts of one test module, by name; leaving the block kills their processes and removes them."""

    def __init__(self) -> None:
        self.prefix = f"tfspark-{secrets.token_hex(3)}"
        self._switch = f"{self.prefix}-switch"
        self._addresses: dict[str, str] = {}
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Hosts:
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "name", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._remove()

    def add(self, name: str) -> str:
        """Make a host and return its address."""
        space, address = self._space(name), f"{SUBNET}.{len(self._addresses) + 1}"
        self._addresses[name] = address
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", name, "master", "bridge", "up")
        _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        return address

    def address(self, name: str) -> str:
        return self._addresses[name]

    def named(self, address: str) -> str:
        """Return the name of the host with an address."""
        return next(n for n, a in self._addresses.items() if a == address)

    def start(self, name: str, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on a host."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._space(name), *command], start_new_session=True, **options
        )
        self._started.append(process)
        return process

    def cut_off(self, name: str) -> None:
        """Pull the cable of a host."""
        _ip("-n", self._switch, "link", "set", name, "down")

    def reconnect(self, name: str) -> None:
        """Plug it in again."""
        _ip("-n", self._switch, "link", "set", name, "up")

    def hide(self, name: str, *others: str) -> None:
        """Have packets from `others` to a host vanish, as behind a firewall: they go to a card that nobody has."""
        for other in others:
            card = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
            _ip("-n", self._space(other), "neigh", "replace", self.address(name), *card)

    def crash(self, name: str) -> None:
        """Have a host die at once, as without power: nobody hears of it."""
        self.cut_off(name)
        self._kill_all(self._space(name))

    def pids(self, name: str) -> list[int]:
        """Return the processes that run on a host."""
        return [int(p) for p in _ip("netns", "pids", self._space(name)).split()]

    def _space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _spaces(self) -> list[str]:
        return [s for s in re.findall(r"^\S+", _ip("netns", "list"), re.M) if s.startswith(self.prefix + "-")]

    @staticmethod
    def _kill_all(space: str) -> None:
        # What is killed may have forked meanwhile.
        while pids := _ip("netns", "pids", space).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            for pid in pids:
                _wait_for_end(int(pid))

    def _remove(self) -> None:
        for process in self._started:
            # It may not have come to its host yet, where the next step would find it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for space in self._spaces():
            self._kill_all(space)
        for process in self._started:
            process.wait()
        for space in self._spaces():
            _ip("netns", "delete", space)


class SparkHosts(Hosts):
    """A standalone Spark: the master on the host of the driver, a worker of two cores on each of the others."""

    def __init__(self, directory: Path, workers: Sequence[str]) -> None:
        super().__init__()
        self.directory, self.workers = directory, workers
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
        for name in self.workers:
            self.add(name)
        # The port is free: nothing else runs on that host.
        self.url = f"spark://{self.address('driver')}:7077"
        logs = [self.daemon("driver", "master.Master", "--port", "7077")]
        for name in self.workers:
            work = str(self.directory / name / "work")
            size = ("--cores", "2", "--memory", "2g", "--work-dir", work)
            logs.append(self.daemon(name, "worker.Worker", *size, self.url))
        registered = "Successfully registered with master"
        assert eventually(lambda: all(registered in log.read_text() for log in logs[1:]), 90.0), logs

    def nodes(self, name: str) -> list[str]:
        """Return the command lines of the cluster's processes on a host."""
        found = []
        for pid in self.pids(name):
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return [command for command in found if "tfspark.node" in command]


def _wait_for_end(pid: int) -> None:
    """Wait until a process is gone, or is a zombie that its parent has still to fetch."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([fd], [], [], 10.0)
    finally:
        os.close(fd)
