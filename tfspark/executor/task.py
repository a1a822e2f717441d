"""The Spark task that supervises one node: spawns its process, forwards its output, reports its end, kills it.

It runs in a Spark Python worker, in a stage with one task per node, and never imports TensorFlow. A node
that fails does not fail the task: Spark would run the whole stage again. The coordinator decides.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import TFSparkError
from tfspark.executor import process as proc
from tfspark.executor.gpu import VISIBLE, gpus_of_node
from tfspark.executor.host import address_towards, local_directory
from tfspark.spec import ROLES_WITHOUT_GPUS, NodeId
from tfspark.transport.auth import Secret
from tfspark.transport.client import MessageClient
from tfspark.transport.messages import Attach, Exited, Heartbeat, Raised
from tfspark.transport.ports import Ports

HEARTBEAT_SECONDS = 0.5
"""How often the coordinator hears from the task, and how late it may hear of a line the node printed."""

COORDINATOR_PATIENCE_SECONDS = 20.0
"""A coordinator that was not reached for so long is taken for dead, and the node is killed."""

TERM_SECONDS = 1.0
"""From SIGTERM to SIGKILL."""

NATIVE_CHATTER = re.compile(
    r"I\d{4} \d|WARNING: All log messages before absl::InitializeLog|[EW]\d{4} .*(cuda_platform|cudart_stub)"
)
"""What TensorFlow's native code prints at every start, whatever its log level: kept out of the driver's log."""

TAIL_LINES = 40
MAX_LINES_PER_HEARTBEAT = 200
MAX_LINE_BYTES = 8192

MAX_LINES_WAITING = 2000
"""Lines that wait for a heartbeat; what a node prints beyond them is in the executor's log only."""

RESULT_SCHEMA = pa.schema([pa.field("role", pa.string()), pa.field("index", pa.int32())])
RESULT_DDL = "role string, index int"


@dataclass(frozen=True)
class Launch:
    """All that a supervising task needs; travels in the task's closure.

    Attributes
    ----------
    nodes
        All nodes of the cluster.
    held
        The nodes of this Spark job, by partition.
    gpus
        What each of them was given, maybe a share of one; ``None`` if Spark was not asked and knows of none, so that
        what the executor itself sees goes.
    ports
        Range that all must be of on which nodes listen.
    """

    nodes: tuple[NodeId, ...]
    held: tuple[NodeId, ...]
    coordinator_host: str
    coordinator_port: int
    secret: Secret
    main: bytes
    spool_bytes: int
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    gpus: float | None = None
    ports: Ports | None = None


