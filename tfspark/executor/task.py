"""The Spark task that supervises one node: starts its process, forwards its output, reports its end, kills it.

It runs in a Spark Python worker, in a stage with one task per node, and never imports TensorFlow. When a node fails,
its task does not fail, because Spark would then run the whole stage again. The coordinator decides what to do.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import TFSparkError
from tfspark.executor import process as proc
from tfspark.executor.cpus import cpus_of_node
from tfspark.executor.gpu import VISIBLE, gpus_of_process
from tfspark.executor.host import address_towards, local_directories
from tfspark.executor.memory import spool_memory
from tfspark.messages import (
    Attach,
    AttachAnswer,
    CarriesPulses,
    Exited,
    ExitedAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Message,
    Pulse,
    Raised,
)
from tfspark.settings import Settings
from tfspark.spec import ROLES_WITHOUT_GPUS, NodeId
from tfspark.transport.auth import Secret
from tfspark.transport.client import MessageClient
from tfspark.transport.ports import Ports

EXIT_POLL_SECONDS = 0.1
"""Longest pause between two checks whether the process has ended, if the kernel cannot report it."""

NATIVE_CHATTER = re.compile(
    r"I\d{4} \d|WARNING: All log messages before absl::InitializeLog|[EW]\d{4} .*(cuda_platform|cudart_stub)"
)
"""Lines that TensorFlow's native code prints at every start, at any log level; the driver's log omits them."""

MAX_LINE_BYTES = 8192

MAX_PULSE_BYTES = 1 << 20

LATE_SECONDS = 0.25
"""A heartbeat that is this late does not carry the pulses of the process any more."""

RESULT_SCHEMA = pa.schema([pa.field("role", pa.string()), pa.field("index", pa.int32())])
RESULT_DDL = "role string, index int"

A = TypeVar("A", bound=Message)


@dataclass(frozen=True)
class Launch:
    """The data that a supervising task needs; part of the task's closure.

    Attributes
    ----------
    nodes
        All nodes of the cluster.
    held
        The nodes of this Spark job; the position of a node is its partition.
    gpus
        GPUs of each node; less than 1 is a share of one GPU. ``None`` if Spark does not manage GPUs: a node then sees
        what its executor sees.
    cpus
        CPUs that Spark reserves for each node; ``None`` on ``local[n]``, where all nodes share one machine.
    ports
        Range of the ports that nodes listen on.
    settings
        The settings of the cluster.
    """

    nodes: tuple[NodeId, ...]
    held: tuple[NodeId, ...]
    coordinator_host: str
    coordinator_port: int
    secret: Secret
    main: bytes
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    gpus: float | None = None
    cpus: float | None = None
    ports: Ports | None = None
    settings: Settings = field(default_factory=Settings)


def supervise(launch: Launch, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Supervise one node: the body of the task, for ``DataFrame.mapInArrow``."""
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
    """Supervises one process from its start to its end.

    Parameters
    ----------
    launch
        The cluster's launch data.
    node
        The node to supervise.
    attempt
        Unique attempt id of the Spark task.
    gpus
        Addresses of the GPUs that Spark assigned to the task.
    stage
        Spark stage of the supervising task.
    """

    def __init__(self, launch: Launch, node: NodeId, attempt: int, gpus: Sequence[str] = (), stage: int = -1) -> None:
        self.launch, self.node, self.attempt = launch, node, attempt
        self._addresses, self._stage = gpus, stage
        self._settings = settings = launch.settings
        secret = launch.secret.for_clients()
        self.client = MessageClient(launch.coordinator_host, launch.coordinator_port, secret, settings.call_timeout)
        # The limit must be large enough for a crash of native code: Python then prints the stack of each thread.
        self.tail: deque[str] = deque(maxlen=settings.log_tail_lines)
        self._pending: list[str] = []
        self._left_out = 0
        self._partial = b""
        self._lifeline = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._pulses: socket.socket | None = None
        self._carries_pulses = False
        self._directory = ""
        self._reached_at = time.monotonic()
        self._stop_at: float | None = None
        self._signals_sent = 0
        self._interval = settings.heartbeat_interval

    def run(self) -> None:
        """Register with the coordinator, start the process, watch it, and report its end."""
        host = address_towards(self.launch.coordinator_host, self.launch.coordinator_port)
        if not self._insist(Attach(self.node, self.attempt, host, self._stage), AttachAnswer).go:
            return
        amount = 0 if self.node.role in ROLES_WITHOUT_GPUS else self.launch.gpus
        try:
            gpus, env = gpus_of_process(
                amount, self._addresses, {**os.environ, **self.launch.env}, os.environ.get(VISIBLE)
            )
        except TFSparkError as e:
            self.client.send(Raised(self.node, f"{type(e).__name__}: {e.message}", "", e.hint or "", final=True))
            self.client.send(Exited(self.node, 1))
            return
        port: int | None = 0
        started = 0
        while port is not None:
            kills_before = proc.out_of_memory_kills()
            self._spawn(host, port, gpus, env)
            assert self._process is not None
            code = self._watch(self._process)
            killed_by_us = self._signals_sent > 0
            out_of_memory = code == -signal.SIGKILL and proc.out_of_memory_kills() > kills_before
            self._carries_pulses = False  # A pulse that the process sent before its end says nothing any more.
            self._beat()
            exited = Exited(self.node, code, list(self.tail), killed_by_us, out_of_memory, started)
            port = self._insist(exited, ExitedAnswer).respawn_port
            started += 1
            self._end()

    def _insist(self, message: Message, answer: type[A]) -> A:
        """Ask the coordinator, and retry until it has not been reached for `driver_timeout` seconds."""
        got = self.client.insist(message, answer, self._reached_at + self._settings.driver_timeout - time.monotonic())
        self._reached_at = time.monotonic()
        return got

    def close(self) -> None:
        """Kill the process and all processes that it started."""
        self._end()
        self.client.close()

    def _spawn(self, host: str, port: int, gpus: Sequence[str], env: Mapping[str, str]) -> None:
        self._directory = tempfile.mkdtemp(prefix="tfspark-", dir=local_directories()[0])
        self._carries_pulses = True
        self._process, self._lifeline, self._pulses = proc.spawn(
            "tfspark.node.main", self._directory, self._payload(host, port, gpus), self._environment(env)
        )

    def _end(self) -> None:
        if self._process is not None:
            proc.kill_group(self._process)
            self._process.wait()
            proc.close_pipes(self._process)
            os.close(self._lifeline)
            self._process = None
        if self._pulses is not None:
            self._pulses.close()
            self._pulses = None
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
                # The first directory belongs to the node and is removed with it. Spools use only unnamed files.
                "spool_directories": [self._directory, *local_directories()[1:]],
                "spool_memory_bytes": spool_memory(launch.settings.spool_memory_bytes, len(launch.nodes)),
                "options": {**launch.options, "gpus": list(gpus), "cpus": cpus_of_node(launch.cpus, len(launch.nodes))},
                "ports": launch.ports,
                "settings": launch.settings.to_json(),
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
        exit_fd = proc.exit_descriptor(process.pid)
        longest = EXIT_POLL_SECONDS if exit_fd is None else math.inf
        last_beat = 0.0
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if exit_fd is not None:
                    selector.register(exit_fd, selectors.EVENT_READ)
                while process.poll() is None:
                    due = last_beat + self._interval - time.monotonic()
                    for key, _ in selector.select(max(0.0, min(due, longest))):
                        if key.fileobj is process.stdout and not self._read_output(process):
                            selector.unregister(process.stdout)
                    if time.monotonic() - last_beat >= self._interval:
                        # Measured from the start of a heartbeat: an unanswered one takes longer than the interval.
                        last_beat = time.monotonic()
                        self._beat()
                    self._enforce_stop(process)
        finally:
            if exit_fd is not None:
                os.close(exit_fd)
        self._read_output(process)
        if self._partial:
            self._line(self._partial)
        return process.returncode

    def _read_output(self, process: subprocess.Popen[bytes]) -> bool:
        """Read the lines that the process has printed; return False at the end of its output."""
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
            if len(self._pending) >= self._settings.log_lines_per_heartbeat:
                return True

    def _newest_pulse(self) -> Pulse | None:
        """Return the newest of the pulses that the process has sent since the last call."""
        newest = None
        while self._carries_pulses and self._pulses is not None:
            try:
                newest = Pulse.decode(self._pulses.recv(MAX_PULSE_BYTES))
            except BlockingIOError:
                break
            # `main` can close any descriptor of its process and write to it; an empty message is the end of the socket.
            # Without confirmations, the process sends its pulses itself.
            except (OSError, ValueError):
                self._carries_pulses = False
        return newest

    def _confirm(self, seconds: float) -> None:
        """Tell the process until when it need not send its pulses itself."""
        if self._carries_pulses and self._pulses is not None:
            # If heartbeats are set to be rare, pulses are not as rare.
            pause = min(seconds, max(self._settings.pulse_interval, self._settings.longest_interval))
            with contextlib.suppress(OSError):
                self._pulses.send(CarriesPulses(time.monotonic() + pause + LATE_SECONDS).encode())

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        # In local mode stderr is the driver's terminal, where the progress display already shows the lines.
        if not sys.stderr.isatty():
            sys.stderr.write(f"[{self.node}] {text}\n")
        if not NATIVE_CHATTER.match(text):
            self.tail.append(text)
            if len(self._pending) < self._settings.log_lines_waiting:
                self._pending.append(text)
            else:
                self._left_out += 1

    def _beat(self) -> None:
        """Send a heartbeat with the printed lines and do what the answer says.

        Lines are kept until the coordinator has confirmed them.
        """
        lines = self._pending[: self._settings.log_lines_per_heartbeat]
        pid = self._process.pid if self._process else 0
        message = Heartbeat(self.node, lines, proc.resident_bytes(pid), proc.is_stopped(pid), self._newest_pulse())
        try:
            answer = self.client.ask(message, HeartbeatAnswer, timeout=self._settings.heartbeat_timeout)
        except flight.FlightError:
            self._interval = self._settings.heartbeat_interval
            if time.monotonic() - self._reached_at > self._settings.driver_timeout:
                self._ask_to_stop(0.0)
            return
        del self._pending[: len(lines)]
        if self._left_out:
            self._pending.append(f"... {self._left_out} lines omitted; see the executor's log")
            self._left_out = 0
        self._reached_at = time.monotonic()
        self._interval = answer.seconds
        self._confirm(answer.seconds)
        if answer.stop_grace is not None:
            self._ask_to_stop(answer.stop_grace)
        if answer.kill and self._process is not None:
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
        elif self._signals_sent == 1 and late >= self._settings.kill_delay:
            self._signals_sent = 2
            proc.kill_group(process, signal.SIGKILL)
