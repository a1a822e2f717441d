"""Measure the cost of the driver's control plane with many nodes and partitions, and how it grows.

Partitions pass through the real ledger of a feed. Simulated nodes send the messages of real nodes to the real
coordinator, over Arrow Flight, from a few processes and at the intervals that its answers set. CPU-seconds are those of
the coordinator's process alone, which does nothing else. The nodes' side runs on the same machine.

    python benchmarks/scale.py
    python benchmarks/scale.py --nodes 1000 --seconds 60 --partitions 1000000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.flight as flight
from _common import surroundings

from tfspark import messages as m
from tfspark.control.coordinator import Coordinator
from tfspark.control.lifecycle import Phase
from tfspark.feeding.ledger import FeedLedger, Target
from tfspark.settings import Settings
from tfspark.spec import NodeAddress, NodeId, plan_nodes
from tfspark.transport.auth import Secret, new_secret
from tfspark.transport.client import MessageClient

PARTITIONS = [1_000, 10_000, 100_000, 1_000_000]
NODES = [32, 128, 512, 1000, 2000]

STATED_PARTITIONS, STATED_NODES = 1_000_000, 1000
"""By default only these sizes have a line of JSON; sizes given as options have one each."""

WORKERS = 32
UNDER_WAY = 64
"""Concurrent uploads: as many as from a Spark cluster with this many task slots."""

PROCESSES = 4
"""Number of processes that simulate nodes."""

RETRY_SECONDS = 0.5

THREADS = 8
"""Number of threads in each of these processes that send heartbeats."""


def cost_of_ledger(workers: int, partitions: int) -> tuple[float, float]:
    """Return the CPU-seconds of a feed's ledger, and the MB by which memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ledger = FeedLedger([Target(NodeId("worker", i), f"host{i % 16}") for i in range(workers)])
    began = time.process_time()
    under_way: list[tuple[int, str, NodeId]] = []
    for partition in range(partitions):
        upload = f"{partition:032x}"
        node = ledger.assign(partition, upload, f"host{partition % 16}")
        assert node is not None
        under_way.append((partition, upload, node))
        if len(under_way) == UNDER_WAY:
            sent = under_way.pop(partition % UNDER_WAY)
            assert ledger.commit(*sent, rows=1000 + partition % 97, nbytes=8000)
    for sent in under_way:
        assert ledger.commit(*sent, rows=1000, nbytes=8000)
    assert ledger.committed == partitions
    rows = ledger.rows.values()
    assert max(rows) < 1.05 * min(rows) or partitions < 100 * workers
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.process_time() - began, grown / 1024