def supervise(launch: Launch, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Body of the task, for ``DataFrame.mapInArrow``."""
    from pyspark import TaskContext

    for _ in batches:
        pass
    context = TaskContext.get()
    assert context is not None
    partition = context.partitionId()
    node = launch.held[partition]
    assigned = context.resources().get("gpu")
    supervisor = Supervisor(
        launch, node, context.taskAttemptId(), tuple(assigned.addresses) if assigned else (), context.stageId()
    )
    try:
        supervisor.run()
    finally:
        supervisor.close()
    yield pa.RecordBatch.from_pylist([{"role": node.role, "index": node.index}], schema=RESULT_SCHEMA)


class Supervisor:
    """Watches over one process from its start to its end.

    Parameters
    ----------
    launch
        The cluster's.
    node
        Which one.
    attempt
        Of the Spark task; unique.
    gpus
        Addresses that Spark assigned to the task.
    stage
        The Spark stage that the supervising task belongs to.
    """

    def __init__(self, launch: Launch, node: NodeId, attempt: int, gpus: Sequence[str] = (), stage: int = -1) -> None:
        self.launch, self.node, self.attempt = launch, node, attempt
        self._addresses, self._stage = gpus, stage
        self.client = MessageClient(launch.coordinator_host, launch.coordinator_port, launch.secret.for_clients())
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._pending: list[str] = []
        self._left_out = 0
        self._partial = b""
        self._lifeline = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = ""
        self._reached_at = time.monotonic()
        self._stop_at: float | None = None
        self._signals_sent = 0

    def run(self) -> None:
        """Attach, spawn, watch, report."""
        host = address_towards(self.launch.coordinator_host, self.launch.coordinator_port)
        role, index = self.node.role, self.node.index
        answer = self.client.ask(Attach(role, index, self.attempt, host, self._stage))
        if not answer["go"]:
            return
        amount = 0 if self.node.role in ROLES_WITHOUT_GPUS else self.launch.gpus
        try:
            gpus, env = gpus_of_node(
                amount, self._addresses, {**os.environ, **self.launch.env}, os.environ.get(VISIBLE)
            )
        except TFSparkError as e:
            self.client.send(Raised(role, index, f"{type(e).__name__}: {e.message}", "", e.hint or "", final=True))
            self.client.send(Exited(role, index, 1, [], False))
            return
        port: int | None = 0
        while port is not None:
            kills_before = proc.out_of_memory_kills()
            self._spawn(host, port, gpus, env)
            assert self._process is not None
            code = self._watch(self._process)
            killed_by_us = self._signals_sent > 0
            out_of_memory = code == -signal.SIGKILL and proc.out_of_memory_kills() > kills_before
            self._beat()
            answer = self.client.ask(Exited(role, index, code, list(self.tail), killed_by_us, out_of_memory))
            port = answer["respawn_port"]
            self._end()

    def close(self) -> None:
        """Kill whatever is left of the process and what it started."""
        self._end()
        self.client.close()

    def _spawn(self, host: str, port: int, gpus: Sequence[str], env: Mapping[str, str]) -> None:
        self._directory = tempfile.mkdtemp(prefix="tfspark-", dir=local_directory())
        self._process, self._lifeline = proc.spawn(
            "tfspark.node.main", self._directory, self._payload(host, port, gpus), self._environment(env)
        )

    def _end(self) -> None:
        if self._process is not None:
            proc.kill_group(self._process)
            self._process.wait()
            os.close(self._lifeline)
            self._process = None
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _payload(self, host: str, port: int, gpus: Sequence[str]) -> bytes:
        launch = self.launch
        header = json.dumps(
            {
                "role": self.node.role,
                "index": self.node.index,
                "host": host,
                "port": port,
                "nodes": [[n.role, n.index] for n in launch.nodes],
                "coordinator": [launch.coordinator_host, launch.coordinator_port],
                "secret": launch.secret.to_json(),
                "spool_bytes": launch.spool_bytes,
                "spool_directory": self._directory,
                "options": {**launch.options, "gpus": list(gpus)},
                "ports": launch.ports,
                "sys_path": sys.path,
                "spawned_at": time.time(),
            }
        ).encode()
        return len(header).to_bytes(proc.LENGTH_BYTES, "big") + header + launch.main

    def _environment(self, gpus: Mapping[str, str]) -> dict[str, str]:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2")}
        env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        env["TMPDIR"] = self._directory
        env.pop("TF_CONFIG", None)
        return {**env, **gpus, **self.launch.env}

    def _watch(self, process: subprocess.Popen[bytes]) -> int:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        exit_fd = os.pidfd_open(process.pid)
        last_beat = 0.0
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                selector.register(exit_fd, selectors.EVENT_READ)
                while process.poll() is None:
                    due = last_beat + HEARTBEAT_SECONDS - time.monotonic()
                    for key, _ in selector.select(max(0.0, due)):
                        if key.fileobj is process.stdout and not self._read_output(process):
                            selector.unregister(process.stdout)
                    if time.monotonic() - last_beat >= HEARTBEAT_SECONDS:
                        self._beat()
                        last_beat = time.monotonic()
                    self._enforce_stop(process)
        finally:
            os.close(exit_fd)
        self._read_output(process)
        if self._partial:
            self._line(self._partial)
        return process.returncode

    def _read_output(self, process: subprocess.Popen[bytes]) -> bool:
        """Take what the process has printed; false at the end of its output."""
        assert process.stdout is not None
        while True:
            try:
                data = os.read(process.stdout.fileno(), 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) > MAX_LINE_BYTES:
                lines.append(self._partial)
                self._partial = b""
            for line in lines:
                self._line(line)
            if len(self._pending) >= MAX_LINES_PER_HEARTBEAT:
                return True

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        sys.stderr.write(f"[{self.node}] {text}\n")
        if not NATIVE_CHATTER.match(text):
            self.tail.append(text)
            if len(self._pending) < MAX_LINES_WAITING:
                self._pending.append(text)
            else:
                self._left_out += 1

    def _beat(self) -> None:
        """Send what was printed; learn whether to stop. The lines are kept until the coordinator has them."""
        lines = self._pending[:MAX_LINES_PER_HEARTBEAT]
        pid = self._process.pid if self._process else 0
        role, index = self.node.role, self.node.index
        message = Heartbeat(role, index, lines, proc.resident_bytes(pid), proc.is_stopped(pid))
        try:
            answer = self.client.ask(message, timeout=5.0)
        except flight.FlightError:
            if time.monotonic() - self._reached_at > COORDINATOR_PATIENCE_SECONDS:
                self._ask_to_stop(0.0)
            return
        del self._pending[: len(lines)]
        if self._left_out:
            self._pending.append(f"... {self._left_out} lines left out")
            self._left_out = 0
        self._reached_at = time.monotonic()
        if answer["stop_grace"] is not None:
            self._ask_to_stop(answer["stop_grace"])
        if answer["kill"] and self._process is not None:
            proc.kill_group(self._process)

    def _ask_to_stop(self, grace: float) -> None:
        if self._stop_at is None and self._process is not None:
            self._stop_at = time.monotonic() + grace
            proc.tell_to_stop(self._process)

    def _enforce_stop(self, process: subprocess.Popen[bytes]) -> None:
        if self._stop_at is None:
            return
        late = time.monotonic() - self._stop_at
        if self._signals_sent == 0 and late >= 0:
            self._signals_sent = 1
            proc.kill_group(process, signal.SIGTERM)
        elif self._signals_sent == 1 and late >= TERM_SECONDS:
            self._signals_sent = 2
            proc.kill_group(process, signal.SIGKILL)