def in_a_process(call: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process, which may start its own child processes; return its result."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, call, args))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    finally:
        process.join()


def _send(sending: Any, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sending.send(call(*args))


class SimulatedNode:
    """Sends the messages of a node's supervising task and of its process."""

    def __init__(self, node: NodeId, port: int, secret: Secret, latencies: list[float]) -> None:
        self.node = node
        # The supervising task and its node are two processes with one connection each.
        self._client = MessageClient("127.0.0.1", port, secret)
        self._supervisor = MessageClient("127.0.0.1", port, secret)
        self._latencies = latencies
        self.due = 0.0

    def start(self) -> None:
        """Attach and register the node."""
        self._client.ask(m.Attach(self.node, 0, "127.0.0.1"), m.AttachAnswer, timeout=60)
        self._client.send(m.Register(NodeAddress(self.node, "127.0.0.1", 1, 2, 3)), timeout=60)

    def enter(self) -> None:
        """Report that main is called, after the spec is complete, and send the first heartbeat."""
        self._client.send(m.Entered(self.node), timeout=60)
        self.beat(time.monotonic())
        self._latencies.clear()

    def follow(self, over: threading.Event) -> None:
        """Poll for events, as a node's follower does."""
        seen = 0
        while not over.is_set():
            with contextlib.suppress(flight.FlightError):
                seen += len(
                    self._client.ask(m.Poll(self.node, seen, Settings.poll_interval), m.Events, timeout=60).events
                )

    def beat(self, now: float) -> None:
        """Send the heartbeat if it is due; it carries the pulse of the node's process."""
        if now < self.due:
            return
        began = time.perf_counter()
        seconds = RETRY_SECONDS
        heartbeat = m.Heartbeat(self.node, ["a line"], pulse=m.Pulse(self.node, 0.0, 1000, {"ahead": 1.0}, 10))
        # A real node also continues if an answer is late; the latency is counted.
        with contextlib.suppress(flight.FlightError):
            seconds = self._supervisor.ask(heartbeat, m.HeartbeatAnswer).seconds
        self._latencies.append(time.perf_counter() - began)
        self.due = now + seconds


def simulate(nodes: list[NodeId], port: int, secret: Secret, seconds: float, ready: Any, go: Any, out: Any) -> None:
    """Run nodes for `seconds`, then send the latencies of their heartbeats to `out`."""
    latencies: list[float] = []
    simulated = [SimulatedNode(n, port, secret, latencies) for n in nodes]
    over = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(SimulatedNode.start, simulated))
        list(pool.map(SimulatedNode.enter, simulated))
        followers = [threading.Thread(target=n.follow, args=(over,), daemon=True) for n in simulated]
        for follower in followers:
            follower.start()
        ready.release()
        go.wait()
        began = time.monotonic()
        for i, node in enumerate(simulated):
            # Real nodes do not send at the same times.
            node.due = began + Settings.longest_interval * i / len(simulated)

        def beat_all(mine: list[SimulatedNode]) -> None:
            while (now := time.monotonic()) < began + seconds:
                for node in mine:
                    node.beat(time.monotonic())
                due = min(node.due for node in mine)
                over.wait(max(0.0, min(due - time.monotonic(), began + seconds - now)))

        list(pool.map(beat_all, [simulated[i::THREADS] for i in range(THREADS) if simulated[i::THREADS]]))
    over.set()
    out.send(latencies)
    # Polls are still running in Flight's threads; Python would wait for these threads.
    os._exit(0)


def cost_of_coordinator(count: int, seconds: float) -> dict[str, float]:
    """Return the cost of a coordinator with `count` nodes while they train."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    nodes = plan_nodes(count)
    secret = new_secret()
    settings = Settings(hang_timeout=1e9, silence_timeout=60.0)
    coordinator = Coordinator("127.0.0.1", secret, nodes, settings, lambda: None)
    processes = min(PROCESSES, count)
    parts = [list(nodes[i::processes]) for i in range(processes)]
    pipes = [context.Pipe(duplex=False) for _ in parts]
    receivers = [receiving for receiving, _ in pipes]
    running = [
        context.Process(target=simulate, args=(part, coordinator.port, secret.for_clients(), seconds, ready, go, out))
        for part, (_, out) in zip(parts, pipes, strict=True)
    ]
    try:
        for process, (_, out) in zip(running, pipes, strict=True):
            process.start()
            out.close()
        for _ in running:
            assert ready.acquire(timeout=120), "nodes did not start"
        assert coordinator.lifecycle.phase is Phase.RUNNING, "not all nodes have registered"
        began, cpu = time.monotonic(), time.process_time()
        go.set()
        latencies = []
        for process, receiving in zip(running, receivers, strict=True):
            # Raises EOFError if the process has died.
            latencies += receiving.recv()
            process.join()
        spent, passed = time.process_time() - cpu, time.monotonic() - began
        assert coordinator.lifecycle.error is None, f"a node was given up: {coordinator.lifecycle.error}"
    finally:
        coordinator.close()
        for process in running:
            process.join(10)
            process.kill()
    hundredths = statistics.quantiles(latencies, n=100)
    return {
        "cores": round(spent / passed, 3),
        "p50_ms": round(1000 * hundredths[49], 2),
        "p99_ms": round(1000 * hundredths[98], 2),
        "heartbeats_per_second": round(len(latencies) / passed, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, nargs="+", help=f"by default {PARTITIONS}")
    parser.add_argument("--nodes", type=int, nargs="+", help=f"by default {NODES}")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement with nodes")
    chosen = parser.parse_args()
    asked = chosen.partitions is not None or chosen.nodes is not None
    if asked:
        surroundings("scale")
    table = [f"{'partitions':>12} {'CPU-seconds':>12} {'us each':>8} {'MB more':>8}"]
    lines = []
    for partitions in chosen.partitions or PARTITIONS:
        cpu, megabytes = in_a_process(cost_of_ledger, WORKERS, partitions)
        table.append(f"{partitions:>12,} {cpu:>12.3f} {1e6 * cpu / partitions:>8.1f} {megabytes:>8.1f}")
        lines.append({"bench": "ledger", "workers": WORKERS, "partitions": partitions, "cpu_seconds": round(cpu, 3)})
    table += ["", f"{'nodes':>12} {'cores':>12} {'p50 ms':>8} {'p99 ms':>8} {'heartbeats/s':>13}"]
    for nodes in chosen.nodes or NODES:
        cost = in_a_process(cost_of_coordinator, nodes, chosen.seconds)
        table.append(
            f"{nodes:>12,} {cost['cores']:>12.3f} {cost['p50_ms']:>8} {cost['p99_ms']:>8} "
            f"{cost['heartbeats_per_second']:>13}"
        )
        figures = {name: cost[name] for name in ("cores", "p99_ms")}
        lines.append({"bench": "coordinator", "nodes": nodes, **figures})
    print("\n".join(table))
    for line in lines:
        if asked or line.get("partitions") == STATED_PARTITIONS or line.get("nodes") == STATED_NODES:
            print(json.dumps(line))


if __name__ == "__main__":
    main()
